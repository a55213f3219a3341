"""vLLM plugin that asks Linux for the use of AMX, an x86 matrix unit, in each of the engine's processes.

A process that uses AMX's tiles without having asked ends by SIGILL (Linux, Documentation/arch/x86/xstate.rst). vLLM 0.32's
bfloat16 attention does not ask: it relies on oneDNN, which asks before its first large matrix product. With a small model
there is none, and the first request ends the engine. The permission ends with exec, so the gateway cannot ask for it.
"""

import ctypes
import platform
from typing import Final

PLUGIN: Final = "lora_gateway_amx"
"""Name of `permit` among the plugins that VLLM_PLUGINS selects from (pyproject.toml, vllm.general_plugins)."""

_ARCH_PRCTL: Final = 158
_ARCH_REQ_XCOMP_PERM: Final = 0x1023
_XFEATURE_XTILEDATA: Final = 18


def permit() -> None:
    """Ask for this process and the threads it will have. On a processor without AMX, Linux refuses, and nothing is lost."""
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
