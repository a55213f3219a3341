"""Fuzz one target with libFuzzer under Atheris: `python -m tests.fuzz.one header -max_total_time=60 CORPUS…`."""

import gc
import sys
import time
from collections.abc import Callable
from typing import Final

import atheris

from tests.fuzz.mutate import json_mutator

INPUT_SECONDS: Final = 0.5
"""Processor time one input may take; thousands are done in a second. Not libFuzzer's own limit: that is by the clock, and
a busy machine breaks it."""

WATCHED: Final = ("app", "python_multipart")
"""Where a new branch reached is worth keeping an input for."""

UNWATCHED: Final = ("app.domain.errors",)
"""The table of refusals decides nothing. With it, and with the targets themselves watched, a run was less than half as
fast."""


def timed(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """The target, which fails when an input takes too long."""

    def run(data: bytes) -> None:
        start = time.process_time()
        target(data)
        assert time.process_time() - start < INPUT_SECONDS

    return run


def main() -> None:
    """Never returns: libFuzzer ends the process, with a status other than 0 when an input broke an invariant."""
    name, *flags = sys.argv[1:]
    with atheris.instrument_imports(include=list(WATCHED), exclude=list(UNWATCHED)):
        from tests.fuzz.targets import JSON_AFTER, MAX_BYTES, TARGETS

        TARGETS[name](b"")  # what a target imports only when it runs is watched too
    gc.collect()
    gc.freeze()  # else one input in millions is charged with a collection of everything that was imported
    argv = [sys.argv[0], f"-max_len={MAX_BYTES[name]}", *flags]
    if name in JSON_AFTER:
        atheris.Setup(argv, timed(TARGETS[name]), custom_mutator=json_mutator(JSON_AFTER[name]))
    else:
        atheris.Setup(argv, timed(TARGETS[name]))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
