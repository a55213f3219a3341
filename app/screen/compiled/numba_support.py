"""Compilation of kernels: numba, one thread, without the interpreter's lock, kept on disk if that is possible.

Every compiled kernel has a plain form beside it that gives the same numbers to rounding; that one serves where numba is not
installed.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

PLAIN: Final = "SCREEN_PLAIN"
"""Environment variable: when set, the compiled kernels are left alone."""


def compiled(function: F) -> F:
    """Compile on first use; keep the result beside the module or in the user's cache, or nowhere if neither can be written.

    Floating-point sums stay in their written order (no fastmath), so results do not depend on the width of registers.
    Division by zero gives infinity, as in numpy: a check would keep loops from being vectorised.
    """
    import numba  # type: ignore[import-untyped]

    try:
        done: F = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # numba's "no locator available": nowhere to write
        done = numba.njit(nogil=True, error_model="numpy")(function)
    return done


@functools.cache
def kernel(name: str) -> ModuleType | None:
    """Module `name` of compiled kernels, or None on a machine without numba."""
    if os.environ.get(PLAIN) or importlib.util.find_spec("numba") is None:
        return None
    return importlib.import_module(f"app.screen.compiled.{name}")
