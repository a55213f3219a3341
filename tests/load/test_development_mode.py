"""vLLM's development mode, on the real engine: the question that finds it out is answered there and nowhere else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.load.client.engine import DEVELOPERS, HttpEngine
from app.load.embedded.command import environment
from tests.support.engine import live_engine


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.ruling("O06")
async def test_the_real_engine_in_development_mode_is_objected_to(
    tmp_path: Path, tiny_model_dir: Path, tiny_adapter: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def developers(*given: Any) -> dict[str, str]:
        return {**environment(*given), "VLLM_SERVER_DEV_MODE": "1"}

    monkeypatch.setattr("app.load.embedded.supervisor.environment", developers)
    with live_engine(tmp_path, tiny_model_dir, tiny_adapter) as live:
        client = HttpEngine(live.url)
        try:
            assert await client.objection() == DEVELOPERS
        finally:
            await client.close()
