"""Audit of the engines' lists: of engines that a gateway fills, and of engines that fetch adapters by themselves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.domain.digest import SHORT
from app.domain.retention import unloaded
from app.domain.version_state import SERVABLE, State
from app.store.audit.policy_in_force import PolicyInForce
from app.store.audit.rules import HAS_ARTEFACT, Finding, Findings
from app.store.audit.snapshot import AdapterSeen, VersionSeen

IN_ENGINE: Final = " in engine "
"""Separator between a name and the number of the engine, of several, that listed it; engine names hold no blank."""

STAND_IN: Final = "base"
"""Name of the zero adapter, which answers for the served model if the engine needs one; in no catalogue."""

KEPT: Final = "the engine has it until it is started again"

Rows = Mapping[str, tuple[AdapterSeen, VersionSeen]]
"""Engine name → adapter and version."""


@dataclass(frozen=True, slots=True)
class Card:
    """Entry of an engine's list. root: the path it reads; parent: the adapter's base model, None for the model itself."""

    root: str | None
    parent: str | None


def filled(
    adapters: tuple[AdapterSeen, ...],
    listed: Mapping[str, Card],
    root: Path,
    blobs: Mapping[str, tuple[Finding, ...]],
    policy: PolicyInForce | None,
) -> Findings:
    """Audit engines that the gateway fills: I1 and I6 for the adapters they hold, I4 for those they should hold.

    root: the directory of artefacts. blobs: digest → findings about its artefact there.
    """
    withheld, rows = policy.withheld if policy else frozenset(), _rows(adapters)
    old = {at for one in adapters for at in _unloaded(one, policy)}
    for name, (one, row) in rows.items():
        held = row.state in SERVABLE and not {(one.name, row.number)} & (withheld | old)
        if held and name not in listed:
            yield Finding("I4", f"{one.name}@{row.number}", f"the engine does not hold {name}")
    for name, card in _adapters_of(listed):
        at, path = _at(name), Path(card.root or "")
        digest = name.partition("@")[2][:SHORT]
        if path.parent.resolve() != root.resolve() or len(digest) != SHORT or not path.name.startswith(digest):
            yield Finding("I1", at, f"reads {card.root}")
        elif path.name not in blobs:
            yield Finding("I6", at, "reads an artefact that is not there")
        elif blobs[path.name]:
            yield Finding("I1", at, "reads a damaged artefact")
        known = rows.get(name.partition(IN_ENGINE)[0])
        if known is not None and (known[0].name, known[1].number) in withheld:
            yield Finding("I1", at, "is withheld by the policy in force")


def fetching(
    adapters: tuple[AdapterSeen, ...],
    listed: Mapping[str, Card],
    blobs: Mapping[str, tuple[Finding, ...]],
    policy: PolicyInForce | None,
) -> Findings:
    """Check I1 on engines that fetch adapters by themselves (plugin/): they hold only allowed ones, at their digest.

    They fetch a missing adapter when a request needs it, so none has to be there. Paths are those of the engine's own
    machine; only their last part, the fetched digest, can be checked.
    """
    withheld, rows = policy.withheld if policy else frozenset(), _rows(adapters)
    for name, card in _adapters_of(listed):
        at, digest, plain = _at(name), Path(card.root or "").name, name.partition(IN_ENGINE)[0]
        if plain not in rows:
            if plain != f"{STAND_IN}@{digest[:SHORT]}" or blobs.get(digest) != ():
                yield Finding("I1", at, f"is no version of this catalogue, and reads {card.root}")
            continue
        one, row = rows[plain]
        if row.state not in HAS_ARTEFACT:
            yield Finding("I1", at, f"is {row.state}: {KEPT}")
        elif digest != row.artefact:
            yield Finding("I1", at, f"reads {card.root}")
        elif (one.name, row.number) in withheld:
            yield Finding("I1", at, f"is withheld by the policy in force: {KEPT}")


def _rows(adapters: tuple[AdapterSeen, ...]) -> Rows:
    return {row.engine_name: (one, row) for one in adapters for row in one.versions if row.engine_name}


def _adapters_of(listed: Mapping[str, Card]) -> Iterable[tuple[str, Card]]:
    """Return the list without the engine's own model."""
    return ((name, card) for name, card in listed.items() if "@" in name or card.parent is not None)


def _at(name: str) -> str:
    return f"engine name {name[:80]!r}"


def _unloaded(one: AdapterSeen, policy: PolicyInForce | None) -> Iterable[tuple[str, int]]:
    """Return the versions that the engine need not hold, because there are newer ones."""
    if policy is None or policy.keep_versions is None:
        return ()
    retired = (row.number for row in one.versions if row.state == State.RETIRED)
    served = (number for number in retired if (one.name, number) not in policy.withheld)
    return ((one.name, number) for number in unloaded(served, policy.keep_versions))
