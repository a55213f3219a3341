"""A vLLM somebody else started, by its URL: the same path, without the embedded engine."""

import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.screen.reference.build import build_reference
from app.server.app import build_app
from app.server.settings import Settings
from app.server.wiring import wire_gateway
from tests.support.engine import LiveEngine

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def reference(engine: LiveEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The served tiny model against a base that differs from it a little everywhere."""
    root = tmp_path_factory.mktemp("external")
    base = Path(shutil.copytree(engine.model_dir, root / "base"))
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(base / "model.safetensors")
    moved = {name: t + 0.02 * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
    save_file(moved, base / "model.safetensors", metadata={"format": "pt"})
    build_reference(base, engine.model_dir, root / "reference")
    return root / "reference"


async def test_an_adapter_goes_through_an_engine_of_somebody_elses(
    engine: LiveEngine, reference: Path, tmp_path: Path
) -> None:
    settings = Settings(  # type: ignore[call-arg]  # the rest are defaults
        model=engine.model,
        reference=reference,
        data=tmp_path / "data",
        open=True,
        engine_url=engine.url,
        dtype="float32",  # type: ignore[arg-type]
        max_lora_rank=8,
        max_update_ratio=1e6,
        max_pruned_share=1.0,
        base_through_noop=True,
        min_free_disk_mib=0,
    )
    folder = engine.adapter(1)
    files = {
        "name": (None, b"outside"),
        "config": ("c", (folder / "adapter_config.json").read_bytes()),
        "weights": ("w", (folder / "adapter_model.safetensors").read_bytes()),
    }
    app = build_app(wire_gateway(settings))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        transport = httpx.ASGITransport(app)
        http = await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)
        )
        pushed = await http.post("/adapters", files=files)
        assert pushed.status_code == 201, pushed.text
        body = {"messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 5, "temperature": 0}
        said = {}
        for model in ("outside", engine.model):
            answer = await http.post("/v1/chat/completions", json={"model": model, **body})
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == model
            said[model] = answer.json()["choices"][0]["message"]["content"]
        assert len(set(said.values())) == 2
        assert (await http.delete("/adapters/outside")).status_code == 204
