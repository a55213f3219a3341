"""concurrency: bounded, named thread pools, one for each kind of blocking work, so that no kind waits for another's."""
