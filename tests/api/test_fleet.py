"""What engines elsewhere are told: which artefact a version's name means, and its bytes; nothing else."""

import hashlib
from pathlib import Path

import pytest

from app.domain.api_keys import Role, new_key
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE, content_digest
from tests.support.gateway import OpenHouse, Running, form


async def test_a_published_version_resolves_to_its_artefact_and_the_bytes_are_those(running: Running) -> None:
    pushed = (await running.http.post("/adapters", files=form("bard"))).json()
    told = (await running.http.get("/resolve/bard@1")).json()
    assert told["digest"] == pushed["digest"]
    assert told["engine_name"] == f"bard@{pushed['digest'][:12]}"
    by_engine_name = (await running.http.get(f"/resolve/{told['engine_name']}")).json()
    assert by_engine_name == told | {"model": told["engine_name"]}
    files = {file: (await running.http.get(f"/artefacts/{told['digest']}/{file}")).content for file in told["bytes"]}
    assert {file: len(data) for file, data in files.items()} == told["bytes"]
    assert content_digest(files[CONFIG_FILE], files[WEIGHTS_FILE]).hex == told["digest"]


@pytest.mark.parametrize("asked", ["bard", "served", "nobody@1", "bard@2", "bard@000000000000", "..%2F..%2Fetc@1", "@"])
async def test_names_without_a_version_and_names_nobody_published_are_not_found(running: Running, asked: str) -> None:
    await running.http.post("/adapters", files=form("bard"))
    answer = await running.http.get(f"/resolve/{asked}")
    assert answer.status_code == 404


async def test_an_earlier_version_still_resolves_and_a_deleted_one_does_not(running: Running) -> None:
    first = (await running.http.post("/adapters", files=form("bard", seed=1))).json()
    await running.http.post("/adapters", files=form("bard", seed=2))
    assert (await running.http.get("/resolve/bard@1")).json()["digest"] == first["digest"]
    await running.http.delete("/adapters/bard")
    assert (await running.http.get("/resolve/bard@1")).status_code == 404
    assert (await running.http.get(f"/artefacts/{first['digest']}/{CONFIG_FILE}")).status_code == 404


async def test_a_version_that_waits_for_an_engine_resolves_by_its_engine_name_only(running: Running) -> None:
    running.simulator.faults["*"] = "500"
    stored = await running.http.post("/adapters", files=form("bard"), params={"wait": "false"})
    assert stored.status_code == 202
    digest = stored.json()["digest"]
    assert (await running.http.get("/resolve/bard@1")).status_code == 404
    assert (await running.http.get(f"/resolve/bard@{digest[:12]}")).json()["digest"] == digest


@pytest.mark.parametrize("file", ["manifest.json", "..", "%2e%2e%2f.lock", "adapter_config.json%00"])
async def test_only_the_two_files_an_engine_reads_are_given_out(running: Running, file: str) -> None:
    digest = (await running.http.post("/adapters", files=form("bard"))).json()["digest"]
    assert (await running.http.get(f"/artefacts/{digest}/{file}")).status_code in (400, 404)


async def test_nothing_but_published_artefacts_is_given_out(running: Running) -> None:
    for asked in ("." * 64, "0" * 64, ".staging", hashlib.sha256(b"").hexdigest()):
        assert (await running.http.get(f"/artefacts/{asked}/{CONFIG_FILE}")).status_code == 404


async def test_an_engines_key_reads_artefacts_and_can_do_nothing_else(open_gateway: OpenHouse, tmp_path: Path) -> None:
    key, stored = new_key("engine-1", [Role.ENGINE])
    (tmp_path / "keys").write_text(stored.line)
    async with open_gateway(api_keys_file=tmp_path / "keys") as running:
        await running.http.post("/adapters", files=form("bard"))
        theirs = {"Authorization": f"Bearer {key}"}
        assert (await running.http.get("/resolve/bard@1", headers=theirs)).status_code == 200
        for method, path in (("GET", "/adapters"), ("DELETE", "/adapters/bard"), ("GET", "/metrics")):
            assert (await running.http.request(method, path, headers=theirs)).status_code == 403
        assert (await running.http.get("/resolve/bard@1", headers={"Authorization": ""})).status_code == 401
