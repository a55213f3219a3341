"""What docker-compose.yml promises, read from the file itself: who reaches what, who may write where, who runs as whom."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.demo.serving import serve_settings
from app.domain.api_keys import MIN_KEY_CHARS, Role, digest_of_key, parse_keys
from app.load.embedded.command import ENTRY, FIXED, UNCOMPILED
from app.server.app import SHUTDOWN_S
from app.server.settings import Settings

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def interpolated(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file with its variables replaced as compose does: an empty one counts as not set."""
    text = VARIABLE.sub(lambda found: variables.get(found[1]) or found[2], FILE.read_text())
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


COMPOSE = interpolated({})
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
GATEWAYS = ("gateway", "own-gateway")
ENGINES = ("engine-cpu", "engine-gpu", "own-engine-cpu", "own-engine-gpu")
OWN = "own-"
"""Prefix of the services and volumes of one's own model."""

STORE = "/data/artefacts"
ONE_SHOT = {"keys", "demo", "own-reference"}

every_service = pytest.mark.parametrize("name", SERVICES)
every_engine = pytest.mark.parametrize("name", ENGINES)
every_gateway = pytest.mark.parametrize("name", GATEWAYS)


def mounts(name: str) -> dict[str, tuple[str, str]]:
    """Where → (what, rw or ro)."""
    found = {}
    for volume in SERVICES[name].get("volumes", []):
        if isinstance(volume, dict):
            found[volume["target"]] = (volume["source"], "ro" if volume["read_only"] else "rw")
        else:
            what, where, mode = (volume + ":rw").split(":")[:3]
            found[where] = (what, mode)
    return found


def own(name: str) -> str:
    """Prefix of what a service shares with those beside it."""
    return OWN if name.startswith(OWN) else ""


def flags(name: str) -> dict[str, str]:
    """The engine's command as --flag → value."""
    command = SERVICES[name]["command"]
    pairs = [flag.partition("=") for flag in (shlex.split(command) if isinstance(command, str) else command)]
    return {flag: value for flag, _, value in pairs}


@every_service
def test_nobody_is_root_or_can_become_it(name: str) -> None:
    service = SERVICES[name]
    assert int(service["user"].split(":")[0]) > 0
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.get("privileged")
    assert not service.get("cap_add")
    assert service.get("pid") != "host"
    assert service.get("ipc") != "host"
    assert service.get("network_mode") in (None, "none")


@every_service
def test_root_file_systems_are_read_only(name: str) -> None:
    assert SERVICES[name]["read_only"] is True


@every_service
def test_no_mount_hands_the_machine_over(name: str) -> None:
    for what, mode in mounts(name).values():
        assert "docker.sock" not in what
        if what.startswith((".", "/")):
            assert mode == "ro", f"{what} of the machine can be written"
            assert what.startswith("./"), f"{what} is outside the repository"
        else:
            assert what in COMPOSE["volumes"]


@every_service
def test_images_are_pinned(name: str) -> None:
    _, _, tag = SERVICES[name]["image"].rpartition(":")
    assert tag[:1].isdigit() or tag[:1] == "v"
    assert "." in tag


@every_service
@pytest.mark.ruling("O05")
def test_ports_are_published_on_loopback_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:"), port


@every_engine
@pytest.mark.ruling("O05")
def test_the_engine_is_reached_by_the_gateway_alone(name: str) -> None:
    engine = SERVICES[name]
    assert list(engine["networks"]) == ["engine"]
    assert COMPOSE["networks"]["engine"]["internal"] is True, "it has a way out"
    assert "ports" not in engine
    others = {other for other, service in SERVICES.items() if "engine" in service.get("networks", [])}
    assert others == {*GATEWAYS, *ENGINES}


@every_engine
def test_the_engine_reads_artefacts_and_writes_nothing(name: str) -> None:
    found = mounts(name)
    assert found[STORE] == (f"{own(name)}artefacts", "ro")
    assert {where for where, (_, mode) in found.items() if mode != "ro"} == set()
    assert f"{own(name)}data" not in {what for what, _ in found.values()}, "the quarantine would be visible"


@every_gateway
def test_engine_and_gateway_see_artefacts_at_one_path(name: str) -> None:
    assert mounts(name)[STORE] == (f"{own(name)}artefacts", "rw")
    assert mounts(name)["/data"] == (f"{own(name)}data", "rw")
    assert "ENV GATEWAY_DATA=/data" in (ROOT / "Dockerfile").read_text()


@every_engine
def test_the_engine_is_started_as_the_gateway_starts_its_own(name: str) -> None:
    engine = SERVICES[name]
    assert engine["entrypoint"] == ["python3", "-m", ENTRY]
    wanted = {name: value for name, value in FIXED.items() if name != "PYTHONUNBUFFERED"}
    assert wanted.items() <= engine["environment"].items()
    assert "VLLM_SERVER_DEV_MODE" not in engine["environment"]


@pytest.mark.parametrize("name", ["engine-cpu", "own-engine-cpu"])
def test_the_cpu_engine_goes_without_the_compiler_its_image_lacks(name: str) -> None:
    assert UNCOMPILED.items() <= SERVICES[name]["environment"].items()


@every_engine
def test_gateway_and_engine_agree(name: str) -> None:
    gateway, engine = SERVICES[f"{own(name)}gateway"]["environment"], flags(name)
    shared = {
        "--model": "MODEL",
        "--served-model-name": "SERVED_MODEL_NAME",
        "--dtype": "DTYPE",
        "--max-model-len": "MAX_MODEL_LEN",
        "--max-lora-rank": "MAX_LORA_RANK",
        "--max-loras": "MAX_LORAS",
        "--max-cpu-loras": "MAX_CPU_LORAS",
    }
    given = {flag: gateway.get(f"GATEWAY_{key}") for flag, key in shared.items()}
    assert {flag: engine.get(flag) for flag in shared} == given
    assert "--enable-lora" in engine


