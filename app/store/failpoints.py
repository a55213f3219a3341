"""Failpoints: places where a crash test may kill the process, as a power cut would: nothing unwinds, no handler runs.

Inactive unless the environment variable GATEWAY_FAILPOINT names the place: `store.after_fsync` at once, or
`store.after_fsync:3` at the third passage. No setting of the gateway sets it.
"""

import os
import signal
from typing import Final

VARIABLE: Final = "GATEWAY_FAILPOINT"


def failpoint(name: str) -> None:
    """Kill this process by SIGKILL if GATEWAY_FAILPOINT names this place and this passage."""
    place, _, passages = os.environ.get(VARIABLE, "").partition(":")
    if place != name:
        return
    left = int(passages or 1) - 1
    if left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
    os.environ[VARIABLE] = f"{name}:{left}"
