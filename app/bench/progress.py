"""Progress callback of a benchmark: called with the current step and the share of the run that is done (0 … 1)."""

from collections.abc import Callable

ReportProgress = Callable[[str, float], None]
