"""deploy/ray-serve/export.py over a whole gateway: what is published becomes folders, what is not goes, nothing else moves.

The bucket is a dictionary; docs/ray-serve.md says what the script was run against besides.
"""

import asyncio
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.support.gateway import KEY, OpenHouse, Running, form
from tests.support.served import on_a_port

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "ray-serve" / "export.py"


class Bucket:
    """The few calls of an S3 client that are made."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.order: list[str] = []

    def put_object(self, *, Bucket: str, Key: str, Body: bytes) -> None:  # noqa: N803 - boto3's names
        assert Bucket == "adapters"
        self.objects[Key] = Body
        self.order.append(Key.rpartition("/")[2])

    def delete_object(self, *, Bucket: str, Key: str) -> None:  # noqa: ARG002, N803, RUF100
        del self.objects[Key]

    def get_paginator(self, _: str) -> Any:
        def paginate(*, Bucket: str, Prefix: str) -> Iterator[dict[str, Any]]:  # noqa: ARG001, N803, RUF100
            yield {"Contents": [{"Key": key} for key in self.objects if key.startswith(Prefix)]}

        return SimpleNamespace(paginate=paginate)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "boto3", ModuleType("boto3"))
    spec = importlib.util.spec_from_file_location("ray_export", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def run(script: ModuleType, running: Running, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    async with on_a_port(running) as port:
        monkeypatch.setenv("GATEWAY_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("GATEWAY_API_KEY", KEY)
        await asyncio.to_thread(script.export, bucket, running.data, "adapters", "demo", prune=True)


async def test_published_versions_become_folders_and_go_with_them(
    open_gateway: OpenHouse, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket()
    bucket.objects["other/kept"] = b""
    async with open_gateway() as running:
        digests = [(await running.http.post("/adapters", files=form("a", seed))).json()["digest"] for seed in (1, 2)]
        await run(script, running, bucket, monkeypatch)
        folders = {f"demo/a@{digest[:12]}" for digest in digests}
        assert {key.rpartition("/")[0] for key in bucket.objects} == folders | {"other"}
        assert len(bucket.objects) == 2 * len(folders) + 1
        assert bucket.order[0::2] == ["adapter_model.safetensors"] * 2  # before the file that makes the folder visible
        stored = running.data / "artefacts" / digests[0] / "adapter_model.safetensors"
        assert bucket.objects[f"demo/a@{digests[0][:12]}/adapter_model.safetensors"] == stored.read_bytes()
        await run(script, running, bucket, monkeypatch)
        assert len(bucket.order) == 4  # nothing is written twice
        assert (await running.http.delete("/adapters/a")).status_code == 204
        await run(script, running, bucket, monkeypatch)
        assert set(bucket.objects) == {"other/kept"}


async def test_a_damaged_artefact_is_not_exported(
    open_gateway: OpenHouse, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket()
    async with open_gateway() as running:
        digest = (await running.http.post("/adapters", files=form("a"))).json()["digest"]
        folder = running.data / "artefacts" / digest
        folder.chmod(0o755)
        weights = folder / "adapter_model.safetensors"
        weights.chmod(0o644)
        weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
        with pytest.raises(SystemExit, match="damaged"):
            await run(script, running, bucket, monkeypatch)
    assert bucket.objects == {}
