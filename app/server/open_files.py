"""Limit of open files, raised as far as the system allows."""

import logging
import resource
from contextlib import suppress
from typing import Final

from app.observe.log import event

FEW_FILES: Final = 4096
"""Limit of open files below which a warning is logged at start. A gateway needs 1,024 for connections to the engine, as
many for clients, and two for each of the hundreds of modules of a large reference."""


def raise_open_files() -> int:
    """Raise the soft limit, 1,024 on most systems, to the hard one; return the limit then in force.

    If the system does not allow that, the limit is unchanged.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def half_of_open_files(most: int) -> int:
    """Return half of the open files allowed now, at most `most`: a client's connection may need another to the engine."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if soft < 0 else min(most, soft // 2)


def tell_open_files() -> None:
    """Raise the limit of open files, and log a warning if it stays low."""
    files = raise_open_files()
    if 0 <= files < FEW_FILES:  # -1: no limit
        why = "a large reference, or some hundred clients at once, need more: raise the hard limit (ulimit -Hn)"
        event("few_open_files", logging.WARNING, limit=files, wanted=FEW_FILES, why=why)
