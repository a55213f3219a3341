"""Tables of the catalogue, and the frozen rows that its methods return."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

from app.domain.digest import Digest
from app.domain.lora import Received
from app.domain.names import AdapterName
from app.domain.rollout import Rollout
from app.domain.verdict import Outcome, Verdict
from app.domain.version_state import State
from app.store.catalogue.column_types import COUNT, FULL, FULL_NAME, HEX, IN_BYTE_ORDER, Utc

SCHEMA_VERSION: Final = 13
"""Version of the tables below; it changes with them. An older schema is migrated (migrations/), any other refused."""

metadata: Final = MetaData()

schema_info: Final = Table("schema_info", metadata, Column("version", Integer, nullable=False))

adapters: Final = Table(
    "adapters",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", FULL_NAME, nullable=False),  # with its tenant
    Column("name_key", IN_BYTE_ORDER, nullable=False, unique=True),  # the name casefolded
    Column("created_at", Utc, nullable=False),
    Column("active_version", Integer),  # the alias: a number among this adapter's versions
    Column("next_version", Integer, nullable=False),  # only grows, even across a deletion
    Column("deleted", Boolean, nullable=False),
    Column("key_owner", String(63)),  # label of the keys that may push to it; None: any
    Column("bound", Boolean, nullable=False, server_default=false()),  # a version was stored: spelling, owner are fixed
    Column("traffic", Text),  # its roll-out, if one is under way (JSON: domain/rollout.py)
)

versions: Final = Table(
    "versions",
    metadata,
    Column("id", Integer, primary_key=True),  # defines the order of uploads
    Column("adapter_id", ForeignKey("adapters.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("outcome", String(16)),
    Column("config_digest", String(HEX), nullable=False),
    Column("weights_digest", String(HEX), nullable=False),
    Column("config_bytes", COUNT, nullable=False),
    Column("weights_bytes", COUNT, nullable=False),
    Column("parameters", String(HEX), nullable=False),  # key of what the verdict depends on besides the bytes
    Column("verdict_id", String(HEX)),
    Column("modules_total", Integer),
    Column("modules_pruned", Integer),
    Column("modules_projected", Integer),
    Column("artefact", String(HEX)),
    Column(
        "engine_name", String(FULL + 32).with_variant(String(128), "sqlite"), unique=True
    ),  # kept when the version is deleted: never used twice
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("report", Text),
    Column("faults", Text),  # every fault of a refused upload, JSON
    Column("created_at", Utc, nullable=False),
    Column("updated_at", Utc, nullable=False),
    Column("owner", String(32)),  # the gateway working on it, if several share the catalogue
    Column("revision", COUNT, nullable=False, server_default="0"),  # the catalogue's at this row's last change
    Column("key_owner", String(63)),  # the adapter's owner if this is its first stored version
    Column("spelling", FULL_NAME, nullable=False, server_default=""),  # spelling of the name in this upload
    Column("evaluated", String(HEX)),  # key of the evaluation that this artefact passed
    Column("rung", Integer),  # the ladder's rung that made it, 0: the floor
    Column("failed_evaluation", String(HEX)),  # key of the evaluation that it failed when it was asked again
    UniqueConstraint("adapter_id", "number"),
    Index("versions_state", "state"),
    Index("versions_artefact", "artefact"),
)

catalogue_state: Final = Table(
    "catalogue_state",  # one row
    metadata,
    Column("id", Integer, primary_key=True),
    Column("revision", COUNT, nullable=False),  # grows with every change
    Column("store", String(32)),  # id of the directory of artefacts that these rows name
)

gateways: Final = Table(
    "gateways",  # gateways that share the catalogue now; cluster/peers.py
    metadata,
    Column("id", String(32), primary_key=True),
    Column("seen_at", Utc, nullable=False),  # by the database's clock
    Column("settled", COUNT, nullable=False),  # its engine reads nothing that was unneeded at this revision
    Column("parameters", String(HEX), nullable=False),
)

claims: Final = Table(
    "claims",  # artefacts about to be named by a row
    metadata,
    Column("digest", String(HEX), primary_key=True),
    Column("gateway", ForeignKey("gateways.id", ondelete="CASCADE"), primary_key=True),
)

deletions: Final = Table(
    "deletions",  # artefacts being deleted from object storage now; claims.py
    metadata,
    Column("digest", String(HEX), primary_key=True),
    Column("gateway", String(32), nullable=False),  # no foreign key: a gateway that left may have a request in flight
    Column("marked_at", Utc, nullable=False),  # by the database's clock
)


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """Adapter. active: number of the version that its plain name points to, None while there is none.

    key_owner: label of the keys that it belongs to; None: any key may push to it. rollout: division of the plain name's
    requests; None: all go to the active version.
    """

    name: AdapterName
    active: int | None
    created_at: datetime
    key_owner: str | None
    rollout: Rollout | None = None


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """Complete row of `adapters`, used only inside this package."""

    id: int
    name: AdapterName
    active: int | None
    next_version: int
    deleted: bool
    created_at: datetime
    key_owner: str | None
    bound: bool
    rollout: Rollout | None

    @property
    def public(self) -> AdapterRow:
        """Row for callers outside this package."""
        return AdapterRow(self.name, self.active, self.created_at, self.key_owner, self.rollout)


@dataclass(frozen=True, slots=True)
class VersionRow:
    """Version: one upload, without its report and faults (which may be long: `Catalogue.report`, `Catalogue.faults`).

    outcome, verdict_id, modules_*: None until screened. artefact, engine_name: None until stored, and for ever if the
    version is emptied. parameters: key, given at the beginning, of everything the verdict depends on besides the bytes.
    error_code: a name from `errors.CODES`. Times in UTC, for people only: nothing is ordered or expired by them.
    revision: the catalogue's revision when this version last changed, so two reads with one revision belong to one try.
    owner: the gateway that works on it or did last, if several share the catalogue. name: as this upload spelled it,
    which is the adapter's name for every version that was ever stored. key_owner: the adapter's owner if this version
    binds its name. evaluated: key of the evaluation that this artefact passed; None if its behaviour was not looked at.
    rung: correction that made the artefact, 0 for the floor; None as `evaluated`. failed_evaluation: key of the
    evaluation that it failed when it was asked again; it is withheld while that evaluation is in force.
    """

    name: AdapterName
    number: int
    state: State
    outcome: Outcome | None
    received: Received
    parameters: str
    verdict_id: Digest | None
    modules_total: int | None
    modules_pruned: int | None
    modules_projected: int | None
    artefact: Digest | None
    engine_name: str | None
    error_code: str | None
    error_message: str | None
    created_at: datetime
    updated_at: datetime
    revision: int
    owner: str | None
    key_owner: str | None
    evaluated: str | None = None
    rung: int | None = None
    failed_evaluation: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Adapter's name and version number."""
        return str(self.name), self.number

    @property
    def emptied(self) -> bool:
        """True if every module was pruned: the served model itself answers for it, and it has no artefact."""
        return self.outcome is Outcome.EMPTIED


