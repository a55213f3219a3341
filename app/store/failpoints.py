"""Places where a crash test may kill the process, as a power cut would: nothing unwinds, no handler runs.

Does nothing unless the environment variable GATEWAY_FAILPOINT names the place. No setting of the gateway leads here.
"""

import os
import signal
from typing import Final

VARIABLE: Final = "GATEWAY_FAILPOINT"


def failpoint(name: str) -> None:
    """Die here by SIGKILL when GATEWAY_FAILPOINT is `name`."""
    if os.environ.get(VARIABLE) == name:
        os.kill(os.getpid(), signal.SIGKILL)
