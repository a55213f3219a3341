"""Collector of an upload's faults, so that one refusal names all of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from app.domain.errors import Code, Fault, Refused

MAX_FAULTS: Final = 16
"""Most faults that one refusal lists: an upload of thousands of tensors may have as many."""


@dataclass(slots=True)
class _Seen:
    first: Refused
    count: int = 1


class Faults:
    """Faults in the order in which they were found. The first one's code and message are the refusal's."""

    def __init__(self) -> None:
        self._seen: dict[object, _Seen] = {}

    def __bool__(self) -> bool:
        """Return whether there is any fault."""
        return bool(self._seen)

    def add(self, error: Refused, kind: object = None) -> None:
        """Add a fault, or those that another refusal lists. kind: faults of equal kind are counted, not repeated."""
        if kind is None:
            self._seen[object()] = _Seen(error)
        elif not self.again(error.code, kind):
            self._seen[error.code.name, kind] = _Seen(error)

    def again(self, code: Code, kind: object) -> bool:
        """Count one more fault of a kind that was added before; return False if there was none."""
        seen = self._seen.get((code.name, kind))
        if seen is not None:
            seen.count += 1
        return seen is not None

    @contextmanager
    def collected(self, kind: object = None) -> Iterator[None]:
        """Add the refusal that ends the block, if one does."""
        try:
            yield
        except Refused as error:
            self.add(error, kind)

    def raise_any(self) -> None:
        """Raise one Refused for all faults, if there are any."""
        if not self._seen:
            return
        listed = [fault for seen in self._seen.values() for fault in _listed(seen)]
        first = next(iter(self._seen.values())).first
        message = listed[0].message
        if len(listed) > 1:
            others = ", ".join(dict.fromkeys(fault.where for fault in listed[1:4]))
            message = f"{message}; and {len(listed) - 1} more: {others}{', …' if len(listed) > 4 else ''}"
        raise Refused(first.code, message, param=first.param, remedy=first.remedy, details=tuple(listed[:MAX_FAULTS]))


def _listed(seen: _Seen) -> tuple[Fault, ...]:
    if seen.first.details:
        return seen.first.details
    fault = Fault.of(seen.first)
    if seen.count == 1:
        return (fault,)
    return (Fault(fault.code, fault.where, f"{fault.message}; {seen.count - 1} more like it", fault.what_to_do),)
