"""Progress of a benchmark: a callable given what is done now, and the share of it that is done (0 … 1)."""

from collections.abc import Callable

Tell = Callable[[str, float], None]
