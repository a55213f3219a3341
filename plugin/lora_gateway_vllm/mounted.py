"""The gateway's store where this machine has it mounted: copied all the same, because a mount may change under vLLM."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from lora_gateway_vllm.artefact import CHUNK
from lora_gateway_vllm.errors import Away, Damaged


def copied(source: Path, target: Path, size: int) -> str:
    """Copy one file and return the SHA-256 (hex) of what was copied.

    Raises Away when the source cannot be read, Damaged when it has other than `size` bytes, OSError when the target cannot
    be written.
    """
    what = f"{source.name} of artefact {source.parent.name[:12]}"
    hashed, seen = hashlib.sha256(), 0
    try:
        theirs = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Away(f"{what}: the mounted store does not have it: {error.strerror}") from error
    with open(theirs, "rb", buffering=0) as reading, target.open("xb") as writing:
        while chunk := _read(reading.fileno(), what):
            seen += len(chunk)
            if seen > size:
                break
            hashed.update(chunk)
            writing.write(chunk)
    if seen != size:
        raise Damaged(f"{what} does not have the length the gateway said")
    return hashed.hexdigest()


def _read(fd: int, what: str) -> bytes:
    try:
        return os.read(fd, CHUNK)
    except OSError as error:
        raise Away(f"{what}: the mounted store cannot be read: {error.strerror}") from error
