"""Rows as JSON: what GET /adapters and its kin answer."""

import json
from typing import Any

from app.errors import ADAPTER_NOT_FOUND, Refused
from app.lifecycle import SERVABLE, State
from app.pipeline import Pipeline
from app.store.schema import AdapterRow, VersionRow


def version_view(row: VersionRow, withheld: str | None = None, report: str | None = None) -> dict[str, Any]:
    """One version. withheld: why it is not served although published. With `report`: every module's score."""
    answers = row.state in SERVABLE and withheld is None
    view: dict[str, Any] = {
        "name": str(row.name),
        "version": row.number,
        "model": f"{row.name}@{row.number}" if answers else None,
        "state": row.state.value,
        "active": answers and row.state is State.READY,
        "withheld": withheld,
        "outcome": row.outcome.value if row.outcome else None,
        "modules_total": row.modules_total,
        "modules_pruned": row.modules_pruned,
        "modules_projected": row.modules_projected,
        "digest": str(row.artefact) if row.artefact else None,
        "verdict_id": str(row.verdict_id) if row.verdict_id else None,
        "created_at": row.created_at.isoformat(),
        "error": {"code": row.error_code, "message": row.error_message} if row.error_code else None,
    }
    return view if report is None else view | {"report": json.loads(report)}


def adapter_view(pipeline: Pipeline, row: AdapterRow, versions: tuple[VersionRow, ...]) -> dict[str, Any]:
    """One adapter with its versions, newest first."""
    withheld = pipeline.publishing.withheld
    return {
        "name": str(row.name),
        "active_version": row.active,
        "created_at": row.created_at.isoformat(),
        "versions": [version_view(version, withheld(version)) for version in reversed(versions)],
    }


def one_version(pipeline: Pipeline, name: str, number: int) -> dict[str, Any]:
    """A version with its report. Blocking. Raises Refused ADAPTER_NOT_FOUND or VERSION_NOT_FOUND."""
    catalogue = pipeline.rooms.catalogue
    row = catalogue.version(name, number)
    return version_view(row, pipeline.publishing.withheld(row), catalogue.report(name, number))


def one_adapter(pipeline: Pipeline, name: str) -> dict[str, Any]:
    """An adapter with its versions. Blocking. Raises Refused ADAPTER_NOT_FOUND."""
    catalogue = pipeline.rooms.catalogue
    return adapter_view(pipeline, catalogue.adapter(name), catalogue.versions(name))


def all_adapters(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Every adapter with its versions. Blocking."""
    catalogue = pipeline.rooms.catalogue
    return [adapter_view(pipeline, row, _versions(pipeline, row)) for row in catalogue.adapters()]


def _versions(pipeline: Pipeline, row: AdapterRow) -> tuple[VersionRow, ...]:
    try:
        return pipeline.rooms.catalogue.versions(row.name)
    except Refused as error:  # deleted between the two reads
        if error.code is ADAPTER_NOT_FOUND:
            return ()
        raise
