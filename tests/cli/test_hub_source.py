"""A hub that does not answer the command. Names: tests/domain/test_adapter_source.py; what is fetched: test_adapters.py."""

from pathlib import Path

import huggingface_hub.constants
import pytest

from app.cli.hub_source import fetched
from app.domain.adapter_source import HubSource
from app.domain.errors import SOURCE_UNAVAILABLE, Unavailable


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: bool) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="hf://org/name@main: ") as caught:
        fetched(HubSource.parse("hf://org/name"))
    assert caught.value.code is SOURCE_UNAVAILABLE
