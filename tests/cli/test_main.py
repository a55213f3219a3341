"""`serve`'s flags are the settings, and nothing else."""

import subprocess
import sys

import pytest

from app.cli.main import _flags
from app.server.settings import Settings


def test_flags_become_settings() -> None:
    given = _flags(["--model", "m", "--reference=r", "--open", "--max-loras", "8", "--tau", "2.5"])
    settings = Settings(**given)
    assert (settings.model, settings.open, settings.max_loras, settings.tau) == ("m", True, 8, 2.5)


def test_the_environment_gives_what_flags_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_MAX_LORAS", "9")
    monkeypatch.setenv("GATEWAY_API_KEYS", "kr9-and-thirteen-more, two-and-thirteen-more")
    settings = Settings(**_flags(["--model", "m", "--reference", "r", "--max-cpu-loras", "9"]))
    assert settings.max_loras == 9
    assert [key.get_secret_value() for key in settings.api_keys] == ["kr9-and-thirteen-more", "two-and-thirteen-more"]
    assert "kr9" not in repr(settings)


def test_a_stray_word_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _flags(["model"])
    assert ended.value.code == 2
    assert "unexpected argument" in capsys.readouterr().err


def test_the_served_name_is_the_last_part_of_the_model() -> None:
    for model in ("org/model-7b", "/models/model-7b", "/models/model-7b/"):
        assert Settings(**_flags(["--model", model, "--reference", "r", "--open"])).served_name == "model-7b"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "--model (GATEWAY_MODEL): must be set"),
        (["--model", "m", "--reference", "r"], "set GATEWAY_API_KEYS (or --api-keys)"),
        (["--model", "m", "--reference", "r", "--banana", "1"], "--banana (GATEWAY_BANANA): no such setting"),
        (["--demo", "--host", "0.0.0.0"], "loopback only"),
        (["--model", "m", "--reference", "/nowhere", "--open"], "/nowhere/reference.json"),
    ],
    ids=str,
)
def test_serve_says_what_is_wrong_in_one_line_and_no_traceback(args: list[str], said: str) -> None:
    ran = subprocess.run([sys.executable, "-m", "app", "serve", *args], capture_output=True, text=True, timeout=60)
    assert ran.returncode in (1, 2)
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_client_without_files_or_gateway_is_told_so() -> None:
    for args in (["push", "x", "/nowhere"], ["list", "--url", "http://127.0.0.1:1"]):
        ran = subprocess.run(
            [sys.executable, "-m", "app", "adapters", *args], capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 1
        assert ran.stderr.startswith("error: ")
        assert "Traceback" not in ran.stderr
