"""Routing table: model name → engine target. Immutable, and replaced as a whole.

A request keeps the target that its name was resolved to, however the table changes in the meantime.
"""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Final

from app.domain.errors import ENGINE_UNAVAILABLE, MODEL_MISSING, MODEL_NOT_FOUND, VERSION_UNLOADED, Refused, Unavailable
from app.domain.names import FULL_NAME_LIMIT, parse_model
from app.domain.rollout import Rollout, slot_of
from app.domain.tenants import EVERYTHING, Reach
from app.serve.in_flight import InFlight

MODEL_LIMIT: Final = FULL_NAME_LIMIT + 11
"""Characters of the longest possible model name: a name with its tenant, `@`, a version number."""


class Part(StrEnum):
    """Part that a version plays in a roll-out: it answers its share of the requests, or a copy that nobody reads."""

    LIVE = "live"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class Target:
    """Destination of one request, and the label of its answer.

    asked: the name in the request.
    engine_name: the engine's name for it.
    adapter, version, digest: the version that answers; all None for the served model itself. A version of an emptied
        adapter has adapter and version, no digest, and the served model's engine name.
    part: its part in the adapter's roll-out; None if the request is no part of one.
    """

    asked: str
    engine_name: str
    adapter: str | None = None
    version: int | None = None
    digest: str | None = None
    part: Part | None = None


@dataclass(frozen=True)
class Served:
    """One servable version. engine_name, digest: None if emptied, answered by the served model. created: Unix time, s.

    It is made once for each revision of a version, so that its targets are made once, however often the table is
    replaced.
    """

    adapter: str
    version: int
    engine_name: str | None
    digest: str | None
    active: bool
    created: int = 0

    @cached_property
    def targets(self) -> tuple[Target, Target]:
        """Targets under its number and under the plain name, for a version that is not emptied."""
        return self.answered_by(self.engine_name or "")

    def answered_by(self, engine_name: str) -> tuple[Target, Target]:
        """Return the targets under its number and under the plain name, with this engine name."""
        labels = (engine_name, self.adapter, self.version, self.digest)
        return Target(f"{self.adapter}@{self.version}", *labels), Target(self.adapter, *labels)


