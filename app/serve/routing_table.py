"""What each name means right now: an immutable table, swapped as a whole.

Names are resolved once, at the door; a request keeps the target it was given however the table changes meanwhile.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from app.domain.errors import ENGINE_UNAVAILABLE, MODEL_MISSING, MODEL_NOT_FOUND, VERSION_UNLOADED, Refused, Unavailable
from app.domain.names import NAME_LIMIT, parse_model

MODEL_LIMIT: Final = NAME_LIMIT + 11
"""Characters of the longest name that can mean anything: a name, `@`, a version number."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where one request goes, and what its answer is labelled with.

    asked: the name in the request. engine_name: what the engine calls it. adapter, version, digest: which version
    answers; all None for the served model itself. An emptied adapter's version has adapter and version, no digest, and
    the served model's engine name.
    """

    asked: str
    engine_name: str
    adapter: str | None = None
    version: int | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """One servable version. engine_name and digest None: emptied, answered by the served model. created: Unix time, s."""

    adapter: str
    version: int
    engine_name: str | None
    digest: str | None
    active: bool
    created: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole table: name as asked → target, and the versions it was made from.

    unloaded: (adapter, version) of those that are too old to be kept in the engines.
    """

    targets: Mapping[str, Target]
    served: tuple[Served, ...] = ()
    unloaded: AbstractSet[tuple[str, int]] = frozenset()


class Routes:
    """The table in force, and how many requests are in flight on each engine name.

    model: the served model's own name. base: what the engine calls it, where requests to it must go by another name
    (engine.md row 10). loaded: whether the engine answers to an engine name now. created: Unix time (s) shown for the
    served model.
    """

    def __init__(
        self,
        model: str,
        *,
        base: str | None = None,
        loaded: Callable[[str], bool] = lambda _: True,
        created: int = 0,
    ) -> None:
        self.model = model
        self.created = created
        self._base = Target(model, base or model)
        self._loaded = loaded
        self._guarded = base is not None  # the engine's own name needs no loading, a stand-in does
        self._flying: Counter[str] = Counter()
        self._used: dict[str, float] = {}
        self._made: dict[int, tuple[Served, Target, Target]] = {}  # by the identity of Served, which it holds
        self._snapshot = Snapshot({model: self._base})

    @property
    def snapshot(self) -> Snapshot:
        """The table in force."""
        return self._snapshot

    def replace(self, versions: tuple[Served, ...], unloaded: AbstractSet[tuple[str, int]] = frozenset()) -> None:
        """Put a new table in force, at once and for all requests that come after."""
        targets: dict[str, Target] = {}
        before, made = self._made, dict[int, tuple[Served, Target, Target]]()
        for served in versions:
            known = made[id(served)] = before.get(id(served)) or (served, *self._targets(served))
            targets[known[1].asked] = known[1]
            if served.active:
                targets[served.adapter] = known[2]
        targets[self.model] = self._base
        self._made = made
        self._snapshot = Snapshot(targets, versions, unloaded)
        names = {served.engine_name for served in versions} | {self._base.engine_name}
        for name in list(self._used):  # in one step: requests go on meanwhile
            if name not in names and name not in self._flying:
                self._used.pop(name, None)

    def resolve(self, model: object) -> Target:
        """What `model`, as a stranger sent it, means.

        Raises Refused MODEL_MISSING, MODEL_NOT_FOUND or VERSION_UNLOADED; Unavailable ENGINE_UNAVAILABLE when it is known
        but the engine does not hold it now: never another adapter, never the served model in its place.
        """
        target = self._snapshot.targets.get(model) if isinstance(model, str) else None
        if target is None:
            raise _unknown(model, self._snapshot.unloaded)
        if not self.is_loaded(target):
            raise Unavailable(ENGINE_UNAVAILABLE, f"{target.asked} is being loaded into the engine", param="model")
        return target

    def is_loaded(self, target: Target) -> bool:
        """Whether the engine answers for `target` now."""
        name = target.engine_name
        return (name == self.model and not self._guarded) or self._loaded(name)

    def depart(self, engine_name: str) -> None:
        """One more request in flight; `land` must follow."""
        self._flying[engine_name] += 1
        self._used[engine_name] = time.time()

    def land(self, engine_name: str) -> None:
        """One request less."""
        self._flying[engine_name] -= 1
        if self._flying[engine_name] <= 0:
            del self._flying[engine_name]

    def in_flight(self, engine_name: str) -> int:
        """Requests in flight on `engine_name`."""
        return self._flying.get(engine_name, 0)

    def last_used(self, engine_name: str) -> float | None:
        """When the last request for it began (Unix time, s, for people); None when none has since the gateway started."""
        return self._used.get(engine_name)

    def idle(self, engine_name: str) -> bool:
        """Whether nothing is in flight on `engine_name`: safe to unload."""
        return engine_name not in self._flying

    def _targets(self, served: Served) -> tuple[Target, Target]:
        """Under its number, and under the plain name."""
        name = served.engine_name or self._base.engine_name
        labels = (name, served.adapter, served.version, served.digest)
        return Target(f"{served.adapter}@{served.version}", *labels), Target(served.adapter, *labels)


def _unknown(model: object, unloaded: AbstractSet[tuple[str, int]]) -> Refused:
    if model is None or model == "":
        return Refused(MODEL_MISSING, "the request names no model", param="model")
    if not isinstance(model, str):
        return Refused(MODEL_NOT_FOUND, "`model` must be a string", param="model")
    parsed = None if len(model) > MODEL_LIMIT else parse_model(model)
    if parsed is None:
        return Refused(MODEL_NOT_FOUND, f"The model {model[:MODEL_LIMIT]!r} cannot exist", param="model")
    if parsed in unloaded:
        return Refused(
            VERSION_UNLOADED, f"The model {model!r} is an old version that is not kept loaded", param="model"
        )
    return Refused(MODEL_NOT_FOUND, f"The model {model!r} does not exist", param="model")
