"""Names of adapters on the hub, and a hub that does not answer. What is fetched: tests/cli/test_adapters.py."""

from pathlib import Path

import huggingface_hub.constants
import pytest

from app.cli.hub_source import HubSource
from app.domain.errors import SOURCE_UNAVAILABLE, Refused, Unavailable


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf://org/name", ("org/name", "main", "")),
        ("hf://org/name/", ("org/name", "main", "")),
        ("hf://org/name@v1.0", ("org/name", "v1.0", "")),
        ("hf://org/na.me_x-1/sub/folder", ("org/na.me_x-1", "main", "sub/folder")),
        ("hf://org/name@abc123/checkpoint-5", ("org/name", "abc123", "checkpoint-5")),
    ],
)
def test_a_name_is_a_repository_a_revision_and_a_folder(text: str, parts: tuple[str, str, str]) -> None:
    found = HubSource.parse(text)
    assert (found.repository, found.revision, found.folder) == parts


@pytest.mark.parametrize(
    "text",
    ["hf://", "hf://org", "hf://org/../x", "hf://org/name/..", "hf://org/name@", "hf://org/name@a b", "hf://o/n\n"],
)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="is not of the form hf://org/repository"):
        HubSource.parse(text)


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: bool) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="hf://org/name@main: ") as caught:
        HubSource.parse("hf://org/name").fetch()
    assert caught.value.code is SOURCE_UNAVAILABLE
