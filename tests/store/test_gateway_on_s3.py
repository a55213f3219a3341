"""A whole gateway whose artefacts are on S3-compatible storage."""

import shutil
from pathlib import Path

from app.store.audit.audit import audit
from app.store.catalogue.database import sqlite_url
from tests.support.gateway import OpenHouse, form
from tests.support.s3 import Storage, storage

__all__ = ["storage"]


async def test_a_gateway_that_lost_its_copies_serves_from_the_storage(
    open_gateway: OpenHouse, storage: Storage
) -> None:
    async with open_gateway(store_url=storage.url) as running:
        pushed = await running.http.post("/adapters", files=form("bard"))
        assert pushed.status_code == 201, pushed.text
        digest = pushed.json()["digest"]
        data = running.data
    for copy in (data / "artefacts").iterdir():
        if len(copy.name) == len(digest):
            copy.chmod(0o755)
            shutil.rmtree(copy)
    async with open_gateway(store_url=storage.url) as running:
        assert (await running.http.get(f"/artefacts/{digest}/adapter_config.json")).status_code == 200
        again = await running.http.post("/adapters", files=form("bard"))
        assert (again.status_code, again.json()["digest"]) == (200, digest)
        assert any(name.startswith("bard@") for name in running.simulator.loaded)
    found = audit(data, sqlite_url(data / "catalogue.sqlite"))
    assert not found.findings


async def test_an_upload_that_the_storage_did_not_take_is_not_acknowledged(
    open_gateway: OpenHouse, storage: Storage, tmp_path: Path
) -> None:
    async with open_gateway(store_url=storage.url) as running:
        storage.faults.other = (
            "adapter_model.safetensors"  # what is there already reads back wrong, so it is written anew
        )
        assert (await running.http.post("/adapters", files=form("bard", seed=1))).status_code == 201
        storage.faults.other = None
        storage.faults.failing = True
        refused = await running.http.post("/adapters", files=form("bard", seed=2))
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "store_failed")
        assert (await running.http.get("/ready")).json()["parts"]["store"] != "ok"
        answer = await running.http.post(
            "/v1/chat/completions", json={"model": "bard", "messages": [{"role": "user", "content": "x"}]}
        )
        assert answer.status_code == 200  # what is loaded goes on
        storage.faults.failing = False
        assert (await running.http.post("/adapters", files=form("bard", seed=2))).status_code == 201
        assert (await running.http.get("/ready")).json()["parts"]["store"] == "ok"
