"""The auditor finds every broken invariant: each is broken here on purpose, in a store that a gateway filled."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.cli.store_audit import NOTHING_SEEN, status_of
from app.domain.artefact import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from app.gateway.engine_lists import engine_list, in_both
from app.store.audit.audit import Audit, Promise, Skipped, audit
from app.store.audit.engines import Card
from app.store.audit.policy_in_force import FILE_NAME
from app.store.audit.rules import Finding
from app.store.catalogue.database import sqlite_url
from tests.support.gateway import KEY, OpenHouse, Running, form

Filled = tuple[Path, dict[str, Card]]


async def fill(running: Running) -> None:
    """Two versions of one name, one of another, an emptied one, a rejected one, a deleted one."""
    for name, seed in (("style", 1), ("style", 2), ("other", 3), ("gone", 4)):
        assert (await running.http.post("/adapters", files=form(name, seed))).status_code == 201
    assert (await running.http.delete("/adapters/gone")).status_code == 204
    bad = form("bad", 5) | {"config": ("c", b"{}")}
    assert (await running.http.post("/adapters", files=bad)).status_code == 400


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves what the others copy."""
    return tmp_path_factory.mktemp("filled")


@pytest.fixture
async def filled(open_gateway: OpenHouse, tmp_path: Path, kept: Path) -> Filled:
    """A data directory as a gateway left it, and what its engine held."""
    data = tmp_path / "data"
    if not (kept / "listed.json").exists():
        async with open_gateway(tau=1e9, max_pruned_share=1.0) as running:
            await fill(running)
            while any(name.startswith("gone@") for name in running.simulator.loaded):
                await running.gateway.reconciler.reconcile()
            listed = dict(await engine_list(running.simulator.url))
        async with open_gateway(tau=-1e9, max_pruned_share=1.0, unscorable="prune") as running:
            answer = await running.http.post("/adapters", files=form("nothing", 6))
            assert answer.json()["outcome"] == "emptied", answer.text
        async with open_gateway(tau=1e9, max_pruned_share=1.0):
            pass
        shutil.copytree(data, kept / "data")
        roots = {name: Path(card.root or "").name if card.parent else None for name, card in listed.items()}
        (kept / "listed.json").write_text(json.dumps(roots))
        shutil.rmtree(data)
    shutil.copytree(kept / "data", data)
    held = json.loads((kept / "listed.json").read_text())
    cards = {name: Card(str(data / "artefacts" / at), "served") for name, at in held.items() if at is not None}
    return data, cards | {"served": Card("/models/tiny", None)}


def look(filled: Filled, **more: Any) -> Audit:
    data, listed = filled
    return audit(data, sqlite_url(data / "catalogue.sqlite"), **{"listed": listed, "secrets": [KEY]} | more)


