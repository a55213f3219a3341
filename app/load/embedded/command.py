"""vLLM's command line, and the only environment it gets."""

import contextlib
import ctypes
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from app.load.embedded.amx import PLUGIN

ENTRY: Final = "vllm.entrypoints.launchers.api_server.entry"

GRACE_S: Final = 10.0
"""Seconds between SIGTERM and SIGKILL; vLLM's CPU build takes up to 6."""

PASSED_ON: Final = frozenset({
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER", "LOGNAME", "VIRTUAL_ENV"),
    *("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES"),
})  # fmt: skip
"""Variables that the engine inherits from the gateway, if they are set. No keys, no catalogue URL, no proxy."""

FIXED: Final[Mapping[str, str]] = {
    "HF_HUB_OFFLINE": "1",  # a wrong path must not become a download
    "VLLM_PLUGINS": PLUGIN,  # no other: a resolver would build paths from model names
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "PYTHONUNBUFFERED": "1",
}
"""Variables that the engine always gets. VLLM_SERVER_DEV_MODE is never among them."""

UNCOMPILED: Final[Mapping[str, str]] = {"TORCH_COMPILE_DISABLE": "1"}
"""Variables that the CPU build gets in addition.

With LoRA on, it compiles no model. It compiles only one comparison, for the first request with log-probabilities,
such as our probe. Without a C++ compiler (a fresh machine, a small image) that ends the engine, --enforce-eager or
not; with one it costs 7 s on two idle cores, 29 s on busy ones, and gains nothing."""


MEMORY_SHARE: Final = 0.8
"""Default share of the machine's or the container's memory for the engine. The rest is for the gateway, the
screening sandbox and the page cache."""

CGROUP_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with a container's memory limit, under cgroup v2 and v1."""


STEP_TOKENS_A_CORE: Final = 16
MIN_STEP_TOKENS: Final = 32
"""Tokens that a CPU engine computes in one step: a number per core, and a minimum.

A prompt is read in steps, each of which also computes the next token of every other request. With vLLM's 2,048 all
others waited for a second on two cores; with 32 they waited twice as long as for their own token alone."""

MAX_SEQUENCES: Final = 256
"""Sequences in one step, at most; further ones wait in the engine. vLLM's own default on most hardware."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Model that vLLM serves, and its limits. The fields are named after vLLM's flags.

    model: directory or hub id of the served (aligned) checkpoint.
    max_loras: adapters in one batch.
    max_lora_rank: one of 1, 8, 16, 32, 64, 128, 256, 320, 512.
    max_cpu_loras: adapters kept in host memory.
    max_model_len: tokens.
    kv_cache_gib: GiB, CPU build only.
    threads: threads of the CPU build, scheduled freely; None leaves it to vLLM, which binds itself to all cores but
        one.
    tool_call_parser: vLLM's name of the format in which the model writes tool calls; None if it makes none.
    memory_bytes: bytes that its processes may hold together; None: default_memory().
    step_tokens: tokens computed in one step; None: default_step_tokens(). tower_lora: serve LoRA on towers and projectors.
    extra: further flags.
    """

    model: Path | str
    served_name: str
    dtype: str = "bfloat16"
    max_loras: int = 4
    max_lora_rank: int = 64
    max_cpu_loras: int = 64
    max_model_len: int | None = None
    kv_cache_gib: int = 1
    threads: int | None = None
    tool_call_parser: str | None = None
    memory_bytes: int | None = None
    step_tokens: int | None = None
    tower_lora: bool = False
    extra: tuple[str, ...] = ()


def arguments(spec: EngineSpec, socket: Path) -> list[str]:
    """Return the command that serves `spec` on `socket`."""
    flags: dict[str, object] = {
        "--model": spec.model,
        "--served-model-name": spec.served_name,
        "--dtype": spec.dtype,
        "--max-loras": spec.max_loras,
        "--max-lora-rank": spec.max_lora_rank,
        "--max-cpu-loras": spec.max_cpu_loras,
        "--uds": socket,
        "--uvicorn-log-level": "warning",
    }
    if (step_tokens := spec.step_tokens or default_step_tokens()) is not None:
        flags["--max-num-batched-tokens"] = step_tokens
        flags["--max-num-seqs"] = min(step_tokens, MAX_SEQUENCES)
    if spec.max_model_len is not None:
        flags["--max-model-len"] = spec.max_model_len
    if spec.tool_call_parser is not None:
        flags["--tool-call-parser"] = spec.tool_call_parser
    switches = ["--enable-auto-tool-choice"] if spec.tool_call_parser is not None else []
    switches += ["--enable-tower-connector-lora"] if spec.tower_lora else []
    pairs = [text for flag, value in flags.items() for text in (flag, str(value))]
    return [
        sys.executable,
        "-m",
        ENTRY,
        "--enable-lora",
        "--disable-uvicorn-access-log",
        *switches,
        *pairs,
        *spec.extra,
    ]


def environment(spec: EngineSpec, ours: Mapping[str, str]) -> dict[str, str]:
    """Return the engine's whole environment: the variables inherited from `ours`, and the fixed ones."""
    env = {name: ours[name] for name in PASSED_ON if name in ours}
    env |= {**FIXED, "VLLM_CPU_KVCACHE_SPACE": str(spec.kv_cache_gib)}
    if cpu_build():
        env |= UNCOMPILED
    if spec.threads is not None:
        env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(spec.threads)}
    return env


def default_memory() -> int:
    """Return the bytes of memory that an engine's processes may hold on this machine by default."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or its content is "max"
            most = min(most, int(limit.read_text(encoding="ascii")))
    return int(most * MEMORY_SHARE)


def cores() -> int:
    """Return the number of processors that this process may use; the engine it starts may use the same."""
    return len(os.sched_getaffinity(0))


def default_step_tokens() -> int | None:
    """Return the tokens that an engine computes in one step on this machine; None leaves it to vLLM."""
    return max(MIN_STEP_TOKENS, STEP_TOKENS_A_CORE * cores()) if cpu_build() else None


def cpu_build() -> bool:
    """Return whether the installed vLLM is the CPU build."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def missing_library() -> str | None:
    """Return a message, with a remedy, about what vLLM lacks to start here; None if nothing is known to be missing."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed: install the gateway with its extra `cpu` or `cuda`, or set the URL of an engine"
    if cpu_build():
        try:
            ctypes.CDLL("libnuma.so.1")
        except OSError:
            return "vLLM's CPU build needs libnuma.so.1, which is not installed (Debian, Ubuntu: apt install libnuma1)"
    return None
