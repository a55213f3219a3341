"""Settings → shares: what callers may hold together where the settings do not say."""

from pathlib import Path
from typing import Any

import pytest

from app.domain.api_keys import Role, new_key
from app.domain.shares import Resource
from app.server import receiving
from app.server.receiving import shares_of
from app.server.settings import Settings

SEVERAL = 3


def sequences(tmp_path: Path, keys: int, **more: Any) -> int:
    file = tmp_path / "keys"
    file.write_text("\n".join(new_key(f"key-{number}", [Role.CHAT])[1].line for number in range(keys)))
    settings = Settings(model="m", reference=tmp_path, api_keys_file=file, **more)
    return shares_of(settings).limit(Resource.SEQUENCES)


@pytest.mark.parametrize(("cores", "limit"), [(1, 8), (2, 8), (16, 64)])
def test_several_keys_share_few_sequences_of_a_cpu_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, limit: int
) -> None:
    monkeypatch.setattr(receiving, "cpu_build", lambda: True)
    monkeypatch.setattr(receiving, "cores", lambda: cores)
    assert sequences(tmp_path, SEVERAL) == limit
    assert sequences(tmp_path, 1) == 256
    assert sequences(tmp_path, SEVERAL, max_sequences=40) == 40
    assert sequences(tmp_path, SEVERAL, engine_url="http://127.0.0.1:1") == 256


def test_other_engines_have_as_many_as_the_table_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "cpu_build", lambda: False)
    assert sequences(tmp_path, SEVERAL) == 256
