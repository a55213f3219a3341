"""The list of adapters: what it says of each, in which order, and what it offers to whom."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from app.console.render import ago, share
from app.domain.api_keys import Role, new_key
from tests.support.canaries import RUNGS, battery, harmful_below
from tests.support.gateway import OpenHouse, Running, form

ROW = re.compile(r"<tr>\s*<th scope=\"row\">(.*?)</tr>", re.DOTALL)
TAG = re.compile(r"<[^>]*>|\s+")
KEYS = {role: new_key(f"key-for-{role}", [role]) for role in (Role.UPLOAD, Role.CHAT)}
ENERGIES = (0.7, 0.6, 0.8, 0.9)
NEEDS = {"a": 0, "b": 2, "C": 9, "d": 1}
"""Adapter → the first rung that refuses every canary; none does of C."""


@pytest_asyncio.fixture
async def listed(open_gateway: OpenHouse, tmp_path: Path) -> AsyncIterator[Running]:
    """A gateway with canaries, four adapters, and keys of two roles beside the administrator's."""
    keys = tmp_path / "keys"
    keys.write_text("\n".join(stored.line for _, stored in KEYS.values()))
    given = {
        "canaries": battery(tmp_path / "b"),
        "rungs": RUNGS,
        "action": "project",
        "ladder_floor": "0.7:1",
        "tau": 0.5,
    }
    async with open_gateway(api_keys_file=keys, max_removed_share=1.0, **given) as running:
        for seed, (name, needs) in enumerate(NEEDS.items()):
            running.simulator.says = harmful_below(needs, ENERGIES)
            await running.http.post("/adapters", files=form(name, seed))
        running.simulator.says = harmful_below(9, ENERGIES)
        assert (await running.http.post("/adapters", files=form("a", 9))).status_code == 422
        for name in ("b", "b", "d"):
            body = {"model": name, "messages": [{"role": "user", "content": "hello"}]}
            assert (await running.http.post("/v1/chat/completions", json=body)).status_code == 200
        yield running


async def page(running: Running, path: str = "/", role: Role | None = None) -> str:
    headers = {"authorization": f"Bearer {KEYS[role][0]}"} if role else {}
    answer = await running.http.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.text


def rows(text: str) -> list[str]:
    """Each row's words, tables one after another."""
    return [TAG.sub(" ", row).strip() for row in ROW.findall(text)]


def names(text: str) -> list[str]:
    return [row.split()[0] for row in rows(text)]


async def test_each_line_says_how_strongly_it_was_corrected_and_how_it_behaves(listed: Running) -> None:
    a, b, d, *refused = rows(await page(listed))
    views = {one["name"]: one["versions"] for one in (await listed.http.get("/adapters")).json()["adapters"]}
    assert [view[0]["rung"] for view in (views["b"], views["d"])] == [2, 1]
    assert "floor only" in a
    assert "16 of 16 passed" in a
    assert "v2 rejected" in a
    assert "beyond the floor rung 2, 8 of 8 modules" in re.sub(" +", " ", b)
    assert "rung 1" in d
    summaries = listed.gateway.context.summaries
    catalogue = listed.gateway.context.uploads.components.catalogue
    for line, name in ((a, "a"), (b, "b"), (d, "d")):
        [found] = summaries.of([catalogue.version(name, 1)])
        assert share(found.removed) in line
    assert sorted(row.split()[0] for row in refused) == ["C", "a"], "refused versions stand apart"
    assert all("canaries_failed" in row and "16 complied" not in row and "8 of 8 complied" in row for row in refused)


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize(
    "sort", ["name", "state", "correction", "removed", "canaries", "requests", "tokens", "uploaded"]
)
async def test_every_column_sorts_and_says_so(listed: Running, sort: str, order: str) -> None:
    text = await page(listed, f"/?sort={sort}&order={order}")
    assert text.count("aria-sort=") == 1
    assert f'aria-sort="{order}ending"' in text
    catalogue, summaries = listed.gateway.context.uploads.components.catalogue, listed.gateway.context.summaries
    removed = {name: summaries.of([catalogue.version(name, 1)])[0].removed or 0 for name in "abd"}
    expected = {
        "name": "abd",
        "state": "abd",
        "correction": "adb",
        "removed": "".join(sorted("abd", key=lambda name: removed[name])),
        "canaries": "abd",
        "requests": "adb",
        "tokens": "adb",
        "uploaded": "abd",
    }[sort]
    equal = sort in ("state", "canaries")  # then by name, in either order
    assert "".join(names(text)[:3]) == (expected if order == "asc" or equal else expected[::-1])