VERSION_COLUMNS: Final = tuple(column for column in versions.c if column.name not in ("report", "faults"))
"""Columns that `version_row` needs."""


def adapter_record(row: Row[Any]) -> AdapterRecord:
    """Convert a row of `adapters`."""
    return AdapterRecord(
        id=row.id,
        name=AdapterName(row.name),
        active=row.active_version,
        next_version=row.next_version,
        deleted=row.deleted,
        created_at=row.created_at,
        key_owner=row.key_owner,
        bound=row.bound,
        rollout=rollout_in(row.traffic),
    )


def rollout_in(traffic: str | None) -> Rollout | None:
    """Convert the column `traffic`."""
    return None if traffic is None else Rollout.read(traffic)


def version_row(row: Row[Any]) -> VersionRow:
    """Convert a row of `VERSION_COLUMNS`."""
    received = Received(Digest(row.config_digest), Digest(row.weights_digest), row.config_bytes, row.weights_bytes)
    return VersionRow(
        name=AdapterName(row.spelling),
        number=row.number,
        state=State(row.state),
        outcome=Outcome(row.outcome) if row.outcome else None,
        received=received,
        parameters=row.parameters,
        verdict_id=Digest(row.verdict_id) if row.verdict_id else None,
        modules_total=row.modules_total,
        modules_pruned=row.modules_pruned,
        modules_projected=row.modules_projected,
        artefact=Digest(row.artefact) if row.artefact else None,
        engine_name=row.engine_name,
        error_code=row.error_code,
        error_message=row.error_message,
        created_at=row.created_at,
        updated_at=row.updated_at,
        revision=row.revision,
        owner=row.owner,
        key_owner=row.key_owner,
        evaluated=row.evaluated,
        rung=row.rung,
        failed_evaluation=row.failed_evaluation,
    )


def measured(verdict: Verdict) -> dict[str, Any]:
    """Return the columns that a verdict fills."""
    return {
        "outcome": verdict.outcome,
        "verdict_id": verdict.id.hex,
        "modules_total": len(verdict.modules),
        "modules_pruned": len(verdict.pruned),
        "modules_projected": len(verdict.projected),
    }