@dataclass(frozen=True, slots=True)
class Split:
    """Adapter's plain name during a roll-out. slots: target of each slot. shadow: target of copies; None: none are sent."""

    slots: tuple[Target, ...]
    shadow: Target | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Whole routing table: requested name → target, and the versions it was made from.

    unloaded: (adapter, version) of the versions that are too old to be kept in the engines. splits: adapters whose plain
    name means several versions; in `targets` it means the stable one.
    """

    targets: Mapping[str, Target]
    served: tuple[Served, ...] = ()
    unloaded: AbstractSet[tuple[str, int]] = frozenset()
    splits: Mapping[str, Split] = field(default_factory=dict)


class RoutingTable:
    """Routing table in force.

    model: the served model's own name.
    base: the engine's name for the served model, if requests must use another one (engine.md row 10).
    in_flight: counter of requests by engine name.
    loaded: returns whether the engine answers to an engine name now.
    created: Unix time (s) shown for the served model.
    """

    def __init__(
        self,
        model: str,
        *,
        base: str | None = None,
        in_flight: InFlight | None = None,
        loaded: Callable[[str], bool] = lambda _: True,
        created: int = 0,
    ) -> None:
        self.model = model
        self.created = created
        self.in_flight = in_flight or InFlight()
        self._base = Target(model, base or model)
        self._loaded = loaded
        self._guarded = base is not None  # the engine's own name needs no loading, a stand-in does
        self._snapshot = Snapshot({model: self._base})

    @property
    def snapshot(self) -> Snapshot:
        """The table in force."""
        return self._snapshot

    def replace(
        self,
        versions: tuple[Served, ...],
        unloaded: AbstractSet[tuple[str, int]] = frozenset(),
        rollouts: Mapping[str, Rollout] = MappingProxyType({}),
    ) -> None:
        """Put a new table in force, at once, for all later requests. rollouts: those in force, by adapter."""
        targets: dict[str, Target] = {}
        for served in versions:
            emptied = served.engine_name is None
            numbered, plain = served.answered_by(self._base.engine_name) if emptied else served.targets
            targets[numbered.asked] = numbered
            if served.active:
                targets[plain.asked] = plain
        targets[self.model] = self._base
        splits = {name: _split(targets, name, one) for name, one in rollouts.items() if name in targets}
        self._snapshot = Snapshot(targets, versions, unloaded, splits)
        self.in_flight.keep(
            {served.engine_name for served in versions if served.engine_name} | {self._base.engine_name}
        )

    def target(self, model: str, reach: Reach) -> Target | None:
        """Return the target of `model` for a caller with this reach, under the name that it used; None if there is none.

        During a roll-out this is the stable version.
        """
        if model == self.model:
            return self._base
        full = reach.full(model)
        found = self._snapshot.targets.get(full) if full is not None else None
        return found if found is None or found.asked == model else replace(found, asked=model)

    def split(self, model: object, reach: Reach) -> Split | None:
        """Return the versions that `model`, as sent in an untrusted request, means during a roll-out; None: only one."""
        if not self._snapshot.splits or not isinstance(model, str) or model == self.model:
            return None
        full = reach.full(model)
        return self._snapshot.splits.get(full) if full is not None else None

    def resolve(self, model: object, reach: Reach = EVERYTHING, conversation: bytes | None = None) -> Target:
        """Return the target of `model`, as sent in an untrusted request by a caller with this reach.

        conversation: decides on the version during a roll-out; None: the stable one. Raises Refused MODEL_MISSING,
        MODEL_NOT_FOUND or VERSION_UNLOADED; Unavailable ENGINE_UNAVAILABLE if it is known but the engine does not hold it
        now: never another adapter, never the served model in its place.
        """
        target = self.target(model, reach) if isinstance(model, str) else None
        if target is None:
            raise _unknown(model, reach, self._snapshot.unloaded)
        if conversation is not None and target.adapter is not None and (split := self.split(model, reach)) is not None:
            target = replace(split.slots[slot_of(target.adapter, conversation)], asked=target.asked)
        if not self.is_loaded(target):
            raise Unavailable(ENGINE_UNAVAILABLE, f"{target.asked} is being loaded into the engine", param="model")
        return target

    def shadow(self, target: Target, reach: Reach = EVERYTHING) -> Target | None:
        """Return the target of a copy of a request to `target`; None if there is none, or the engine does not hold it."""
        split = self.split(target.asked, reach) if target.part is Part.LIVE else None
        if split is None or split.shadow is None or split.shadow.version == target.version:
            return None
        return split.shadow if self.is_loaded(split.shadow) else None

    def is_loaded(self, target: Target) -> bool:
        """Return whether the engine answers for `target` now."""
        name = target.engine_name
        return (name == self.model and not self._guarded) or self._loaded(name)


def _split(targets: Mapping[str, Target], name: str, rollout: Rollout) -> Split:
    """Return the targets of a roll-out. The stable version takes the slots of those that are not served, as if withheld."""
    stable = targets[name]

    def part(number: int, plays: Part) -> Target | None:
        found = targets.get(f"{name}@{number}")
        return None if found is None else replace(found, asked=name, part=plays)

    live = {number: part(number, Part.LIVE) or replace(stable, part=Part.LIVE) for number in rollout.weights}
    shadow = None if rollout.shadow is None else part(rollout.shadow, Part.SHADOW)
    return Split(tuple(live[number] for number in rollout.slots), shadow)


def _unknown(model: object, reach: Reach, unloaded: AbstractSet[tuple[str, int]]) -> Refused:
    if model is None or model == "":
        return Refused(MODEL_MISSING, "the request names no model", param="model")
    if not isinstance(model, str):
        return Refused(MODEL_NOT_FOUND, "`model` must be a string", param="model")
    full = None if len(model) > MODEL_LIMIT else reach.full(model)
    parsed = None if full is None else parse_model(full)
    if parsed is None:
        return Refused(MODEL_NOT_FOUND, f"The model {model[:MODEL_LIMIT]!r} cannot exist", param="model")
    if parsed in unloaded:
        return Refused(
            VERSION_UNLOADED, f"The model {model!r} is an old version that is not kept loaded", param="model"
        )
    return Refused(MODEL_NOT_FOUND, f"The model {model!r} does not exist", param="model")
