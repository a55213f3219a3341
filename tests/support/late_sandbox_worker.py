"""A screening process whose children limit themselves only once it is gone, as if stopped at that moment."""

import os
import time

from app.sandbox import worker as sandbox_worker
from tests.support import bad_sandbox_worker

SHUT_AWAY = sandbox_worker.shut_away


def shut_away(worker: int, memory_bytes: int, seconds: float) -> None:
    while os.getppid() == worker:
        time.sleep(0.005)
    SHUT_AWAY(worker, memory_bytes, seconds)


sandbox_worker.shut_away = shut_away

if __name__ == "__main__":
    assert sandbox_worker.work is bad_sandbox_worker.work
    sandbox_worker.main()
