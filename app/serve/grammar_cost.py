"""Estimate of an engine's cost of compiling a JSON schema to a grammar, in time linear in the schema.

The engine compiles the schemas of all callers in a thread or two, and the cost is out of proportion to their length:
for each place in a text where it may end, or where a character class may match, the engine searches its vocabulary;
repetitions multiply; parsers of regular expressions recurse for each parenthesis. The unit is about a tenth of a
millisecond of xgrammar 0.2.8 with 65,000 tokens, on a busy core.
"""

from collections.abc import Mapping
from typing import Any, Final

from app.serve.pattern_ambiguity import Ambiguity, ambiguity
from app.serve.pattern_syntax import Kind, Piece, pieces

MAX_PATTERN_CHARS: Final = 1024
"""Characters of one regular expression; a strict one for e-mail addresses has some 400."""

MAX_PATTERN_DEPTH: Final = 16
"""Nested parentheses in a regular expression: parsers recurse for each."""

MAX_PATTERN_COST: Final = 10_000
"""Cost of one regular expression: a second."""

MAX_COST: Final = 100_000
"""Cost of all schemas compiled for one request: ten seconds, for which all other requests with a schema wait too."""

MAX_ALTERNATIVES: Final = 1_000
"""Alternatives of a schema after those of its parts, and of its references' targets, are multiplied out."""

MAX_REFERENCES: Final = 256
"""References in one schema: some back ends look up each of them from the root."""

MAX_ENUM: Final = 2_000
"""Values of one enumeration."""

_CLASS_COST: Final = 30
"""Cost of a character class, against 1 for a character: most of the vocabulary is tried."""

_LENGTH_COST: Final = 80
_LENGTHS_KEPT: Final = 256
"""Cost of each length at which a text may end, and how many lengths back ends write out before they count instead."""

_LITERAL_CHARS: Final = 16
"""Characters of an enumeration's values that cost 1."""

_NAMED: Final = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose members have names chosen by the schema's author."""


class TooCostly(ValueError):
    """Error for a schema that would cost the engine too much. path: where in the schema, as `.properties.a.pattern`."""

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        super().__init__(message)


def pattern_cost(pattern: str) -> int:
    """Return the cost of a regular expression. Raises ValueError for one that is too long, too deep or too costly."""
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ValueError(f"a pattern of {len(pattern)} characters, the cap is {MAX_PATTERN_CHARS}")
    groups: list[int] = []  # of each open group: places before it
    places = last = classes = 0  # repetition multiplies places, not classes: each class is looked up once
    for piece in pieces(pattern):
        if piece.kind is Kind.OPEN:
            groups.append(places)
            if len(groups) > MAX_PATTERN_DEPTH:
                raise ValueError(f"a pattern with over {MAX_PATTERN_DEPTH} parentheses within each other")
            places, last = 0, 0
        elif piece.kind is Kind.CLOSE:
            last = places + 1
            places = groups.pop() + last
        elif piece.kind is Kind.QUANTIFIER:
            times = _written_out(piece)
            places, last = places + last * (times - 1), last * times
        else:
            classes += len(piece.text) > 1 or piece.text in (".", "\\")
            places, last = places + 1, 1
    places += sum(groups)
    cost = classes * _CLASS_COST + places + places * places // 2_000
    if cost > MAX_PATTERN_COST:
        raise ValueError(f"a pattern of {places} places, {classes} of them classes: too many to compile")
    return cost


def _written_out(quantifier: Piece) -> int:
    """Return how many times a quantifier writes out the part before it; `?` counts as twice: with it and without."""
    if quantifier.text == "?":
        return 2
    return max(1, quantifier.least) + 1 if quantifier.most is None else max(1, quantifier.most)


def schema_cost(schema: Mapping[str, Any]) -> int:
    """Return the cost of a JSON schema that has passed validators.free.

    Raises TooCostly if a pattern, an enumeration or the references in it exceed their caps. The caller checks the
    total.
    """
    return _Estimate(schema).cost(schema, "")


