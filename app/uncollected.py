"""What lives as long as its process is none of the cyclic collector's business."""

import gc


def leave_uncollected() -> None:
    """Collect now, and never look at what is left again; for the end of a process's start.

    The libraries leave a quarter of a million objects. Python's collector goes through all of them now and then, 130 ms in
    which a gateway moves no answer: they were its slowest ones. In a process that forks, each child would do it too, and
    copy every page it touches.
    """
    gc.collect()
    gc.freeze()
