"""Fuzz one target with libFuzzer under Atheris: `python -m tests.fuzz.one header -max_total_time=60 CORPUS…`."""

import sys

import atheris

from tests.fuzz.mutate import json_mutator


def main() -> None:
    """Never returns: libFuzzer ends the process, with a status other than 0 when an input broke an invariant."""
    name, *flags = sys.argv[1:]
    with atheris.instrument_imports(include=["app", "python_multipart", "tests.fuzz.targets"]):
        from tests.fuzz.targets import JSON_AFTER, MAX_BYTES, TARGETS
    argv = [sys.argv[0], f"-max_len={MAX_BYTES[name]}", *flags]
    if name in JSON_AFTER:
        atheris.Setup(argv, TARGETS[name], custom_mutator=json_mutator(JSON_AFTER[name]))
    else:
        atheris.Setup(argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
