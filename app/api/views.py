"""JSON views of adapters and versions, for GET /adapters and related routes."""

import json
from datetime import UTC, datetime
from typing import Any

from app.domain.coarse import coarse_report
from app.domain.version_state import SERVABLE, State
from app.gateway.uploads import Uploads
from app.store.catalogue.tables import AdapterRow, VersionRow


def version_view(uploads: Uploads, row: VersionRow, report: str | None = None, whole: bool = False) -> dict[str, Any]:
    """Return one version. With `report`: every module's score, rounded unless `whole`."""
    withheld = uploads.components.desired.state.withheld.get(row.key)
    old = uploads.components.desired.state.is_unloaded(row)
    answers = row.state in SERVABLE and withheld is None and not old
    view: dict[str, Any] = {
        "name": str(row.name),
        "version": row.number,
        "model": f"{row.name}@{row.number}" if answers else None,
        "state": row.state.value,
        "active": answers and row.state is State.READY,
        "withheld": withheld,
        "unloaded": old,
        "outcome": row.outcome.value if row.outcome else None,
        "modules_total": row.modules_total,
        "modules_pruned": row.modules_pruned,
        "modules_projected": row.modules_projected,
        "digest": str(row.artefact) if row.artefact else None,
        "verdict_id": str(row.verdict_id) if row.verdict_id else None,
        "engine": _in_engine(uploads, row.engine_name) if row.engine_name and answers else None,
        "created_at": row.created_at.isoformat(),
        "error": {"code": row.error_code, "message": row.error_message} if row.error_code else None,
    }
    if report is None:
        return view
    measured = json.loads(report)
    return view | {"report": measured if whole else coarse_report(measured)}


def _in_engine(uploads: Uploads, engine_name: str) -> dict[str, Any]:
    """Return a version's state in the engines as they report it: they list loaded adapters, not those in a slot now.

    loaded_in: numbers of the engines that hold it, verified and probed. last_used: by requests through this process.
    """
    in_flight, each = uploads.components.routing_table.in_flight, uploads.components.reconciler.each
    used = in_flight.last_used(engine_name)
    return {
        "loaded": any(one.is_loaded(engine_name) for one in each),
        "loaded_in": [one.number for one in each if one.is_loaded(engine_name)],
        "in_flight": in_flight.count(engine_name),
        "last_used": None if used is None else datetime.fromtimestamp(used, UTC).isoformat(),
    }


def adapter_view(
    uploads: Uploads, row: AdapterRow, versions: tuple[VersionRow, ...], whole: bool = False
) -> dict[str, Any]:
    """Return one adapter with its versions, newest first. whole: with its owner, which only administrators may see."""
    view = {
        "name": str(row.name),
        "active_version": row.active,
        "created_at": row.created_at.isoformat(),
        "versions": [version_view(uploads, version) for version in reversed(versions)],
    }
    return view | {"owner": row.key_owner} if whole else view


def one_version(uploads: Uploads, name: str, number: int, whole: bool = False) -> dict[str, Any]:
    """Return a version with its report; scores are rounded unless `whole`. Blocking.

    Raises Refused ADAPTER_NOT_FOUND or VERSION_NOT_FOUND.
    """
    catalogue = uploads.components.catalogue
    row = catalogue.version(name, number)
    return version_view(uploads, row, catalogue.report(name, number), whole)


def one_adapter(uploads: Uploads, name: str, whole: bool = False) -> dict[str, Any]:
    """Return an adapter with its versions. Blocking. Raises Refused ADAPTER_NOT_FOUND."""
    catalogue = uploads.components.catalogue
    return adapter_view(uploads, catalogue.adapter(name), catalogue.versions(name), whole)


def adapters_page(uploads: Uploads, after: str, limit: int, whole: bool = False) -> dict[str, Any]:
    """Return one page of adapters with their versions, ordered by name. Blocking."""
    chapter = uploads.components.catalogue.chapter(after, limit)
    views = [adapter_view(uploads, adapter, versions, whole) for adapter, versions in chapter.adapters]
    return {"adapters": views, "next": chapter.next}
