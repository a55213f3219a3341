"""What lives as long as its process is none of the cyclic collector's business."""

import gc


def leave_uncollected() -> None:
    """Collect now, and never look at what is left again; for the end of a process's start.

    The libraries leave very many objects. Python's collector goes through all of them now and then, and meanwhile a gateway
    moves no answer: those were its slowest ones (`bench gateway`, p99). Where a process forks, each child would do so, and
    copy every page it touches.
    """
    gc.collect()
    gc.freeze()