def sql(data: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(data / "catalogue.sqlite") as connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        assert connection.execute(statement, values).rowcount > 0
    connection.close()


def artefact_of(data: Path, name: str, number: int = 1) -> Path:
    with sqlite3.connect(data / "catalogue.sqlite") as connection:
        query = "SELECT artefact FROM versions JOIN adapters a ON a.id = adapter_id WHERE a.name = ? AND number = ?"
        (digest,) = connection.execute(query, (name, number)).fetchone()
    connection.close()
    return data / "artefacts" / str(digest)


def change(path: Path, how: Callable[[bytes], bytes]) -> None:
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(how(path.read_bytes()))
    path.chmod(mode)


def change_json(path: Path, how: Callable[[Any], None]) -> None:
    def changed(data: bytes) -> bytes:
        fields = json.loads(data)
        how(fields)
        return json.dumps(fields).encode()

    change(path, changed)


def flipped(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


def remove(path: Path) -> None:
    path.chmod(0o755)
    shutil.rmtree(path)


def add_file(directory: Path, name: str) -> None:
    directory.chmod(0o755)
    (directory / name).write_bytes(b"x")
    (directory / name).chmod(0o444)


def take_file(directory: Path, name: str) -> None:
    directory.chmod(0o755)
    (directory / name).unlink()
    directory.chmod(0o555)


def link_in_place(data: Path) -> None:
    take_file(artefact_of(data, "style"), WEIGHTS_FILE)
    (artefact_of(data, "style") / WEIGHTS_FILE).symlink_to(artefact_of(data, "other") / WEIGHTS_FILE)


def served_again(data: Path) -> None:
    sql(data, f"UPDATE versions SET state = 'ready' {of_version('gone')}")
    sql(data, "UPDATE adapters SET deleted = 0, active_version = 1 WHERE name = 'gone'")


def of_version(name: str, number: int = 1) -> str:
    return f"WHERE number = {number} AND adapter_id = (SELECT id FROM adapters WHERE name = '{name}')"


def report(name: str, how: Callable[[Any], None]) -> Callable[[Path], None]:
    def broken(data: Path) -> None:
        with sqlite3.connect(data / "catalogue.sqlite") as connection:
            (text,) = connection.execute(f"SELECT report FROM versions {of_version(name)}").fetchone()
        connection.close()
        fields = json.loads(text)
        how(fields)
        sql(data, f"UPDATE versions SET report = ? {of_version(name)}", json.dumps(fields))

    return broken


def truncated_catalogue(data: Path) -> None:
    with sqlite3.connect(data / "catalogue.sqlite") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'versions_state'").fetchone()
    connection.close()
    with (data / "catalogue.sqlite").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\x0a\x00\x00\x00\x00")  # an index page that says it is empty


BROKEN: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a bit of the weights": ("I6", lambda d: change(artefact_of(d, "style") / WEIGHTS_FILE, flipped)),
    "the configuration": ("I6", lambda d: change(artefact_of(d, "style") / CONFIG_FILE, lambda b: b + b" ")),
    "a damaged artefact is one lost": ("I2", lambda d: change(artefact_of(d, "other") / WEIGHTS_FILE, flipped)),
    "the manifest is about other files": (
        "I12",
        lambda d: change_json(artefact_of(d, "style") / MANIFEST_FILE, lambda m: m["files"].clear()),
    ),
    "a bit of a score in the manifest": (
        "I12",
        lambda d: change_json(
            artefact_of(d, "style") / MANIFEST_FILE, lambda m: m["verdict"]["modules"][0].update(v_norm=3.0)
        ),
    ),
    "a manifest without a verdict": (
        "I7",
        lambda d: change_json(artefact_of(d, "style") / MANIFEST_FILE, lambda m: m.pop("verdict")),
    ),
    "a manifest that rejects": (
        "I7",
        lambda d: change_json(
            artefact_of(d, "style") / MANIFEST_FILE, lambda m: m["verdict"].update(outcome="rejected")
        ),
    ),
    "a manifest whose verdict pruned what is there": (
        "I7",
        lambda d: change_json(
            artefact_of(d, "style") / MANIFEST_FILE, lambda m: m["verdict"]["modules"][0].update(decision="prune")
        ),
    ),
    "a manifest that is no JSON": ("I12", lambda d: change(artefact_of(d, "style") / MANIFEST_FILE, lambda _: b"{")),
    "a scaling in the configuration": (
        "I1",
        lambda d: change_json(artefact_of(d, "style") / CONFIG_FILE, lambda c: c.update(lora_alpha=4096)),
    ),
    "more tensors than modules": (
        "I1",
        lambda d: change(
            artefact_of(d, "style") / WEIGHTS_FILE, lambda b: b.replace(b"lora_A.weight", b"lora_X.weight", 1)
        ),
    ),
    "a file may be written": ("I6", lambda d: (artefact_of(d, "style") / CONFIG_FILE).chmod(0o644)),
    "a directory may be written by others": ("I6", lambda d: artefact_of(d, "style").chmod(0o777)),
    "a file is missing": ("I3", lambda d: take_file(artefact_of(d, "style"), MANIFEST_FILE)),
    "a foreign file": ("I3", lambda d: add_file(artefact_of(d, "style"), "run.py")),
    "a link in place of a file": ("I6", link_in_place),
    "something else among the artefacts": ("I3", lambda d: (d / "artefacts" / "half").mkdir()),
    "an artefact is gone": ("I2", lambda d: remove(artefact_of(d, "style"))),
    "an artefact that the engine holds is gone": ("I6", lambda d: remove(artefact_of(d, "style", 2))),
    "the catalogue's pages": ("I3", truncated_catalogue),
    "another schema": ("I3", lambda d: sql(d, "UPDATE schema_info SET version = 99")),
    "a version of nobody": ("I5", lambda d: sql(d, f"UPDATE versions SET adapter_id = 99 {of_version('other')}")),
    "the alias points nowhere": ("I5", lambda d: sql(d, "UPDATE adapters SET active_version = 7 WHERE name = 'style'")),
    "the alias points to a retired one": (
        "I5",
        lambda d: sql(d, "UPDATE adapters SET active_version = 1 WHERE name = 'style'"),
    ),
    "two active versions": ("I5", lambda d: sql(d, f"UPDATE versions SET state = 'ready' {of_version('style')}")),
    "a name kept under another key": (
        "I5",
        lambda d: sql(d, "UPDATE adapters SET name_key = 'x' WHERE name = 'style'"),
    ),
    "two names but for case": ("I5", lambda d: sql(d, "UPDATE adapters SET name = 'STYLE' WHERE name = 'other'")),
    "an engine name of another digest": (
        "I5",
        lambda d: sql(d, f"UPDATE versions SET engine_name = 'style@000000000000' {of_version('style')}"),
    ),
    "a number from the future": (
        "I13",
        lambda d: sql(d, "UPDATE adapters SET next_version = 2 WHERE name = 'style'"),
    ),
    "a deleted adapter with a living version": (
        "I13",
        lambda d: sql(d, f"UPDATE versions SET state = 'retired' {of_version('gone')}"),
    ),
    "a deleted version served again": ("I2", served_again),
    "a state nobody drew": ("I13", lambda d: sql(d, f"UPDATE versions SET state = 'blessed' {of_version('other')}")),
    "ready without an artefact": (
        "I13",
        lambda d: sql(d, f"UPDATE versions SET artefact = NULL {of_version('other')}"),
    ),
    "emptied with an engine name": (
        "I13",
        lambda d: sql(d, f"UPDATE versions SET engine_name = 'nothing@x' {of_version('nothing')}"),
    ),
    "received with an artefact": (
        "I13",
        lambda d: sql(d, f"UPDATE versions SET state = 'received' {of_version('style')}"),
    ),
    "ready with an error": (
        "I13",
        lambda d: sql(d, f"UPDATE versions SET error_code = 'rejected' {of_version('other')}"),
    ),
    "ready without a report": ("I7", lambda d: sql(d, f"UPDATE versions SET report = NULL {of_version('other')}")),
    "ready although rejected": (
        "I7",
        lambda d: sql(d, f"UPDATE versions SET outcome = 'rejected' {of_version('other')}"),
    ),
    "a report about another verdict": ("I7", report("other", lambda r: r["verdict"].update(id="0" * 64))),
    "a report that rejects a module": (
        "I7",
        report("other", lambda r: r["verdict"]["modules"][0].update(decision="reject")),
    ),
    "a report whose numbers changed": (
        "I12",
        report("other", lambda r: r["verdict"]["modules"][0].update(update_norm=0.0)),
    ),
    "a report without its fields": ("I7", report("other", lambda r: r["verdict"].pop("modules"))),
    "a refusal without a reason": (
        "I12",
        lambda d: sql(d, f"UPDATE versions SET error_code = NULL {of_version('bad')}"),
    ),
    "a refusal nobody knows": ("I12", lambda d: sql(d, f"UPDATE versions SET error_code = 'huh' {of_version('bad')}")),
    "a refusal that is our fault": (
        "I12",
        lambda d: sql(d, f"UPDATE versions SET error_code = 'internal_error' {of_version('bad')}"),
    ),
    "a refusal that clears the screen": (
        "I12",
        lambda d: sql(d, f"UPDATE versions SET error_message = ? {of_version('bad')}", "\x1b[2J"),
    ),
    "a rejection without its report": (
        "I12",
        lambda d: sql(d, f"UPDATE versions SET outcome = 'rejected' {of_version('bad')}"),
    ),
    "the same bytes with two results": (
        "I8",
        lambda d: sql(
            d,
            "UPDATE versions SET (config_digest, weights_digest) = "
            f"(SELECT config_digest, weights_digest FROM versions {of_version('style')}) {of_version('other')}",
        ),
    ),
    "screened by another policy": (
        "I1",
        lambda d: sql(d, f"UPDATE versions SET parameters = 'older' {of_version('other')}"),
    ),
    "a key in a log": ("I14", lambda d: (d / "engine.log").write_text(f"Authorization: Bearer {KEY}")),
    "a key in the catalogue": (
        "I14",
        lambda d: sql(d, f"UPDATE versions SET error_message = ? {of_version('bad')}", f"key {KEY}"),
    ),
}


def test_a_store_in_order_has_no_findings(filled: Filled) -> None:
    found = look(filled)
    assert found.findings == ()
    assert found.notes == ()
    assert found.counts["adapters"] == 5
    assert found.counts["versions"] == 6
    assert found.counts["artefacts"] == 3
    assert found.counts["engine_names"] == 4


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_found(filled: Filled, what: str) -> None:
    invariant, breaking = BROKEN[what]
    breaking(filled[0])
    found = look(filled).findings
    assert invariant in {one.invariant for one in found}, found


def test_every_invariant_that_can_be_read_is_broken_here() -> None:
    assert {invariant for invariant, _ in BROKEN.values()} == {
        "I1",
        "I2",
        "I3",
        "I5",
        "I6",
        "I7",
        "I8",
        "I12",
        "I13",
        "I14",
    }


@pytest.mark.parametrize(
    ("invariant", "held"),
    [
        ("I1", {"other@x": Card("/tmp/quarantine/1", "served")}),
        ("I1", {"plain": Card("/tmp/elsewhere", "served")}),
        ("I6", {"a@000000000000": Card("{store}/" + "0" * 64, "served")}),
        ("I1", {"style@{other}": Card("{store}/{style}", "served")}),
        ("I4", None),
    ],
)
def test_what_the_engine_should_not_hold_or_lacks_is_found(
    filled: Filled, invariant: str, held: dict[str, Card] | None
) -> None:
    data, listed = filled
    words = {"store": str(data / "artefacts"), "style": artefact_of(data, "style").name}
    words["other"] = artefact_of(data, "other").name[:12]
    if held is None:
        listed = {name: card for name, card in listed.items() if not name.startswith("style@")}
    for name, card in (held or {}).items():
        listed |= {name.format(**words): Card((card.root or "").format(**words), card.parent)}
    found = look((data, listed)).findings
    assert {one.invariant for one in found} == {invariant}, found


def test_what_was_promised_and_is_not_there_is_found(filled: Filled) -> None:
    kept = artefact_of(filled[0], "style").name
    assert look(filled, promised=[Promise("style", 1, kept), Promise("nothing", 1)]).findings == ()
    for broken in (Promise("style", 1, "0" * 64), Promise("style", 9), Promise("gone", 1), Promise("bad", 1)):
        assert [one.invariant for one in look(filled, promised=[broken]).findings] == ["I2"]


async def test_a_version_withheld_by_the_policy_is_none_to_be_served(
    filled: Filled, open_gateway: OpenHouse, tmp_path: Path
) -> None:
    """What was screened by an older policy passes by the new one, or is withheld; both are written down."""
    async with open_gateway(tau=0.0, max_pruned_share=0.0) as running:
        await running.gateway.reconciler.reconcile()
        now = dict(await engine_list(running.simulator.url))
    assert [name for name in now if "@" in name] == []
    found = look((filled[0], now))
    assert found.findings == ()
    assert any("withheld" in note for note in found.notes)
    assert {one.invariant for one in look(filled).findings} == {"I1"}, "the engine still holds what is withheld"
    (filled[0] / "artefacts" / FILE_NAME).write_text("{")
    assert any("not written down" in note for note in look(filled).notes)


async def test_beside_a_gateway_at_work(open_gateway: OpenHouse, tmp_path: Path) -> None:
    async with open_gateway(tau=1e9, max_pruned_share=1.0) as running:
        await fill(running)
        data = tmp_path / "data"
        before = sorted(path.name for path in data.rglob("*"))
        assert audit(data, sqlite_url(data / "catalogue.sqlite")).findings == ()
        assert sorted(path.name for path in data.rglob("*")) == before, "an auditor leaves nothing behind"
        (data / "quarantine" / "named").write_bytes(b"")
        (data / "engine.log").write_bytes(bytes(17 << 20))
        found = audit(data, sqlite_url(data / "catalogue.sqlite")).findings
        assert [one.invariant for one in found] == ["I10", "I10"]
        assert (await running.http.post("/adapters", files=form("after", 7))).status_code == 201


def test_only_what_two_looks_saw_counts(filled: Filled) -> None:
    first = look(filled, promised=[Promise("style", 9), Promise("style", 8)])
    second = look(filled, promised=[Promise("style", 9), Promise("style", 7)])
    assert [one.where for one in in_both(first, second).findings] == ["style@9"]


def command(data: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "app", "store", "audit", "--data", str(data), "--patience", "0", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=os.environ | {"GATEWAY_API_KEYS": KEY})


def test_nothing_is_counted_that_was_not_looked_at(filled: Filled, tmp_path: Path) -> None:
    everything = look(filled)
    assert everything.skipped == ()
    assert everything.counts["files_searched_for_keys"] > 3
    little = look(filled, listed=None, secrets=["short"])
    assert not {"engine_names", "files_searched_for_keys", "objects"} & little.counts.keys()
    assert Skipped("keys in files", "none of 8 characters or more was given") in little.skipped
    (filled[0] / "artefacts" / ".lock").write_text("nobody")
    assert Skipped("names in the quarantine, sizes of logs", "no gateway is at work here") in look(filled).skipped
    shutil.rmtree(filled[0] / "artefacts")
    assert Skipped("artefacts", f"{filled[0] / 'artefacts'} is no directory", asked=True) in look(filled).skipped
    told = command(filled[0])
    assert "not looked at: engines: none was given (--engine-url)" in told.stdout
    assert "not looked at: what is stored, measured again: no reference was given (--reference)" in told.stdout


def test_nothing_seen_of_what_was_asked_for_is_no_success() -> None:
    finding, asked, other = Finding("I2", "a@1", "x"), Skipped("engines", "y", asked=True), Skipped("engines", "y")
    assert [status_of(Audit((), skipped=skipped)) for skipped in ((), (other,), (other, asked))] == [0, 0, NOTHING_SEEN]
    assert status_of(Audit((finding,), skipped=(asked,))) == 1


async def test_an_empty_catalogue_with_a_directory_that_is_not_there_is_no_all_clear(
    open_gateway: OpenHouse, tmp_path: Path
) -> None:
    async with open_gateway():
        pass
    assert command(tmp_path / "data").returncode == 0
    told = command(tmp_path / "data", "--artefacts", str(tmp_path / "nowhere"))
    assert told.returncode == NOTHING_SEEN
    assert "asked for and not looked at: artefacts" in told.stdout.replace("\n", " ")


def test_the_command_tells_by_its_status(filled: Filled) -> None:
    assert command(filled[0]).returncode == 0
    change(artefact_of(filled[0], "style") / WEIGHTS_FILE, flipped)
    told = command(filled[0], "--json")
    assert told.returncode == 1
    assert {one["invariant"] for one in json.loads(told.stdout)["findings"]} == {"I2", "I6", "I12"}
    assert "broken invariants" in command(filled[0]).stdout
    assert command(filled[0] / "nowhere").returncode == 1


def test_an_audit_may_be_slowed_by_the_bytes_it_reads(filled: Filled) -> None:
    read: list[int] = []
    found = look(filled, between=read.append)
    assert len(read) == found.counts["artefacts"]
    assert sum(read) == found.counts["bytes"] > 0
