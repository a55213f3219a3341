"""Composable checks of the values in an untrusted request.

Each check returns the value for the engine, built anew, or raises ValueError with a description of the accepted values.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from app.serve.fields.ignored import ignore

Check = Callable[[Any], Any]
"""Returns the value to pass on, DROPPED for none. Raises ValueError, describing the accepted values, for any other
value."""

DROPPED: Final = object()
"""Marker for a value that was checked and is not passed on to the engine."""

MAX_SCHEMA_DEPTH: Final = 32
"""Levels of a JSON schema, or of any other value that is free in form."""

MAX_SCHEMA_NODES: Final = 10_000
"""Values inside it: compiling a schema to a grammar costs the engine time."""


def need(condition: bool, wanted: str) -> None:
    """Raise ValueError with the message `wanted` unless `condition` holds."""
    if not condition:
        raise ValueError(wanted)


def boolean(value: Any) -> Any:
    """Check for true or false."""
    need(isinstance(value, bool), "must be true or false")
    return value


def integer(low: int, high: int) -> Check:
    """Return a check for a whole number within bounds. 100.0 is one, as some clients write it; it goes on as 100."""

    def check(value: Any) -> Any:
        if type(value) is int and low <= value <= high:  # a prompt has a hundred thousand of them
            return value
        if isinstance(value, float) and value.is_integer() and low <= value <= high:
            return int(value)
        raise ValueError(f"must be an integer from {low} to {high}")

    return check


def limit(low: int, high: int) -> Check:
    """Return a check for a number of tokens, of which -1 means that none is set."""
    within = integer(low, high)

    def check(value: Any) -> Any:
        try:
            return DROPPED if value == -1 and not isinstance(value, bool) else within(value)
        except ValueError as error:
            raise ValueError(f"{error}, or -1 for no limit") from error

    return check


def number(low: float, high: float) -> Check:
    """Return a check for a finite number within bounds."""

    def check(value: Any) -> Any:
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        need(ok and low <= value <= high, f"must be a number from {low:g} to {high:g}")
        return value

    return check


def text(limit: int | None = None) -> Check:
    """Return a check for a string of at most `limit` characters."""

    def check(value: Any) -> Any:
        need(isinstance(value, str), "must be a string")
        need(limit is None or len(value) <= limit, f"must have at most {limit} characters")
        return value

    return check


def one_of(*words: str) -> Check:
    """Return a check for one of these strings."""

    def check(value: Any) -> Any:
        need(isinstance(value, str) and value in words, f"must be one of {', '.join(words)}")
        return value

    return check


def list_of(check_item: Check, low: int, high: int) -> Check:
    """Return a check for a list of `low` to `high` items, each of which passes `check_item`."""

    def check(value: Any) -> Any:
        need(isinstance(value, list) and low <= len(value) <= high, f"must be a list of {low} to {high} items")
        return [check_item(item) for item in value]

    return check


def dropped(check: Check) -> Check:
    """Return the check of a value that is not passed on, because the engine's answer does not depend on it."""

    def check_and_drop(value: Any) -> Any:
        check(value)
        return DROPPED

    return check_and_drop


def members(
    place: str, value: Any, allowed: Mapping[str, Check], required: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Check an object and return its known members: others are left out and noted, a null member counts as absent.

    place: where in the body such objects stand, for the note: `messages[].content[]`.
    """
    if not isinstance(value, dict):
        raise ValueError(f"must be an object with {', '.join(allowed)}")  # noqa: TRY004 - one type for every refusal
    found = {}
    for key, item in value.items():
        if item is None:
            continue
        if (check := allowed.get(key)) is None:
            ignore(place, key)
        elif (passed := _within(key, check, item)) is not DROPPED:
            found[key] = passed
    for key in required:
        need(value.get(key) is not None, f"lacks {key!r}; takes {', '.join(allowed)}")
    return found


def free(value: Any) -> Any:
    """Check a value of any form, limited in depth and number of values."""
    level, nodes = [value], 0
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [item for node in level for item in _children(node)]
        nodes += len(level)
        need(nodes <= MAX_SCHEMA_NODES, f"must have at most {MAX_SCHEMA_NODES} values")
        if not level:
            return value
    raise ValueError(f"must be at most {MAX_SCHEMA_DEPTH} levels deep")


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _within(key: str, check: Check, value: Any) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def of_type(checks: Mapping[str, Check], wanted: str) -> Check:
    """Return a check for an object that is checked by what its `type` says. wanted: the message about any other type."""

    def check(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in checks:
            raise ValueError(wanted)
        return checks[kind](value)

    return check


def object_of(place: str, allowed: Mapping[str, Check], *required: str) -> Check:
    """Return a check for an object, as `members` has it."""
    needed = frozenset(required)
    return lambda value: members(place, value, allowed, needed)
