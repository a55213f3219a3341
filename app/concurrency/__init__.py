"""Threads for work that blocks: bounded pools with names, so that no kind of work waits for another kind's threads."""
