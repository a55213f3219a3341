"""What the Dockerfile promises, read from the file: stages, users, pins, what is copied."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from app import __version__

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
LINES = re.sub(r"\\\n", " ", "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))).splitlines()


def stages() -> dict[str, list[str]]:
    """Stage → its instructions, those of the stages it builds on first."""
    found: dict[str, list[str]] = {}
    for line in LINES:
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            parent, name = match.groups()
            found[name] = list(found.get(parent, []))
        elif found and line.strip():
            found[name].append(line.strip())
    return found


STAGES = stages()
final = pytest.mark.parametrize("stage", ["gateway", "cpu"])


def last(stage: str, instruction: str) -> str:
    return [line for line in STAGES[stage] if line.startswith(instruction + " ")][-1].removeprefix(instruction + " ")


@final
def test_nobody_runs_as_root(stage: str) -> None:
    assert last(stage, "USER") == "10001:10001"
    after = STAGES[stage][STAGES[stage].index("USER 10001:10001") :]
    assert not [line for line in after if line.startswith(("RUN", "COPY", "ADD"))]


@final
def test_health_is_asked_without_further_programs(stage: str) -> None:
    check = last(stage, "HEALTHCHECK")
    assert "/health" in check
    assert '["python", "-c"' in check


@final
def test_what_was_built_with_stays_behind(stage: str) -> None:
    copied = [line for line in STAGES[stage] if line.startswith("COPY")]
    assert [line.split()[1] for line in copied] == [f"--from=build{'-cpu' if stage == 'cpu' else ''}"]
    assert not [line for line in STAGES[stage] if "pip install" in line or "python3-venv" in line]


def test_the_engine_finds_its_library() -> None:
    assert any("libnuma1" in line for line in STAGES["cpu"])
    assert not any("vllm" in line.lower() and "install" in line for line in STAGES["gateway"])


@final
def test_no_compiler_is_carried(stage: str) -> None:
    installed = " ".join(line for line in STAGES[stage] if "apt-get install" in line).split()
    assert not {"g++", "gcc", "clang", "build-essential", "python3-dev"} & set(installed)


def test_everything_is_pinned() -> None:
    (base,) = re.findall(r"^ARG BASE=(\S+)$", TEXT, re.MULTILINE)
    assert re.fullmatch(r"\S+:[0-9]+\.[0-9]+\S*", base)
    installs = [line for line in LINES if "uv pip install" in line]
    assert len(installs) == 3
    assert all("-c requirements/cpu.txt" in line for line in installs)
    script = (ROOT / "requirements" / "install.py").read_text()
    assert f'"uv=={re.findall("UV_VERSION=(.+)", TEXT)[0]}"' in script


@pytest.mark.parametrize(
    ("extras", "expected"), [("", [".", ".[cpu]"]), ("s3,postgres", [".[s3,postgres]", ".[cpu,s3,postgres]"])]
)
def test_extras_are_installed_where_they_are_asked_for(extras: str, expected: list[str]) -> None:
    """What the shell makes of the line, with the build's argument as it stands in the environment."""
    assert {stage: "ARG EXTRAS" in lines for stage, lines in STAGES.items()}["build"]
    wanted = re.findall(r'-c requirements/cpu\.txt +(".*?")', "\n".join(LINES))
    said = [
        subprocess.run(["sh", "-c", f"printf %s {word}"], env={"EXTRAS": extras}, capture_output=True, text=True).stdout
        for word in wanted
    ]
    assert said == expected
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = (ROOT / "requirements" / "cpu.txt").read_text()
    for extra in ("s3", "postgres"):
        (library,) = known[extra]
        assert re.search(rf"^{re.match(r'[a-z0-9-]+', library)[0]}==", pins, re.MULTILINE)  # type: ignore[index]


def test_no_index_no_secret_and_no_machine_is_named() -> None:
    assert "://" not in TEXT.replace("http://127.0.0.1", "")
    assert not re.findall(r"^(ARG|ENV) .*(PASSWORD|TOKEN|API_KEY)", TEXT, re.MULTILINE)
    assert all("--mount=type=secret,id=ca" in line for line in LINES if "uv pip install" in line)


def test_examples_and_compose_name_this_version() -> None:
    assert f"--tag lora-gateway:{__version__} " in TEXT
    images = re.findall(r"image: lora-gateway:(\S+)", (ROOT / "docker-compose.yml").read_text())
    assert set(images) == {__version__, f"{__version__}-cpu"}


def test_the_build_sees_only_what_it_is_made_of() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    sources = {
        word for line in LINES if line.startswith("COPY ") and "--from" not in line for word in shlex.split(line)[1:-1]
    }
    assert allowed == sources
