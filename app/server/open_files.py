"""As many open files as the system lets this process have."""

import logging
import resource
from contextlib import suppress
from typing import Final

from app.observe.log import event

FEW_FILES: Final = 4096
"""Open files below which a gateway is told of at its start: 1,024 connections to the engine, as many of clients, and two
for each of the hundreds of modules of a large reference."""


def raise_open_files() -> int:
    """Raise the soft limit, 1,024 on most systems, to the hard one; what is in force then.

    Where the system does not let it be raised, it stays what it was.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def half_of_open_files(most: int) -> int:
    """Half of the open files that are allowed now, at most `most`: each client's connection may need one to the engine."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if soft < 0 else min(most, soft // 2)


def tell_open_files() -> None:
    """Raise it, and say so in the log when it stays low."""
    files = raise_open_files()
    if 0 <= files < FEW_FILES:  # -1 is no limit
        why = "a large reference, or some hundred clients at once, need more: raise the hard limit (ulimit -Hn)"
        event("few_open_files", logging.WARNING, limit=files, wanted=FEW_FILES, why=why)
