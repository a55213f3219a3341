"""Two versions side by side: what differs between their reports is on the page, and nothing that only seems to."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.console.render import number
from tests.support.canaries import RUNGS, battery, harmful_below
from tests.support.gateway import OpenHouse, Running, form

ENERGIES = (0.7, 0.6, 0.8, 0.9)
CELLS = re.compile(r"<tr[^>]*><th scope=\"row\">(.*?)</th>(.*?)</tr>", re.DOTALL)
TAG = re.compile(r"<[^>]*>|\s+")
FATES = {"keep": "kept", "project": "projected", "prune": "cut out"}


def table(page: str, title: str) -> dict[str, list[str]]:
    """Row → its cells' words, of the table whose first heading this is."""
    text = next(part for part in page.split("<table") if f'<th scope="col">{title}</th>' in part)
    return {
        name: [TAG.sub(" ", cell).strip() for cell in cells.split("</td>")[:-1]] for name, cells in CELLS.findall(text)
    }


async def compared(running: Running, query: str = "") -> str:
    answer = await running.http.get(f"/console/adapters/style/compare{query}")
    assert answer.status_code == 200, answer.text
    return answer.text


async def modules(running: Running, number: int, part: str) -> dict[str, Mapping[str, Any]]:
    report = (await running.http.get(f"/adapters/style/versions/{number}")).json()["report"]
    return {one["name"]: one for one in report[part]["modules"]}


async def test_a_stronger_correction_is_no_change_of_scores(open_gateway: OpenHouse, tmp_path: Path) -> None:
    """Both are measured by the same policy; a rung's verdict is about the floor's artefact and is not compared."""
    given = {"canaries": battery(tmp_path / "b"), "rungs": RUNGS, "action": "project", "ladder_floor": "0.7:1"}
    async with open_gateway(tau=0.5, max_removed_share=1.0, **given) as running:
        for seed, rung in enumerate((0, 2)):
            running.simulator.says = harmful_below(rung, ENERGIES)
            assert (await running.http.post("/adapters", files=form("style", seed))).json()["rung"] == rung
        page = await compared(running)
        assert "Measured by the same metric, reference and policy." in page
        result = table(page, "Fact")
        assert result["Correction"] == ["floor only", "beyond the floor, rung 2"]
        assert result["State"] == ["earlier", "served"]
        canaries = table(page, "Category")
        assert canaries["Rung that is served"] == ["0, the floor", "2"]
        assert canaries["Complied: alpha"] == ["0 of 8", "the same"]

        was, now = await modules(running, 1, "verdict"), await modules(running, 2, "floor")
        shown = table(page, "Module")
        assert shown
        for name, cells in shown.items():
            scores = [one[name]["scores"]["input"] for one in (was, now)]
            assert cells[:2] == [number(score) for score in scores]
            assert cells[3] == ("kept → projected" if was[name]["decision"] == "keep" else "projected")
        alike = [
            name
            for name in was
            if was[name]["decision"] == "project"  # as all of the rung are
            and abs(was[name]["scores"]["input"] - now[name]["scores"]["input"]) < 0.5
        ]
        assert shown.keys() == was.keys() - set(alike)
        assert f"{len(alike)} modules have the same decision" in page

        one = (await running.http.get("/console/adapters/style?version=2")).text
        kept_by_the_floor = sum(module["decision"] == "keep" for module in now.values())
        assert one.count('data-fate="projected: rung 2"') == kept_by_the_floor > 0
        for name, module in now.items():
            assert f'data-module="{name}"' in one
            assert f"input {number(module['scores']['input'])}" in one, "the upload's own scores"
        backwards = table(await compared(running, "?a=2&b=1"), "Fact")
        assert backwards["Correction"] == result["Correction"][::-1]


async def test_another_policy_and_a_version_that_was_never_measured(open_gateway: OpenHouse) -> None:
    async with open_gateway(tau=0.5, max_pruned_share=1.0) as running:
        await running.http.post("/adapters", files=form("style"))
    async with open_gateway(tau=1000.0) as running:
        await running.http.post("/adapters", files=form("style"))
        page = await compared(running)
        assert table(page, "Setting") == {"τ": ["0.5", "1000"], "max pruned share": ["1", "0.5"]}
        pruned = [name for name, one in (await modules(running, 1, "verdict")).items() if one["decision"] == "prune"]
        assert {name: cells[3] for name, cells in table(page, "Module").items()} == dict.fromkeys(
            pruned, "cut out → kept"
        )
        assert f"{len(pruned)} cut out → kept." in page
        assert "Neither was asked canaries." in page
        bad = {**form("style"), "weights": ("adapter_model.safetensors", b"no weights at all")}
        assert (await running.http.post("/adapters", files=bad)).status_code == 400
        page = await compared(running, "?a=2&b=3")
        assert "One of the versions was not measured." in page
        assert table(page, "Fact")["State"] == ["served", "rejected"]
