"""Progress callback of a benchmark: called with the current step and the share of the run that is done (0 … 1)."""

from collections.abc import Callable

Tell = Callable[[str, float], None]
