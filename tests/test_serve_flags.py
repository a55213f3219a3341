"""`serve`'s flags are the settings, and nothing else."""

import pytest

from app.cli import _flags
from app.settings import Settings


def test_flags_become_settings() -> None:
    given = _flags(["--model", "m", "--reference=r", "--open", "--max-loras", "8", "--tau", "2.5"])
    settings = Settings(**given)
    assert (settings.model, settings.open, settings.max_loras, settings.tau) == ("m", True, 8, 2.5)


def test_the_environment_gives_what_flags_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_MAX_LORAS", "9")
    monkeypatch.setenv("GATEWAY_API_KEYS", "kr9, two")
    settings = Settings(**_flags(["--model", "m", "--reference", "r", "--max-cpu-loras", "9"]))
    assert settings.max_loras == 9
    assert [key.get_secret_value() for key in settings.api_keys] == ["kr9", "two"]
    assert "kr9" not in repr(settings)


def test_a_stray_word_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _flags(["model"])
    assert ended.value.code == 2
    assert "unexpected argument" in capsys.readouterr().err


def test_the_served_name_is_the_last_part_of_the_model() -> None:
    for model in ("org/model-7b", "/models/model-7b", "/models/model-7b/"):
        assert Settings(**_flags(["--model", model, "--reference", "r", "--open"])).served_name == "model-7b"
