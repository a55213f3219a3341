"""Views: catalogue rows as response models."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from app.api.schemas import Adapter, AdapterPage, InEngine, Report, Traffic, TrafficPart, Version, VersionError
from app.domain.coarse import coarse_report
from app.domain.tenants import full_name, split_name
from app.domain.version_state import SERVABLE, State
from app.gateway.uploads import Uploads
from app.observe.verdict_report import notes
from app.store.catalogue.tables import AdapterRow, VersionRow


def version_view(uploads: Uploads, row: VersionRow, report: str | None = None, whole: bool = False) -> Version:
    """Return one version. With `report`: every module's score, rounded unless `whole`."""
    state = uploads.components.desired.state
    withheld, old = state.withheld.get(row.key), state.is_unloaded(row)
    answers = row.state in SERVABLE and withheld is None and not old
    view = Version(
        name=row.name.plain,
        version=row.number,
        model=f"{row.name.plain}@{row.number}" if answers else None,
        state=row.state,
        active=answers and row.state is State.READY,
        withheld=withheld,
        unloaded=old,
        outcome=row.outcome.value if row.outcome else None,
        modules_total=row.modules_total,
        modules_pruned=row.modules_pruned,
        modules_projected=row.modules_projected,
        digest=str(row.artefact) if row.artefact else None,
        verdict_id=str(row.verdict_id) if row.verdict_id else None,
        rung=row.rung,
        engine=_in_engine(uploads, row.engine_name) if row.engine_name and answers else None,
        created_at=row.created_at,
        error=VersionError(code=row.error_code, message=row.error_message) if row.error_code else None,
    )
    if report is None:
        return view
    measured = json.loads(report)
    shown = Report.model_validate(measured if whole else coarse_report(measured))
    return view.model_copy(update={"report": shown.model_copy(update=remarks_on(measured.get("verdict", {})))})


def remarks_on(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report's part `remarks` about a verdict as JSON values; empty if there is nothing to remark."""
    found = notes(verdict) if verdict.get("modules") else []
    return {"remarks": found} if found else {}


def _in_engine(uploads: Uploads, engine_name: str) -> InEngine:
    """Return the place of a version as far as engines report it: they list adapters, not their slots."""
    in_flight, each = uploads.components.routing_table.in_flight, uploads.components.reconciler.each
    used = in_flight.last_used(engine_name)
    loaded_in = [one.number for one in each if one.is_loaded(engine_name)]
    return InEngine(
        loaded=bool(loaded_in),
        loaded_in=loaded_in,
        in_flight=in_flight.count(engine_name),
        last_used=None if used is None else datetime.fromtimestamp(used, UTC),
    )


def adapter_view(uploads: Uploads, row: AdapterRow, versions: tuple[VersionRow, ...], owner: bool = False) -> Adapter:
    """Return one adapter with its versions, newest first. owner: with its owner, which is for administrators."""
    view = Adapter(
        name=row.name.plain,
        active_version=row.active,
        created_at=row.created_at,
        versions=[version_view(uploads, version) for version in reversed(versions)],
    )
    more: dict[str, Any] = {"owner": row.key_owner} if owner else {}
    if row.rollout is not None:
        more["traffic"] = traffic_view(uploads, row)
    return view.model_copy(update=more)


def traffic_view(uploads: Uploads, row: AdapterRow) -> Traffic:
    """Return the roll-out of an adapter that has one."""
    rollout, withheld = row.rollout, uploads.components.desired.state.withheld
    assert rollout is not None
    assert row.active is not None
    parts = [
        TrafficPart(
            version=number,
            weight=rollout.weights.get(number, 0),
            shadow=number == rollout.shadow,
            withheld=withheld.get((str(row.name), number)),
        )
        for number in sorted({*rollout.versions, row.active})
    ]
    return Traffic(
        name=row.name.plain,
        stable_version=row.active,
        weights={str(number): weight for number, weight in rollout.weights.items()},
        shadow=rollout.shadow,
        guard=rollout.guard,
        versions=parts,
    )


def one_version(uploads: Uploads, name: str, number: int, whole: bool = False) -> Version:
    """Return a version with its report, whose scores are rounded unless `whole`. Blocking.

    Raises Refused ADAPTER_NOT_FOUND or VERSION_NOT_FOUND.
    """
    catalogue = uploads.components.catalogue
    row = catalogue.version(name, number)
    view = version_view(uploads, row, catalogue.report(name, number), whole)
    faults = catalogue.faults(row)
    if view.error is None or not faults:
        return view
    error = {**view.error.plain(), "details": list(map(asdict, faults))}
    return view.model_copy(update={"error": VersionError.model_validate(error)})


def one_adapter(uploads: Uploads, name: str, owner: bool = False) -> Adapter:
    """Return an adapter with its versions. Blocking. Raises Refused ADAPTER_NOT_FOUND."""
    catalogue = uploads.components.catalogue
    return adapter_view(uploads, catalogue.adapter(name), catalogue.versions(name), owner)


def adapters_page(uploads: Uploads, tenant: str, after: str, limit: int, owner: bool = False) -> AdapterPage:
    """Return some of a tenant's adapters with their versions, ordered by name. Blocking."""
    chapter = uploads.components.catalogue.chapter(full_name(tenant, after) if after else "", limit, tenant)
    views = [adapter_view(uploads, adapter, versions, owner) for adapter, versions in chapter.adapters]
    return AdapterPage(adapters=views, next=split_name(chapter.next)[1] if chapter.next else None)
