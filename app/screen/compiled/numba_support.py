"""Compilation with numba: one thread, without the interpreter's lock, cached on disk if possible.

The one compiled kernel has a plain counterpart in core_svd.py that gives the same bits; it serves where numba is not
installed.
"""

import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

PLAIN: Final = "SCREEN_PLAIN"
"""Environment variable: if set, the compiled kernel is not used."""


def compiled(function: F) -> F:
    """Compile on first use; cache the result beside the module or in the user's cache, if one of them is writable.

    Floating-point sums stay in their written order (no fastmath), so results do not depend on the width of registers.
    Division by zero gives infinity, as in numpy: a check would prevent the vectorisation of loops.
    """
    import numba  # type: ignore[import-untyped]

    try:
        done: F = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # numba's "no locator available": no writable directory
        done = numba.njit(nogil=True, error_model="numpy")(function)
    return done


@functools.cache
def rotations_kernel() -> ModuleType | None:
    """Return the module of the compiled rotations, or None if numba is not installed or SCREEN_PLAIN is set."""
    if os.environ.get(PLAIN):
        return None
    try:
        import numba  # noqa: F401 - a numba that does not fit this machine counts as none
    except ImportError:
        return None
    return importlib.import_module("app.screen.compiled.rotations")