def test_the_demo_is_served_by_its_own_settings() -> None:
    gateway = SERVICES["gateway"]["environment"]
    places = {"model": "/opt/gateway/demo/aligned", "reference": "/opt/gateway/demo/reference"}
    wanted = {key: str(value) for key, value in serve_settings().items() if key != "open"} | places
    given = {key.removeprefix("GATEWAY_").lower(): value for key, value in gateway.items()}
    of_containers = {"engine_url", "api_keys_file", "base_through_noop"}
    assert {key: value for key, value in given.items() if key not in of_containers} == wanted


def test_no_key_stands_in_the_file_and_the_door_is_closed() -> None:
    for name, service in SERVICES.items():
        for key, value in (service.get("environment") or {}).items():
            assert key != "GATEWAY_OPEN", name
            if any(word in key for word in ("KEY", "PASSWORD", "SECRET", "TOKEN")):
                assert not value or value.startswith("/run/"), f"{name}: {key} is written out"


def test_each_sees_only_the_key_it_needs() -> None:
    seen = {
        volume: {name for name in SERVICES for what, _ in mounts(name).values() if what == volume}
        for volume in ("gateway-keys", "operator-key", "metrics-key", "grafana-key")
    }
    assert seen == {
        "gateway-keys": {"keys", *GATEWAYS},
        "operator-key": {"keys", "demo"},
        "metrics-key": {"keys", "prometheus"},
        "grafana-key": {"keys", "grafana"},
    }
    assert mounts("prometheus")["/run/secrets"] == ("metrics-key", "ro")
    assert SERVICES["gateway"]["environment"]["GATEWAY_API_KEYS_FILE"] == "/run/keys/gateway/keys"


def test_keys_are_made_once_with_their_roles(tmp_path: Path) -> None:
    """The file's own script, run here."""
    for folder in ("gateway", "operator", "metrics", "grafana"):
        (tmp_path / folder).mkdir()
    command = tmp_path / "bin" / "lora-gateway"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m app "$@"\n')
    command.chmod(0o755)
    (script,) = SERVICES["keys"]["command"]
    line = [*SERVICES["keys"]["entrypoint"], script.replace("$$", "$").replace("/run/keys", str(tmp_path))]
    env = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"}
    subprocess.run(line, env=env, cwd=ROOT, check=True)
    stored = (tmp_path / "gateway" / "keys").read_text()
    held = {name: (tmp_path / name).read_text().strip() for name in ("operator/key", "metrics/metrics_key")}
    assert {key.digest: key.roles for key in parse_keys(stored)} == {
        digest_of_key(held["operator/key"]): {Role.ADMIN},
        digest_of_key(held["metrics/metrics_key"]): {Role.METRICS},
    }
    assert len((tmp_path / "grafana" / "key").read_text()) > MIN_KEY_CHARS
    assert not any(key in stored for key in held.values()), "the gateway needs no key, only its hash"
    subprocess.run(line, env=env, cwd=ROOT, check=True)
    assert (tmp_path / "gateway" / "keys").read_text() == stored


@pytest.mark.parametrize("profile", ["cpu", "gpu", "own-cpu", "own-gpu"])
def test_a_profile_is_whole(profile: str) -> None:
    chosen = {name: service for name, service in SERVICES.items() if profile in service["profiles"]}
    processor = profile.removeprefix(OWN)
    assert {f"{own(profile)}gateway", "prometheus", "grafana", f"{own(profile)}engine-{processor}"} <= chosen.keys()
    assert ("demo" in chosen) == (profile == processor)
    assert sum("engine" in (service.get("networks") or {}) for service in chosen.values()) == 2
    for name, service in chosen.items():
        assert set(service.get("depends_on", {})) <= chosen.keys(), name


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - ONE_SHOT))
def test_what_runs_on_is_watched(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    assert SERVICES[name]["restart"] == "unless-stopped"


@every_gateway
def test_a_gateway_that_ends_has_the_time_that_its_requests_get(name: str) -> None:
    service = SERVICES[name]
    drain = float(service["environment"].get("GATEWAY_DRAIN_SECONDS", Settings.model_fields["drain_seconds"].default))
    assert int(service["stop_grace_period"].removesuffix("s")) > drain + SHUTDOWN_S


def test_the_demo_waits_until_the_gateway_can_serve() -> None:
    assert SERVICES["demo"]["depends_on"]["gateway"]["condition"] == "service_healthy"
    assert all("/ready" in " ".join(SERVICES[name]["healthcheck"]["test"]) for name in GATEWAYS)


@pytest.mark.parametrize("name", ["engine-gpu", "own-engine-gpu"])
def test_the_gpu_is_reserved(name: str) -> None:
    (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_the_file_is_as_the_compose_specification_has_it() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_compose_client_takes_it() -> None:
    for client in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(client[0]) is None or subprocess.run([*client, "version"], capture_output=True).returncode:
            continue
        profiles = [word for profile in ("cpu", "gpu", "own-cpu", "own-gpu") for word in ("--profile", profile)]
        command = [*client, "--file", str(FILE), *profiles, "config"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert yaml.safe_load(done.stdout)["services"].keys() == SERVICES.keys()
        return
    pytest.skip("no compose client here; the schema was checked all the same")


def test_health_checks_in_python_are_python() -> None:
    tests = [service["healthcheck"]["test"] for service in SERVICES.values() if "healthcheck" in service]
    codes = [test[-1] for test in tests if test[-2] == "-c"]
    assert len(codes) == len(GATEWAYS) + len(ENGINES)
    for code in codes:
        compile(code, "healthcheck", "exec")
