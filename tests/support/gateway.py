"""The whole gateway in this process, over the engine's simulator: fast, and everything but the engine real."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from app.domain.lora import ServingDtype, TargetModel
from app.server.app import build_app
from app.server.settings import Settings
from app.server.wiring import Gateway, wire_gateway
from tests.support.adapters import Upload
from tests.support.references import TINY, make_reference
from tests.support.simulator import Simulator

KEY = "a-key-for-the-tests"
SERVED = "served"


@dataclass(frozen=True)
class Running:
    """A gateway under test: its application and client (with the key), its simulated engine, its rooms and directories."""

    app: FastAPI
    http: httpx.AsyncClient
    simulator: Simulator
    gateway: Gateway
    data: Path


@pytest.fixture(scope="session")
def tiny_reference_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference over two layers of the tiny shapes."""
    return make_reference(tmp_path_factory.mktemp("house-reference"))


OpenHouse = Callable[..., Any]


@asynccontextmanager
async def gateway(data: Path, reference: Path, simulator: Simulator, **overrides: Any) -> AsyncIterator[Running]:
    """A gateway over a simulated engine (of which only the URL is used), opened, started, and closed again."""
    settings = Settings(
        **{
            "model": SERVED,
            "host": "0.0.0.0",  # nothing listens; an open gateway on loopback would know its own names only
            "reference": reference,
            "data": data,
            "api_keys": KEY,
            "engine_url": simulator.url,
            "dtype": "float32",
            "max_lora_rank": 16,
            "min_free_disk_mib": 0,
            "uploads_per_minute": 0,  # tests ask faster than people do
            "screens_per_minute": 0,
            "screens_per_day": 0,
            "reconcile_seconds": 0.05,
            "action": "prune",
            "tau": 3.0,
            "top_k": 4,
            "energy": 1.0,
            "max_update_ratio": 1e9,
            "screen_sandbox": False,  # its start takes seconds; tests/sandbox/test_sandbox.py is about it
            **overrides,
        }
    )
    wired = wire_gateway(settings)
    app = build_app(wired)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = httpx.AsyncClient(
            transport=transport, base_url="http://gateway", headers={"Authorization": f"Bearer {KEY}"}
        )
        await stack.enter_async_context(client)
        yield Running(app, client, simulator, wired, data)


@pytest_asyncio.fixture
async def open_gateway(tiny_reference_dir: Path, tmp_path: Path) -> AsyncIterator[OpenHouse]:
    """`async with open_gateway(tau=…) as running:` over the same data directory each time."""
    simulator = Simulator(tmp_path / "e.sock", SERVED)
    await simulator.start()
    yield lambda **overrides: gateway(tmp_path / "data", tiny_reference_dir, simulator, **overrides)
    await simulator.stop()


@pytest_asyncio.fixture
async def running(open_gateway: OpenHouse) -> AsyncIterator[Running]:
    """A gateway with the default policy."""
    async with open_gateway() as made:
        yield made


def form(name: str, seed: int = 0) -> Any:
    """The multipart parts of a valid upload for the tiny reference; another seed, other bytes."""
    modules = {f"model.layers.{i}.{kind}": shape for i in range(2) for kind, shape in TINY.items()}
    sent = Upload.valid(TargetModel(SERVED, modules, ServingDtype.FLOAT32, 16), seed=seed)
    return {
        "name": (None, name.encode()),
        "config": ("adapter_config.json", sent.config_bytes),
        "weights": ("adapter_model.safetensors", sent.weights_bytes),
    }
