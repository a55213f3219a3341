"""The served model as a directory or a hub id."""

from pathlib import Path

import pytest

from app.domain.errors import ENGINE_UNAVAILABLE, Unavailable
from app.load.embedded.download import local_model

REVISION = "0" * 39 + "1"


@pytest.fixture
def offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of our own that holds org/tiny, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--org--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text(REVISION)
    return tmp_path


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert local_model(str(tmp_path)) == tmp_path


def test_a_hub_id_becomes_the_directory_of_its_snapshot(offline_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *args, **kw: real(*args, **kw, cache_dir=offline_cache)
    )
    found = local_model("org/tiny")
    assert (found / "config.json").is_file()
    assert found.name == REVISION


@pytest.mark.parametrize("model", ["/no/such/directory", "org/absent", "not a name!", "a/b/c"])
def test_what_is_neither_is_named(offline_cache: Path, model: str) -> None:
    with pytest.raises(Unavailable, match="no directory") as caught:
        local_model(model)
    assert caught.value.code is ENGINE_UNAVAILABLE
    assert model in caught.value.message
