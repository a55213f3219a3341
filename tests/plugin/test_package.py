"""The plugin as vLLM meets it: installed on its own, loaded in every process, and shut doors."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from lora_gateway_vllm.closed import OnlyScreened, is_shut
from lora_gateway_vllm.settings import MIB, Settings

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "plugin"
GOOD = {"LORA_GATEWAY_URL": "http://gateway:8080/", "LORA_GATEWAY_CACHE": "/var/cache/adapters"}


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(PLUGIN), "PATH": "", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_imports_nothing_else() -> None:
    """It happens in every process of every vLLM that has it installed."""
    code = "import sys; before = set(sys.modules); import lora_gateway_vllm as p; p.register()\n"
    loaded = set(python(code + "print(*(set(sys.modules) - before))").split())
    assert not {name.split(".")[0] for name in loaded} & {"vllm", "torch", "aiohttp", "fastapi", "app"}


@pytest.mark.engine
def test_registering_twice_registers_once_and_opens_nothing(tmp_path: Path) -> None:
    code = """
import sys
from vllm.lora.resolver import LoRAResolverRegistry
before = set(sys.modules)
import lora_gateway_vllm as p
p.register(); p.register()
print(*LoRAResolverRegistry.get_supported_resolvers(), sep="|")
print(*{name.split(".")[0] for name in set(sys.modules) - before})
"""
    cache = tmp_path / "cache"
    lines = python(code, LORA_GATEWAY_URL="http://127.0.0.1:9", LORA_GATEWAY_CACHE=str(cache), HOME=str(tmp_path))
    resolvers, loaded = lines.strip().splitlines()[-2:]
    assert resolvers == "LoRA gateway"
    assert not set(loaded.split()) & {"aiohttp", "fastapi", "app", "torch"}
    assert not cache.exists()


def test_no_module_of_it_needs_the_gateway_or_torch() -> None:
    for file in PLUGIN.rglob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert not line.strip().startswith(("from app", "import app", "import torch", "from torch")), (file, line)


def test_it_installs_on_its_own_and_vllm_would_find_it(tmp_path: Path) -> None:
    """Built from what is in the repository, without asking any index."""
    source = Path(shutil.copytree(PLUGIN, tmp_path / "plugin", ignore=shutil.ignore_patterns("__pycache__", "build")))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*command, "--target", tmp_path / "site", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = metadata.distributions(path=[str(tmp_path / "site")])
    entry = [(point.name, point.value) for point in found.entry_points if point.group == "vllm.general_plugins"]
    assert entry == [("lora_gateway", "lora_gateway_vllm:register")]
    assert (tmp_path / "site" / "lora_gateway_vllm" / "py.typed").exists()


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("lg_secret\n")
    given = {
        **GOOD,
        "LORA_GATEWAY_KEY_FILE": str(tmp_path / "key"),
        "LORA_GATEWAY_CACHE_MIB": "0.5",
        "LORA_GATEWAY_FORGET_S": "2",
    }
    read = Settings.read({**given, "PATH": "/bin"})
    assert read.url == "http://gateway:8080"
    assert (read.key, read.cache_bytes, read.forget_s) == ("lg_secret", MIB // 2, 2.0)
    assert "lg_secret" not in repr(read)


@pytest.mark.parametrize(
    "wrong",
    [
        {"LORA_GATEWAY_URL": "gateway:8080"},
        {"LORA_GATEWAY_CACHE": "relative"},
        {"LORA_GATEWAY_CACHE": ""},
        {"LORA_GATEWAY_CACHE_MIB": "-1"},
        {"LORA_GATEWAY_CACHE_MIB": "nan"},
        {"LORA_GATEWAY_ASK_S": "soon"},
        {"LORA_GATEWAY_KEY_FILE": "/nowhere/key"},
        {"LORA_GATEWAY_CACHE_MB": "1"},
    ],
)
def test_a_wrong_setting_is_named_at_the_start(wrong: Mapping[str, str]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        Settings.read({**GOOD, **wrong})


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/load_lora_adapter", "/v1/unload_lora_adapter/", "//v1/load_lora_adapter", "/v1/./load_lora_adapter"),
        *("/adapters", "/adapters/x", "/x/../adapters/y", "/invocations", "/V1/load_lora_adapter"),
    ],
)
def test_doors_for_adapters_are_shut_however_they_are_written(path: str) -> None:
    assert is_shut(path)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/health", "/", "/adaptersx", "/metrics"])
def test_other_doors_stay_open(path: str) -> None:
    assert not is_shut(path)


async def test_what_is_shut_answers_404_and_never_reaches_vllm() -> None:
    reached, sent = [], []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def send(message: Any) -> None:
        sent.append(message)

    middleware = OnlyScreened(inner)
    await middleware({"type": "http", "path": "/v1/load_lora_adapter"}, None, send)  # type: ignore[arg-type]
    await middleware({"type": "http", "path": "/v1/models"}, None, send)  # type: ignore[arg-type]
    assert reached == ["/v1/models"]
    assert sent[0]["status"] == 404
