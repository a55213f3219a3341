"""What a value from a stranger must be: small checks that combine. Each raises ValueError saying what it wants."""

from collections.abc import Callable, Mapping
from typing import Any, Final

Check = Callable[[Any], None]
"""Raises ValueError, saying what it wants, unless the value will do."""

MAX_SCHEMA_DEPTH: Final = 32
"""Levels of a JSON schema, or of anything else free in form."""

MAX_SCHEMA_NODES: Final = 10_000
"""Values in it: compiling a schema to a grammar costs the engine time."""


def need(condition: bool, wanted: str) -> None:
    """Raise ValueError saying what was wanted unless `condition`."""
    if not condition:
        raise ValueError(wanted)


def boolean(value: Any) -> None:
    """true or false."""
    need(isinstance(value, bool), "must be true or false")


def integer(low: int, high: int) -> Check:
    """A whole number within bounds."""

    def check(value: Any) -> None:
        ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        need(ok, f"must be an integer from {low} to {high}")

    return check


def number(low: float, high: float) -> Check:
    """A finite number within bounds."""

    def check(value: Any) -> None:
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        need(ok and low <= value <= high, f"must be a number from {low:g} to {high:g}")

    return check


def text(limit: int | None = None) -> Check:
    """A string, of at most `limit` characters."""

    def check(value: Any) -> None:
        need(isinstance(value, str), "must be a string")
        need(limit is None or len(value) <= limit, f"must have at most {limit} characters")

    return check


def one_of(*words: str) -> Check:
    """One of these strings."""

    def check(value: Any) -> None:
        need(isinstance(value, str) and value in words, f"must be one of {', '.join(words)}")

    return check


def list_of(check_item: Check, low: int, high: int) -> Check:
    """A list of `low` to `high` items, each of which passes."""

    def check(value: Any) -> None:
        need(isinstance(value, list) and low <= len(value) <= high, f"must be a list of {low} to {high} items")
        for item in value:
            check_item(item)

    return check


def members(value: Any, allowed: Mapping[str, Check], required: frozenset[str] = frozenset()) -> None:
    """An object with only these members, none of the required ones missing. A null member says nothing."""
    need(isinstance(value, dict), "must be an object")
    for key, item in value.items():
        need(key in allowed or item is None, f"has an unknown member {str(key)[:64]!r}")
        if item is not None:
            _within(key, allowed[key], item)
    for key in required:
        need(value.get(key) is not None, f"lacks {key!r}")


def free(value: Any) -> None:
    """Anything, but neither deep nor endless."""
    level, nodes = [value], 0
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [item for node in level for item in _children(node)]
        nodes += len(level)
        need(nodes <= MAX_SCHEMA_NODES, f"must have at most {MAX_SCHEMA_NODES} values")
        if not level:
            return
    raise ValueError(f"must be at most {MAX_SCHEMA_DEPTH} levels deep")


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _within(key: str, check: Check, value: Any) -> None:
    try:
        check(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def object_of(allowed: Mapping[str, Check], *required: str) -> Check:
    """An object with only these members, none of the required ones missing."""
    return lambda value: members(value, allowed, frozenset(required))
