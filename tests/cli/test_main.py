"""The main program: `serve`'s flags are the settings and nothing else, and every command has its help."""

import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from app.cli.main import _flags, cli
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


def test_the_help_of_serve_has_every_setting_with_its_default() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "app", "serve", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    lines = {words[0]: line for line in ran.stdout.splitlines() if (words := line.split())}
    assert all(f"--{name.replace('_', '-')}" in lines for name in Settings.model_fields)
    assert "[8080]" in lines["--port"]
    assert "[must be set]" in ran.stdout


def commands(of: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below `of`, with the words that call it."""
    yield path, of
    for name, command in getattr(of, "commands", {}).items():
        yield from commands(command, *path, name)


@pytest.mark.parametrize("path", [path for path, _ in commands(get_command(cli)) if path != ("serve",)], ids=" ".join)
def test_the_help_of_every_command_says_all_of_it_in_80_columns(path: tuple[str, ...]) -> None:
    """Text in square brackets is markup to the help's renderer: it would be left out, or break the whole page."""
    done = CliRunner().invoke(cli, [*path, "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.exception
    assert max(map(len, done.output.splitlines())) <= 80
    squeezed = re.sub(r"[\s│─╭╮╰╯]", "", done.output)
    command = dict(commands(get_command(cli)))[path]
    for parameter in command.params:
        for word in (getattr(parameter, "help", None) or "").replace("\\[", "[").split():
            assert word in squeezed, parameter.name


def test_the_help_lists_what_people_do_first_at_its_top() -> None:
    done = CliRunner().invoke(cli, ["--help"])
    listed = re.findall(r"(?m)^│ ([a-z]+) ", done.output.partition("Commands")[2])
    assert listed[:4] == ["serve", "screen", "status", "chat"]


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys"

    def keys(*args: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "app", "keys", *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    lines = [keys("new", "--name", name, "--role", "upload").stdout for name in ("ci", "ci-2")]
    file.write_text("# ours\n" + "".join(lines))
    file.chmod(0o640)
    listed = json.loads(keys("list", str(file), "--json").stdout)
    assert [(one["name"], one["roles"], one["owner"]) for one in listed] == [
        ("ci", ["upload"], "ci"),
        ("ci-2", ["upload"], "ci-2"),
    ]
    assert keys("revoke", str(file), "--name", "ci").returncode == 0
    assert file.read_text() == "# ours\n" + lines[1]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    again = keys("revoke", str(file), "--name", "ci")
    assert (again.returncode, "has no key ci" in again.stderr) == (1, True)
    file.write_text("nonsense")
    assert "line 1" in keys("list", str(file)).stderr
