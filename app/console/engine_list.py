"""List of engines: state and last error of each, and the versions that they hold."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from urllib.parse import quote, urlencode

from app.domain.tenants import DEFAULT, split_name
from app.gateway.components import Components
from app.load.fleet.fleet import Fleet
from app.load.reconcile.reconciler import LastError, Reconciler

MOST: Final = 200
"""Most versions on the page: those that are missing somewhere first."""


class EngineState(StrEnum):
    """State of an engine, in words for people."""

    ANSWERS = "answers"
    FILLING = "being filled"
    HANGS = "computes nothing"
    UNUSED = "not used"
    AWAY = "starting or away"


@dataclass(frozen=True, slots=True)
class EngineLine:
    """One engine. address: None for the only one. why: reason why it is not used, if it is not. model: identity of its
    model, once it was asked. flying: requests in flight."""

    number: int
    address: str | None
    state: EngineState
    why: str | None
    model: str | None
    loaded: int
    failing: int
    flying: int
    last_error: LastError | None


@dataclass(frozen=True, slots=True)
class HeldVersion:
    """Adapter that the engines should hold. adapter, version: None for one that no version is served by now.

    loaded_in: numbers of the engines that hold it. missing: number of the others. errors: one for each engine that
    failed to load it. last_used: by requests through this gateway process.
    """

    engine_name: str
    adapter: str | None
    version: int | None
    loaded_in: tuple[int, ...]
    missing: int
    errors: tuple[str, ...]
    in_flight: int
    last_used: datetime | None

    @property
    def page(self) -> str:
        """Address of the version's page, for the operator. Only of a served version."""
        tenant, plain = split_name(self.adapter or "")
        whose = {} if tenant == DEFAULT else {"tenant": tenant}
        return f"/console/adapters/{quote(plain)}?{urlencode({'version': self.version, **whose})}"


@dataclass(frozen=True, slots=True)
class Engines:
    """All engines, and the first MOST adapters of `wanted`."""

    engines: tuple[EngineLine, ...]
    held: tuple[HeldVersion, ...]
    wanted: int


def engine_list(components: Components) -> Engines:
    """Return the state of the engines now. Reads immutable values only, from any thread."""
    held = sorted(_held(components), key=lambda one: (not one.missing, one.engine_name.casefold()))
    return Engines(tuple(_lines(components)), tuple(held[:MOST]), len(held))


def _lines(components: Components) -> Iterable[EngineLine]:
    fleet = components.reconciler
    reports = {one.number: one for one in fleet.report()} if isinstance(fleet, Fleet) else {}
    total = components.routing_table.in_flight.total()
    for one in fleet.each:
        report = reports.get(one.number)
        state = _state(one)
        model = one.objection.model
        yield EngineLine(
            number=one.number,
            address=report.address if report else None,
            state=state,
            why=one.objection.why if state is EngineState.UNUSED else None,
            model=model.note if model else None,
            loaded=len(one.loaded),
            failing=len(one.failures),
            flying=report.flying if report else total,
            last_error=one.last_error,
        )


def _state(one: Reconciler) -> EngineState:
    if one.hangs():
        return EngineState.HANGS
    if one.engine_up:
        return EngineState.ANSWERS if one.caught_up else EngineState.FILLING
    return EngineState.UNUSED if one.objection.why else EngineState.AWAY


def _held(components: Components) -> Iterable[HeldVersion]:
    state, in_flight = components.desired.state, components.routing_table.in_flight
    served = {one.engine_name: one for one in state.served}
    each = components.reconciler.each
    loaded = {one.number: one.loaded for one in each}
    failures: Mapping[int, Mapping[str, str]] = {one.number: one.failures for one in each}
    for name in state.adapters:
        holding = tuple(number for number, names in loaded.items() if name in names)
        version, used = served.get(name), in_flight.last_used(name)
        yield HeldVersion(
            engine_name=name,
            adapter=version.adapter if version else None,
            version=version.version if version else None,
            loaded_in=holding,
            missing=len(each) - len(holding),
            errors=tuple(why[name] for why in failures.values() if name in why),
            in_flight=in_flight.count(name),
            last_used=None if used is None else datetime.fromtimestamp(used, UTC),
        )
