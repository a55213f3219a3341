"""The recorded vLLM metrics, which the Engine dashboard is tested against, are what the installed engine says."""

import re

import pytest

from app.load.client.engine import HttpEngine
from tests.support.engine import LiveEngine
from tests.support.vllm_metrics import RECORDED, burst


def series(text: str) -> set[str]:
    """Names and label names."""
    found = set()
    for line in text.splitlines():
        if (match := re.match(r"(vllm:\w+)(?:\{(.*)\})? ", line)) and "_created" not in match[1]:
            labels = sorted(re.findall(r'(\w+)="', match[2] or ""))
            found.add(f"{match[1]}{labels}")
    return found


@pytest.mark.engine
async def test_the_engine_says_what_was_recorded(engine: LiveEngine) -> None:
    client = HttpEngine(engine.url)
    await burst(client, [engine.model])
    live = series((await client.exposition()).decode())
    await client.close()
    recorded = {name for name in series(RECORDED.read_text(encoding="utf-8")) if "lora_requests_info" not in name}
    assert recorded <= live, "record anew: python -m tests.support.vllm_metrics"
