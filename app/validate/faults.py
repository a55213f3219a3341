"""Collector of an upload's faults, so that one refusal names all of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from app.domain.errors import Code, Fault, Refused

MAX_FAULTS: Final = 16
"""Most faults that one refusal lists: an upload of thousands of tensors may have as many."""


MESSAGE_CHARS: Final = 280
"""Most characters of the first fault in the message for all, so that there is room for the number of the others."""


@dataclass(slots=True)
class _Seen:
    first: Refused
    count: int = 1


class Faults:
    """Faults in the order in which they were found. The first one's code and message are the refusal's."""

    def __init__(self) -> None:
        self._seen: dict[object, _Seen] = {}
        self._unlisted = 0

    def __bool__(self) -> bool:
        """Return whether there is any fault."""
        return bool(self._seen)

    def add(self, error: Refused, kind: object = None) -> None:
        """Add a fault, or those that another refusal lists. kind: faults of equal kind are counted, not repeated."""
        key = object() if kind is None else (error.code.name, kind)
        if not self._counted(key):
            self._seen[key] = _Seen(error.with_traceback(None))

    def again(self, code: Code, kind: object) -> bool:
        """Count one more fault if it need not be described: there is one of its kind, or the list is full."""
        return self._counted((code.name, kind))

    def _counted(self, key: object) -> bool:
        seen = self._seen.get(key)
        if seen is not None:
            seen.count += 1
        elif len(self._seen) < MAX_FAULTS:
            return False
        else:
            self._unlisted += 1
        return True

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
        if len(self._seen) == 1 and first.details:
            raise first
        message, more = listed[0].message, len(listed) - 1 + self._unlisted
        if more:
            others = ", ".join(dict.fromkeys(fault.where for fault in listed[1:4]))
            message = f"{message[:MESSAGE_CHARS]}; and {more} more: {others}{', …' if more > 3 else ''}"
        raise Refused(first.code, message, param=first.param, remedy=first.remedy, details=tuple(listed[:MAX_FAULTS]))


def _listed(seen: _Seen) -> tuple[Fault, ...]:
    if seen.first.details:
        return seen.first.details
    first = seen.first
    fault = Fault(first.code.name, first.param or "", first.message, first.hint)
    if seen.count == 1:
        return (fault,)
    return (Fault(fault.code, fault.where, f"{fault.message}; {seen.count - 1} more like it", fault.what_to_do),)
