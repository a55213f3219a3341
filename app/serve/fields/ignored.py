"""Names of the fields that are left out of a request because no table has them: for a response header and the log.

The names are a caller's text, so a header gets a few of them, shortened, in characters that mean nothing in a header.
"""

import re
from contextvars import ContextVar
from typing import Final, Self

from app.domain.errors import GatewayError

MAX_NAMES: Final = 16
"""Names in one header; a list that goes on ends with MORE."""

MAX_KEY_CHARS: Final = 48
"""Characters of one name of the caller's, without the path to it."""

MAX_HEADER_CHARS: Final = 1024
"""Characters of the header's value: proxies allow some 8,000 for all headers together."""

MORE: Final = "..."
"""End of a list, or of a name, that was cut."""

_ODD: Final = re.compile(r"[^A-Za-z0-9_.$-]")


class Ignored:
    """Names left out of one request, in the order in which they came, each once.

    Within `with`, and in that thread, it is told by `ignore`. A gateway error that leaves the block gets the names.
    """

    __slots__ = ("_cut", "_names", "_token")

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], None] = {}
        self._cut = False

    def __enter__(self) -> Self:
        self._token = _COLLECTOR.set(self)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        _COLLECTOR.reset(self._token)
        if isinstance(error, GatewayError):
            error.ignored = self.header()

    def add(self, place: str, key: str) -> None:
        """Add the member `key` of the object at `place`, as in `messages[]`; "" is the body."""
        if len(self._names) < MAX_NAMES:
            self._names[place, key] = None
        elif (place, key) not in self._names:
            self._cut = True

    def header(self) -> str:
        """Return the names as `messages[].cache_control, seeds`: printable ASCII, at most MAX_HEADER_CHARS; "" for none."""
        if not self._names:
            return ""
        shown = list(dict.fromkeys(_path(place, key) for place, key in self._names))
        cut = self._cut
        while len(text := ", ".join([*shown, MORE] if cut else shown)) > MAX_HEADER_CHARS:
            shown.pop()
            cut = True
        return text


def _path(place: str, key: str) -> str:
    name = _ODD.sub("?", key[:MAX_KEY_CHARS]) + (MORE if len(key) > MAX_KEY_CHARS else "")
    return f"{place}.{name or '?'}" if place else name or "?"


_COLLECTOR: ContextVar[Ignored | None] = ContextVar("ignored", default=None)


def ignore(place: str, key: str) -> None:
    """Note that the member `key` of the object at `place` is left out."""
    if (ignored := _COLLECTOR.get()) is not None:
        ignored.add(place, key)
