"""`.env.example` and docker-compose.yml: with a few variables filled in, one's own model is what is served."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from dotenv import dotenv_values

from app.domain.api_keys import MIN_KEY_CHARS
from app.screen.reference.open import open_reference
from app.server.settings import Settings
from tests.images.test_compose import FILE, ROOT, SERVICES, VARIABLE, interpolated
from tests.support.references import make_pair

EXAMPLE: Final = ROOT / ".env.example"
MOST_NEEDED: Final = 5
FILLED: Final = {
    "MODEL_PATH": "/checkpoints/chat",
    "BASE_PATH": "/checkpoints/raw",
    "SERVED_NAME": "mine",
    "API_KEYS": "k" * MIN_KEY_CHARS,
    "GATEWAY_PORT": "9000",
}
"""Values that somebody writes into their .env."""


def given() -> dict[str, str]:
    """Variables of the example that are not commented out."""
    return {name: value or "" for name, value in dotenv_values(EXAMPLE).items()}


def services(**more: str) -> dict[str, Any]:
    """The services that `docker compose up` starts with such an .env."""
    variables = given() | FILLED | more
    found = interpolated(variables)["services"]
    return {name: one for name, one in found.items() if variables["COMPOSE_PROFILES"] in one["profiles"]}


def sources(service: dict[str, Any]) -> dict[str, str]:
    """Folders of the machine: where they are mounted → which they are."""
    return {one["target"]: one["source"] for one in service["volumes"] if isinstance(one, dict)}


def flags(engine: dict[str, Any]) -> dict[str, str]:
    return {flag: value for flag, _, value in (word.partition("=") for word in shlex.split(engine["command"]))}


def test_few_variables_are_needed_and_the_profile_is_set() -> None:
    assert set(given()) == {"COMPOSE_PROFILES", *FILLED}
    assert len(FILLED) <= MOST_NEEDED
    assert given()["COMPOSE_PROFILES"] == "own-gpu"


def test_every_variable_is_documented_and_every_documented_one_is_read() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    named = set(re.findall(r"(?m)^#?([A-Z_]+)=", text))
    read = {name for name, _ in VARIABLE.findall(FILE.read_text(encoding="utf-8"))}
    assert named - {"COMPOSE_PROFILES"} == read  # that one is compose's own
    for name in named:
        before = text[: re.search(rf"(?m)^#?{name}=", text).start()].rstrip().splitlines()[-1]  # type: ignore[union-attr]
        assert before.startswith("#"), f"{name} has no comment"


@pytest.mark.parametrize("processor", ["cpu", "gpu"])
def test_the_model_is_mounted_where_gateway_and_engine_look(processor: str) -> None:
    found = services(COMPOSE_PROFILES=f"own-{processor}")
    gateway, engine = found["own-gateway"], found[f"own-engine-{processor}"]
    place = gateway["environment"]["GATEWAY_MODEL"]
    assert flags(engine)["--model"] == place
    assert sources(gateway)[place] == sources(engine)[place] == FILLED["MODEL_PATH"]
    assert flags(engine)["--served-model-name"] == gateway["environment"]["GATEWAY_SERVED_MODEL_NAME"] == "mine"
    assert gateway["ports"] == ["127.0.0.1:9000:8080"]
    assert not any(name in found for name in ("gateway", "demo", "engine-cpu", "engine-gpu"))


def test_the_gateways_settings_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = services()["own-gateway"]["environment"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GATEWAY_API_KEYS_FILE")
    settings = Settings()  # type: ignore[call-arg]  # all from the environment
    assert {name.removeprefix("GATEWAY_").lower() for name in environment} - {
        "api_keys_file"
    } <= settings.model_fields_set
    assert [key.get_secret_value() for key in settings.api_keys] == [FILLED["API_KEYS"]]
    assert settings.served_name == "mine"


def test_further_flags_reach_the_engine_and_no_empty_one_does() -> None:
    assert "" not in flags(services()["own-engine-gpu"])
    assert (
        flags(services(ENGINE_FLAGS="--max-model-len=8192 --swap-space=1")["own-engine-gpu"])["--max-model-len"]
        == "8192"
    )


def test_prometheus_finds_this_gateway_under_the_demos_name() -> None:
    assert services()["own-gateway"]["networks"]["watch"]["aliases"] == ["gateway"]


def test_a_misspelt_path_is_an_error() -> None:
    for name in ("own-reference", "own-gateway", "own-engine-cpu", "own-engine-gpu"):
        binds = [one for one in SERVICES[name]["volumes"] if isinstance(one, dict)]
        assert binds
        assert all(one["bind"] == {"create_host_path": False} for one in binds)


def test_without_an_env_file_it_is_the_demos_model() -> None:
    for source in sources(SERVICES["own-reference"]).values():
        assert (ROOT / source / "model.safetensors").is_file()


def test_the_reference_is_built_once_where_the_gateway_looks(tmp_path: Path) -> None:
    """The file's own script, run here."""
    base, aligned = make_pair(tmp_path / "pair")
    volume = tmp_path / "reference"
    volume.mkdir()
    found = services()
    target = {source: target for target, source in sources(found["own-reference"]).items()}
    (script,) = found["own-reference"]["command"]
    for place, here in (
        (target[FILLED["BASE_PATH"]], base),
        (target[FILLED["MODEL_PATH"]], aligned),
        ("cd /reference", f"cd {volume}"),
        ("exec lora-gateway", f"exec {shlex.quote(sys.executable)} -m app"),
    ):
        assert place in script
        script = script.replace(place, str(here))
    command = [*found["own-reference"]["entrypoint"], script]
    first, second = (
        subprocess.run(command, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
        for _ in range(2)
    )
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "nothing was built" in second.stdout
    looked = Path(found["own-gateway"]["environment"]["GATEWAY_REFERENCE"])
    assert "own-reference:/reference:ro" in found["own-gateway"]["volumes"]
    made = open_reference(volume / looked.relative_to("/reference"), None)
    assert made.modules
    made.close()


def test_volumes_that_are_written_have_an_owner_in_the_image() -> None:
    line = next(one for one in (ROOT / "Dockerfile").read_text().splitlines() if "install -d -o 10001" in one)
    written = [one.split(":")[1] for one in SERVICES["own-reference"]["volumes"] if isinstance(one, str)]
    assert set(written) <= set(line.split())
    assert set(written) == {"/reference", "/data", "/data/artefacts"}
