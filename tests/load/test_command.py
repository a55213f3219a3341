"""The engine's command line and environment: what it must have, and what must never reach it."""

import ctypes
import importlib.util
import itertools
import platform
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from app.load.embedded import amx, command
from app.load.embedded.command import EngineSpec, arguments, environment, missing_library

TILES = 1 << 18
PERMITTED = """
import ctypes
supported, permitted = ctypes.c_ulong(), ctypes.c_ulong()
ctypes.CDLL(None).syscall(158, 0x1021, ctypes.byref(supported))
ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(permitted))
print(supported.value, permitted.value)
"""
"""Prints what arch_prctl says that this kernel supports of the processor's state, and permits to this process."""

SPEC = EngineSpec(Path("/models/tiny"), "tiny", max_model_len=512, extra=("--enforce-eager",))


def test_the_command_serves_lora_on_a_socket_only() -> None:
    line = arguments(SPEC, Path("/run/engine.sock"))
    assert line[1:3] == ["-m", command.ENTRY]
    assert "--enable-lora" in line
    assert line[line.index("--uds") + 1] == "/run/engine.sock"
    assert line[line.index("--model") + 1] == "/models/tiny"
    assert line[-1] == "--enforce-eager"
    assert not {"--host", "--port", "--lora-modules", "--enable-tower-connector-lora"} & set(line)
    assert "--enable-tower-connector-lora" in arguments(replace(SPEC, tower_lora=True), Path("/run/engine.sock"))


@pytest.mark.ruling("O06")
def test_no_secret_of_the_gateway_reaches_the_engine() -> None:
    ours = {
        "PATH": "/bin",
        "GATEWAY_API_KEYS": "secret",
        "GATEWAY_CATALOGUE_URL": "postgresql://user:secret@host",
        "HF_TOKEN": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_PLUGINS": "lora_filesystem_resolver",
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": "/elsewhere",
    }
    env = environment(SPEC, ours)
    assert "secret" not in " ".join(env.values())
    assert "VLLM_SERVER_DEV_MODE" not in env
    assert "PYTHONPATH" not in env
    assert (env["HF_HUB_OFFLINE"], env["VLLM_PLUGINS"], env["VLLM_NO_USAGE_STATS"]) == ("1", amx.PLUGIN, "1")
    assert env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert env["PATH"] == "/bin"


def test_the_one_plugin_is_ours() -> None:
    (found,) = metadata.entry_points(group="vllm.general_plugins", name=amx.PLUGIN)
    assert found.load() is amx.permit


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is a part of x86 processors")
def test_a_process_may_use_amx_once_it_has_asked() -> None:
    """In processes of their own: a permission lasts as long as its process."""
    asked = "from app.load.embedded.amx import permit; permit(); " + PERMITTED
    supported, permitted = (int(word) for word in subprocess.check_output([sys.executable, "-c", asked]).split())
    if not supported & TILES:
        pytest.skip("this processor has no AMX")
    assert permitted & TILES
    _, before = (int(word) for word in subprocess.check_output([sys.executable, "-c", PERMITTED]).split())
    assert not before & TILES


def test_threads_are_set_only_where_asked() -> None:
    assert "OMP_NUM_THREADS" not in environment(SPEC, {})
    env = environment(EngineSpec("m", "m", threads=2, kv_cache_gib=3), {})
    assert (env["OMP_NUM_THREADS"], env["VLLM_CPU_OMP_THREADS_BIND"], env["VLLM_CPU_KVCACHE_SPACE"]) == (
        *("2", "nobind"),
        "3",
    )


def test_a_missing_library_is_named_before_vllm_stumbles_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(command, "cpu_build", lambda: True)
    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert "libnuma1" in str(missing_library())


def test_a_missing_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "not installed" in str(missing_library())


@pytest.mark.parametrize("here", [True, False])
def test_the_cpu_build_and_no_other_goes_without_a_compiler(monkeypatch: pytest.MonkeyPatch, here: bool) -> None:
    monkeypatch.setattr(command, "cpu_build", lambda: here)
    assert environment(SPEC, {"TORCH_COMPILE_DISABLE": "0"}).get("TORCH_COMPILE_DISABLE") == ("1" if here else None)


@pytest.mark.parametrize(
    ("here", "cores", "asked", "tokens", "sequences"),
    [
        *((True, 1, None, "32", "32"), (True, 64, None, "1024", "256")),
        *((False, 2, 16, "16", "16"), (False, 2, None, None, None)),
    ],
)
def test_one_step_of_a_cpu_engine_is_short(
    monkeypatch: pytest.MonkeyPatch,
    here: bool,
    cores: int,
    asked: int | None,
    tokens: str | None,
    sequences: str | None,
) -> None:
    """A long prompt that is read in one step holds up everybody's next token. vLLM takes no more sequences than tokens."""
    monkeypatch.setattr(command, "cpu_build", lambda: here)
    monkeypatch.setattr(command, "cores", lambda: cores)
    line = arguments(EngineSpec("m", "m", step_tokens=asked), Path("/run/engine.sock"))
    flags = dict(itertools.pairwise(line))
    assert (flags.get("--max-num-batched-tokens"), flags.get("--max-num-seqs")) == (tokens, sequences)