class _Estimate:
    """Estimate of one schema: each pattern, length and definition counts once, as back ends compile them."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._alternatives_of: dict[str, int] = {}  # by reference; 0 while it is being computed
        self._references = 0
        self._seen: set[object] = set()

    def cost(self, node: Any, path: str) -> int:
        """Return the cost of a subschema, or of a list of subschemas, and everything inside it."""
        if isinstance(node, list):
            return sum(self.cost(item, f"{path}.{number}") for number, item in enumerate(node))
        if not isinstance(node, dict):
            return 1
        self._alternatives(node, path)
        return 1 + self._lengths(node) + sum(self._keyword(key, node[key], f"{path}.{key[:64]}") for key in node)

    def _lengths(self, node: Mapping[str, Any]) -> int:
        lengths = _count(node.get("minLength")), _count(node.get("maxLength"))
        items = max(_count(node.get(bound)) for bound in ("minItems", "maxItems", "minProperties", "maxProperties"))
        return items + (self._is_new(lengths) and _LENGTH_COST * max(lengths))

    def _keyword(self, key: str, value: Any, path: str) -> int:
        if key in ("enum", "const"):
            return _literals(value, path)
        if key == "pattern" and isinstance(value, str):
            return self._pattern(value, path)
        if key == "$ref":
            return self._reference(value, path)
        if key == "patternProperties" and isinstance(value, dict):
            patterns = sum(_LENGTH_COST + self._pattern(name, f"{path}.{name[:64]}") for name in value)
            return patterns + self._members(value, path)
        if key in _NAMED and isinstance(value, dict):
            return self._members(value, path)
        return self.cost(value, path)

    def _members(self, value: Mapping[str, Any], path: str) -> int:
        """Return the cost of an object whose members' names are not keywords.

        For example, `properties` may have a member called `pattern`.
        """
        names = sum(1 + len(name) // 4 for name in value)
        return names + sum(self.cost(item, f"{path}.{name[:64]}") for name, item in value.items())

    def _pattern(self, value: str, path: str) -> int:
        try:
            cost = self._is_new(value) and pattern_cost(value)
        except ValueError as error:
            raise TooCostly(path, str(error)) from error
        if ambiguity(value) is Ambiguity.COUNTED:
            raise TooCostly(path, "a group that holds a repetition, repeated a counted number of times: use * or +")
        return cost

    def _is_new(self, thing: object) -> bool:
        """Return whether `thing` was not seen before, and remember it."""
        new = thing not in self._seen
        self._seen.add(thing)
        return new

    def _alternatives(self, node: Mapping[str, Any], path: str) -> int:
        """Return the alternatives of a node with those of its parts multiplied out, as by back ends that merge schemas."""
        count = self._alternatives_behind(node["$ref"], path) if isinstance(node.get("$ref"), str) else 1
        for key in ("allOf", "anyOf", "oneOf"):
            parts = node.get(key)
            listed = parts if isinstance(parts, list) else []
            each = [self._alternatives(part, path) for part in listed if isinstance(part, dict)]
            for one in each if key == "allOf" else [max(1, sum(each))]:
                count *= one
                if count > MAX_ALTERNATIVES:
                    raise TooCostly(path, f"over {MAX_ALTERNATIVES} alternatives when its parts are multiplied out")
        return count

    def _alternatives_behind(self, reference: str, path: str) -> int:
        """Return the alternatives of a reference's target."""
        if reference not in self._alternatives_of:
            # Each reference may lead to the next, and they are followed by recursion.
            if len(self._alternatives_of) >= MAX_REFERENCES:
                raise TooCostly(path, f"over {MAX_REFERENCES} references")
            self._alternatives_of[reference] = 0
            target = self._target(reference, path)
            self._alternatives_of[reference] = self._alternatives(target, path) if isinstance(target, dict) else 1
        if not self._alternatives_of[reference]:
            raise TooCostly(path, "references that lead back to themselves with nothing between them")
        return self._alternatives_of[reference]

    def _reference(self, reference: Any, path: str) -> int:
        self._references += 1
        if self._references > MAX_REFERENCES:
            raise TooCostly(path, f"over {MAX_REFERENCES} references")
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise TooCostly(path, "a reference to another document: refer to #/$defs/… in the schema itself")
        return 1

    def _target(self, reference: str, path: str) -> Any:
        node: Any = self._root
        for part in reference.removeprefix("#").split("/"):
            if part:
                node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
        if node is None:
            raise TooCostly(path, f"a reference to {reference[:64]!r}, which is not in the schema")
        return node


def _count(value: Any) -> int:
    """Return a length or a number of items, up to the number that is written out."""
    return int(min(value, _LENGTHS_KEPT)) if isinstance(value, int | float) and value > 0 else 0


def _literals(value: Any, path: str) -> int:
    """Return the cost of values that are written out."""
    items = value if isinstance(value, list) else [value]
    if len(items) > MAX_ENUM:
        raise TooCostly(path, f"an enumeration of {len(items)} values, the cap is {MAX_ENUM}")
    return sum(1 + len(item if isinstance(item, str) else repr(item)) // _LITERAL_CHARS for item in items)
