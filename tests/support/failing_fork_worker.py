"""A screening process on a machine with no process to spare: every second fork fails."""

import errno
import itertools
import os

from app.sandbox import worker
from tests.support import bad_sandbox_worker

FORK = os.fork
COUNT = itertools.count()


def fork() -> int:
    if next(COUNT) % 2:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return FORK()


os.fork = fork

if __name__ == "__main__":
    assert worker.work is bad_sandbox_worker.work
    worker.main()
