"""The set-up script's decisions; that it installs is shown by every fresh clone."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "requirements" / "install.py"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module that works on an empty directory."""
    spec = importlib.util.spec_from_file_location("install", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "install", module)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    paths = {"VENV": venv, "PYTHON": venv / "bin" / "python", "STAMP": venv / ".installed", "LOG": venv / "log"}
    for name, path in paths.items():
        monkeypatch.setattr(module, name, path)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "HERE", tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    for name in ("cpu.txt", "cuda.txt"):
        (tmp_path / name).write_text("a==1\ntorch==2.13.0\nvllm-cpu==0.32.0\nz==1\n")
    return module


def step(script: ModuleType, code: str) -> object:
    return script.Step("a step", (sys.executable, "-c", code))


def test_the_stamp_follows_whatever_matters(script: ModuleType, tmp_path: Path) -> None:
    seen = [script.fingerprint("cpu"), script.fingerprint("none"), script.fingerprint("cuda")]
    for name in ("pyproject.toml", "cpu.txt"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
        seen.append(script.fingerprint("cpu"))
    assert len(set(seen)) == 5
    assert script.fingerprint("cpu") == seen[-1]


def test_nothing_is_done_twice(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(sys, "argv", ["install.py"])
    monkeypatch.setattr(script, "check_machine", lambda _: None)
    monkeypatch.setattr(script, "install", lambda extra, with_uv: done.append(f"{extra} {with_uv}"))
    script.PYTHON.parent.mkdir(parents=True)
    script.PYTHON.touch()
    assert [script.main() for _ in range(3)] == [0, 0, 0]
    assert done == ["cpu True"]
    script.PYTHON.unlink()
    assert script.main() == 0
    assert len(done) == 2


def test_a_failed_set_up_says_which_step_and_leaves_no_stamp(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(extra: str, with_uv: bool) -> None:
        script.attempt(step(script, "print('the reason'); raise SystemExit(3)"), {}, 2, "try this")

    monkeypatch.setattr(sys, "argv", ["install.py"])
    monkeypatch.setattr(script, "check_machine", lambda _: None)
    monkeypatch.setattr(script, "install", fail)
    assert script.main() == 1
    said = capsys.readouterr().out
    assert said.count("| the reason") == 2
    assert "set-up failed: a step: try this" in said
    assert not script.STAMP.exists()


def test_a_step_is_tried_again(script: ModuleType, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"import pathlib, sys; p = pathlib.Path({str(mark)!r}); sys.exit(0 if p.exists() else p.touch() or 1)"
    script.attempt(step(script, code), {}, 3, "")
    mark.unlink()
    with pytest.raises(script.StepFailed):
        script.attempt(step(script, code), {}, 1, "")


def test_uv_that_fails_is_followed_by_pip(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def attempt(step: object, environment: object, tries: int, advice: str) -> None:
        command = " ".join(map(str, step.command))  # type: ignore[attr-defined]
        ran.append(command)
        if " -m uv " in command:
            raise script.StepFailed("uv")

    monkeypatch.setattr(script, "attempt", attempt)
    monkeypatch.setattr(script, "pip_settings", dict)
    script.install("cpu", with_uv=True)
    plain = [command.split(" -m pip install ")[1] for command in ran if " -m pip install " in command]
    assert plain[0] == "uv==0.13.9"
    assert plain[1].endswith("torch==2.13.0")
    assert [words.split()[:2] for words in plain[2:]] == [["--no-deps", "-r"], ["--no-deps", "-e"]]
    assert "import" in ran[-1]


def test_without_an_engine_only_the_engine_is_left_out(script: ModuleType) -> None:
    script.VENV.mkdir()
    kept = script.without_engine(script.pins_of("none")).read_text()
    assert kept == "a==1\ntorch==2.13.0\nz==1\n"


def test_pips_settings_are_handed_on_to_uv(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_FIND_LINKS", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_STRATEGY", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    settings = {
        "find-links": f"{tmp_path} {tmp_path / 'missing'} https://wheels.example/x",
        "index-url": "https://index.example/simple",
        "extra-index-url": "file:///somewhere https://more.example/simple",
        "cert": "/certs.pem",
    }
    monkeypatch.setattr(script, "pip_settings", lambda: settings)
    found = script.uv_environment()
    assert found["UV_FIND_LINKS"] == f"{tmp_path},https://wheels.example/x"
    assert found["UV_DEFAULT_INDEX"] == "https://index.example/simple"
    assert found["UV_INDEX"] == "https://more.example/simple"
    assert found["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert found["SSL_CERT_FILE"] == "/certs.pem"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://chosen.example")
    assert script.uv_environment()["UV_DEFAULT_INDEX"] == "https://chosen.example"
    monkeypatch.setattr(script, "pip_settings", dict)
    assert "UV_FIND_LINKS" not in script.uv_environment()


def test_the_environment_goes_above_pips_files(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "PYTHON", Path(sys.executable))
    monkeypatch.setenv("PIP_FIND_LINKS", "/from/environment")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a.example https://b.example")
    found = script.pip_settings()
    assert found["find-links"] == "/from/environment"
    assert found["extra-index-url"] == "https://a.example https://b.example"


def test_a_missing_library_is_named_with_the_package(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(script.ctypes, "CDLL", missing)
    with pytest.raises(script.StepFailed, match="libnuma1"):
        script.check_machine("cpu")
    script.check_machine("none")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(script.StepFailed, match="Linux"):
        script.check_machine("none")
