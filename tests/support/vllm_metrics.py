"""vLLM's own metrics as the real one wrote them, for the simulator and the Engine dashboard.

Recorded from vLLM 0.32 (CPU build) after a burst of chats: `python -m tests.support.vllm_metrics` writes the file anew, and
tests/dashboards/test_recorded.py holds it against the engine that is installed.
"""

import asyncio
import json
import re
import tempfile
from pathlib import Path

from app.load.client.engine import HttpEngine
from app.load.embedded.supervisor import EmbeddedEngine, socket_home
from tests.support import tiny_model

RECORDED = Path(__file__).with_name("vllm-0.32-metrics.txt")
_GROWS = re.compile(r"^(vllm:\S*?(?:_total|_bucket|_count|_sum)(?:\{.*\})?) (\S+)$", re.MULTILINE)

_CACHED = re.compile(r"^(vllm:kv_cache_usage_perc\{.*\}) \S+$", re.MULTILINE)


def exposition(requests: int, model: str, cached: float = 0.0) -> str:
    """The recorded page as an engine called `model` would show it after so many requests: what grows has grown.

    cached: share of the KV cache in use.
    """
    text = RECORDED.read_text(encoding="utf-8").replace(tiny_model.MODEL_NAME, model)
    text = _CACHED.sub(lambda found: f"{found[1]} {cached}", text)
    return _GROWS.sub(lambda found: f"{found[1]} {float(found[2]) * (1 + requests)}", text)


async def burst(client: HttpEngine, models: list[str]) -> None:
    """A few requests to each model, streamed and not, at the same time."""

    async def ask(model: str, start: int, *, stream: bool) -> None:
        sent = {"model": model, "prompt": list(range(start, start + 12)), "max_tokens": 12, "stream": stream}
        response = await client.post("/v1/completions", json.dumps(sent).encode())
        await response.read(1 << 20)
        response.close()

    await asyncio.gather(*(ask(m, s, stream=s % 2 == 0) for m in models for s in (5, 6, 50, 51)))


async def _record(root: Path) -> str:
    from tests.support.engine import tiny_spec

    model = tiny_model.write_model(root / "model")
    tiny_model.write_adapter(root / "adapter", 1, scale=0.5)
    engine = EmbeddedEngine(tiny_spec(model), socket_home(root / "run"), root / "engine.log")
    await engine.start()
    try:
        await engine.ready()
        await engine.client.load("one@000000000001", root / "adapter")
        await burst(engine.client, [tiny_model.MODEL_NAME, "one@000000000001"])
        return (await engine.client.exposition()).decode()
    finally:
        await engine.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        lines = asyncio.run(_record(Path(directory))).splitlines(keepends=True)
    kept = [line for line in lines if "vllm:" in line and "_created" not in line and "cache_config_info" not in line]
    RECORDED.write_text("".join(kept), encoding="utf-8")