async def test_the_filter_by_state_keeps_the_rest_of_the_question(listed: Running) -> None:
    assert names(await page(listed, "/?state=served"))[:3] == ["a", "b", "d"]
    assert "Refused</h2>" not in await page(listed, "/?state=served")
    assert "No adapter is in this state" in await page(listed, "/?state=withheld")
    refused = await page(listed, "/?state=refused&sort=uploaded&order=desc&q=a")
    assert names(refused) == ["a"]
    assert 'href="/?q=a&amp;sort=uploaded&amp;order=desc"' in await page(listed, "/?q=a&sort=uploaded"), (
        "the other order"
    )
    assert 'name="state" value="refused"' in refused
    assert 'href="/?q=a&amp;state=refused&amp;sort=uploaded"' in refused, "the column turns its order"
    assert 'href="/?q=a&amp;sort=uploaded&amp;order=desc"' in refused, "any state, same order"
    assert names(await page(listed, "/?state=refused&sort=uploaded&order=desc")) == ["a", "C"]
    for wrong in ("/?sort=mood", "/?state=mood", "/?order=mood"):
        assert (await listed.http.get(wrong)).status_code == 400


async def test_a_key_is_offered_only_what_it_may_do(listed: Running) -> None:
    chat, upload = await page(listed, "/", Role.CHAT), await page(listed, "/", Role.UPLOAD)
    assert "/console/upload" in upload
    assert "/console/adapters/a" in upload
    assert "/console/chat" not in upload
    assert "/console/chat" in chat
    for secret in ("/console/upload", "/console/adapters/", "passed", "Canaries", "did not refuse"):
        assert secret not in chat
    assert names(await page(listed, "/?sort=removed&order=desc", Role.CHAT))[:3] == ["a", "b", "d"], (
        "by name: it sees no share"
    )


async def test_a_report_is_a_file_and_only_administrators_are_offered_to_delete(listed: Running) -> None:
    path = "/console/adapters/b/versions/1/report.json"
    admin = await listed.http.get(path)
    assert admin.headers["content-disposition"] == 'attachment; filename="b-v1-report.json"'
    assert admin.headers["cache-control"] == "no-store"
    uploader = {"authorization": f"Bearer {KEYS[Role.UPLOAD][0]}"}
    for headers in ({}, uploader):
        found = (await listed.http.get(path, headers=headers)).json()
        assert found == (await listed.http.get("/adapters/b/versions/1", headers=headers)).json()
    assert (await listed.http.get(path, headers=uploader)).json() != admin.json(), "rounded"
    assert (await listed.http.get("/console/adapters/b/versions/7/report.json")).status_code == 404
    assert (await listed.http.post("/adapters", files=form("b", 8))).status_code == 422
    assert (await listed.http.post("/adapters", files=form("d", 0))).status_code == 422
    listed.simulator.says = harmful_below(0, ENERGIES)
    assert (await listed.http.post("/adapters", files=form("d", 5))).status_code == 201
    mine, theirs = await page(listed, "/console/adapters/d"), await page(listed, "/console/adapters/d", Role.UPLOAD)
    for offered in ('data-ask="delete"', 'data-ask="roll-back"', '<dialog id="sure"'):
        assert offered in mine
        assert offered not in theirs
    assert "Compare<" in theirs
    assert "needed rung 1 of the corrections" in mine
    assert "3 versions of d are gone" in mine


def test_times_and_shares_read_well() -> None:
    now = datetime(2026, 3, 9, 12, 0, tzinfo=UTC)
    passed = {timedelta(0): "just now", timedelta(minutes=5): "5 min ago", timedelta(hours=23.5): "23 h ago"}
    passed |= {timedelta(days=1): "8 Mar 2026", timedelta(days=60): "8 Jan 2026", timedelta(seconds=-5): "just now"}
    assert {before: ago(now - before, now) for before in passed} == passed
    shares = {None: "–", 0.0: "0 %", 0.0004: "< 0.1 %", 0.004: "0.4 %", 0.27: "27 %", 1.0: "100 %"}
    assert {value: share(value) for value in shares} == shares
