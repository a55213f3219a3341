"""Catalogue of names: the adapters, each one's versions, and the version that its name points to.

Every method is one transaction, on the disk when it returns. States change only through `version_state.advance`. A
version is addressed by its adapter's name, exactly as it is written, and its number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, insert, update

from app.domain.api_keys import NOBODY, Uploader
from app.domain.digest import Digest
from app.domain.errors import (
    CANARIES_FAILED,
    SCREENING_FAILED,
    VERSION_NOT_READY,
    GatewayError,
    Refused,
)
from app.domain.lora import Received
from app.domain.names import AdapterName
from app.domain.verdict import Verdict
from app.domain.version_state import ENDED, IN_FLIGHT, SERVABLE, Event, State, advance
from app.domain.webhook import Topic
from app.store.catalogue.beginning import Begun, Ended, New, Retry, Same, again, error_columns, not_ready, nothing_since
from app.store.catalogue.evaluated import Corrected, publishable
from app.store.catalogue.naming import Claim, bind, claim_of, numbered, owner_conditions, spelled
from app.store.catalogue.outbox import tell_version
from app.store.catalogue.queries import (
    Name,
    adapter_named,
    free_engine_name,
    overtaken,
    same_version,
    version_before,
    version_numbered,
    versions_where,
)
from app.store.catalogue.rollouts import RolloutCatalogue
from app.store.catalogue.tables import AdapterRow, VersionRow, adapters, measured, versions
from app.store.cluster.peers import next_revision, orphaned


@dataclass(frozen=True, slots=True)
class Recovered:
    """Result of recovery at start.

    interrupted: versions that were in flight, now failed. to_load: stored versions, waiting for the engine.
    """

    interrupted: tuple[VersionRow, ...]
    to_load: tuple[VersionRow, ...]


class Catalogue(RolloutCatalogue):
    """Adapters and versions in one SQL database. Thread-safe; blocking, so call it off the event loop.

    Raises as its reader, and: Unavailable NO_SPACE if the disk is full; version_state.IllegalMove for a transition that
    does not exist.
    """

    def begin(
        self,
        name: AdapterName,
        received: Received,
        parameters: str = "",
        *,
        after: int | None = None,
        by: Uploader = NOBODY,
        ended: Ended | None = None,
    ) -> Begun:
        """Begin a version of these bytes, in state `received`, or return the existing one: Same.

        Same is the newest if several ended. Of any number of equal uploads of one owner at the same moment exactly one
        gets New. parameters: a key (≤ 64 characters) of everything the verdict depends on besides the bytes. after: the
        number the newest version must have. ended: try that version again. It is then `received` again, or `stored` if
        it is intact and only an engine had refused it: Retry. If a later version has the name or may get it, the retry
        gets a new number: New. If another call was faster: Same. Creates the adapter if the name is new or was deleted.
        Raises Refused NAME_TAKEN if a version of the name was stored in another spelling or for another owner,
        VERSION_NOT_READY if a newer version was begun, QUOTA_EXCEEDED.
        """
        with self._database.writing() as connection:
            claim = claim_of(connection, name, by)
            same = same_version(connection, name, received, parameters, *owner_conditions(claim), failed=True)
            if ended is None:
                return Same(same) if same else New(self._begin(connection, name, received, parameters, after, claim))
            row = version_numbered(connection, name, ended.number)
            if (same or row).number != ended.number or row.state not in ENDED:
                return Same(same or row)
            adapter = spelled(connection, row.name)
            if overtaken(connection, adapter, ended.number):
                return New(self._begin(connection, name, received, parameters, after, claim))
            nothing_since(name, adapter.next_version, after)
            self._set(connection, row, owner=self._gateway, key_owner=claim.owner, **again(row, intact=ended.intact))
            self.limits.check_stock(connection, name, received, exempt=claim.exempt)
            return Retry(version_numbered(connection, name, ended.number))

    def record_validated(self, name: Name, number: int) -> VersionRow:
        """Record received → validated. This and the next two raise TakenOver if another gateway has the version now."""
        with self._database.writing() as connection:
            return self._move(connection, self._own_version(connection, name, number), Event.VALIDATE)

    def record_screened(self, name: Name, number: int, verdict: Verdict, report: str) -> VersionRow:
        """Record validated → screened. report: JSON text, stored unchanged."""
        with self._database.writing() as connection:
            row = self._own_version(connection, name, number)
            return self._move(connection, row, Event.SCREEN, **measured(verdict), report=report)

    def record_stored(self, name: Name, number: int, artefact: Digest | None) -> VersionRow:
        """Record screened → stored, with the engine name. artefact: None for an emptied version, which has neither.

        The engine name is `<adapter>@<digest12>`; if any version, even a deleted one, ever had that name, `-<number>`
        is appended. Raises Refused NAME_TAKEN as `bind`, and ValueError (a programmer's error) if outcome and artefact
        do not fit each other.
        """
        with self._database.writing() as connection:
            row = self._own_version(connection, name, number)
            if row.emptied is not (artefact is None):
                raise ValueError(f"outcome {row.outcome} does not fit artefact {artefact}")
            bind(connection, row)
            values: dict[str, Any] = {}
            if artefact is not None:
                values = {"artefact": artefact.hex, "engine_name": free_engine_name(connection, row, artefact)}
            return self._move(connection, row, Event.STORE, **values)

    def record_rejected(
        self, name: Name, number: int, error: GatewayError, verdict: Verdict | None = None, report: str | None = None
    ) -> VersionRow:
        """Record received, validated or screened → rejected, with the error. Also raises TakenOver."""
        values: dict[str, Any] = {} if verdict is None else measured(verdict)
        if report is not None:
            values["report"] = report
        with self._database.writing() as connection:
            row = self._own_version(connection, name, number)
            return self._move(connection, row, Event.REJECT, **values, **error_columns(error))

    def record_failed(self, name: Name, number: int, error: GatewayError, *, at_work: bool = False) -> VersionRow:
        """Record in flight or stored → failed: not the uploader's fault, or the engine's refusal of these very bytes.

        at_work: the caller was working on the version; then this raises TakenOver if another gateway has it now.
        """
        with self._database.writing() as connection:
            row = self._own_version(connection, name, number) if at_work else version_numbered(connection, name, number)
            return self._move(connection, row, Event.FAIL, **error_columns(error))

    def record_try_failed(self, tried: VersionRow, error: GatewayError) -> VersionRow:
        """Record in flight or stored → failed, unless the version has changed since `tried` was read.

        It changes if another gateway was faster, or if its bytes were uploaded again. Returns the current row. Raises
        as record_failed.
        """
        with self._database.writing() as connection:
            row = version_numbered(connection, tried.name, tried.number)
            if row.revision != tried.revision:
                return row
            return self._move(connection, row, Event.FAIL, **error_columns(error))

    def record_passed(
        self, asked: VersionRow, evaluation: str, report: str, rung: int, served: Corrected | None
    ) -> VersionRow:
        """Record that a stored version passed an evaluation, unless it has changed since `asked` was read.

        evaluation: key of the evaluation. rung: the rung that passed. served: the artefact that passed in place of the
        stored one; None: that one. Returns the current row.
        """
        with self._database.writing() as connection:
            row = version_numbered(connection, asked.name, asked.number)
            if row.revision != asked.revision or row.state is not State.STORED:
                return row
            values: dict[str, Any] = {"evaluated": evaluation, "report": report, "rung": rung}
            if served is not None:
                name = free_engine_name(connection, row, served.artefact)
                values |= {**measured(served.verdict), "artefact": served.artefact.hex, "engine_name": name}
            self._set(connection, row, **values)
            return version_numbered(connection, row.name, row.number)

    def record_not_passed(self, asked: VersionRow, error: GatewayError, report: str) -> VersionRow:
        """Record stored → rejected, without an artefact: no rung passed the evaluation. See `record_passed`."""
        with self._database.writing() as connection:
            row = version_numbered(connection, asked.name, asked.number)
            if row.revision != asked.revision or row.state is not State.STORED:
                return row
            return self._move(connection, row, Event.REJECT, report=report, artefact=None, **error_columns(error))

    def record_asked_again(self, asked: VersionRow, evaluation: str, report: str, *, passed: bool) -> VersionRow:
        """Record that a published version passed or failed an evaluation, unless it is deleted or not published any more.

        Returns the current row. Raises Refused if it is deleted.
        """
        with self._database.writing() as connection:
            row = version_numbered(connection, asked.name, asked.number)
            if row.state not in SERVABLE or row.artefact != asked.artefact:
                return row
            result = (
                {"evaluated": evaluation, "failed_evaluation": None} if passed else {"failed_evaluation": evaluation}
            )
            self._set(connection, row, report=report, **result)
            if not passed and row.failed_evaluation != evaluation:
                tell_version(connection, Topic.WITHHELD, row, CANARIES_FAILED.name)
            return version_numbered(connection, row.name, row.number)

    def free_engine_name(self, row: VersionRow, artefact: Digest) -> str:
        """Return the engine name that this artefact would get in this version now; no other version has it."""
        with self._database.reading() as connection:
            return free_engine_name(connection, row, artefact)

    def activate(self, name: Name, number: int, evaluation: str | None = None) -> VersionRow:
        """Publish a stored version: point the name to it and retire the one it pointed to, in one step.

        The name never moves backwards: if a later version is active already, this one is retired instead (and available
        as `name@n`). So it is during a roll-out: only its weights decide who gets requests. A version published before is
        returned unchanged; to go back, use `rollback`. evaluation: key of the evaluation that the version must have passed,
        unless it is emptied; None: none. Raises Refused VERSION_NOT_READY in any other state.
        """
        with self._database.writing() as connection:
            adapter = adapter_named(connection, name, lock=True)
            row = version_numbered(connection, name, number)
            if row.state in SERVABLE:
                return row
            if row.state is not State.STORED or not publishable(row, evaluation):
                raise not_ready(row)
            if adapter.active is not None and (adapter.active > number or adapter.rollout is not None):
                return self._move(connection, row, Event.SUPERSEDE)
            return self._point(connection, adapter, row)

    def rollback(self, name: Name, to: int | None = None, evaluation: str | None = None) -> VersionRow:
        """Point the name to a retired version; None: the latest before the active one. Ends a roll-out.

        Versions that still wait for the engine are retired: they must not replace the version rolled back to. Those that
        have not passed the evaluation with this key fail, since a retired version answers as `name@n`. Raises Refused
        VERSION_NOT_READY if there is no such version, or if `to` was never published.
        """
        with self._database.writing() as connection:
            adapter = adapter_named(connection, name, lock=True)
            row = version_numbered(connection, name, version_before(connection, adapter) if to is None else to)
            if row.number == adapter.active:
                self._end_rollout(connection, adapter)
                return row
            if row.state is not State.RETIRED:
                raise not_ready(row)
            self._retire_waiting(connection, adapter, evaluation)
            self._end_rollout(connection, adapter)
            return self._point(connection, adapter, row)

    def delete(self, name: Name) -> tuple[VersionRow, ...]:
        """Delete the adapter with all its versions and return these as they were: the engine must unload them.

        Uploads of this name in flight find their version deleted. Numbers and engine names are never used again.
        """
        with self._database.writing() as connection:
            adapter = adapter_named(connection, name, lock=True)
            rows = versions_where(connection, versions.c.adapter_id == adapter.id)
            for row in rows:
                self._set(connection, row, state=advance(row.state, Event.DELETE))
            deleted = update(adapters).where(adapters.c.id == adapter.id).values(_DELETED)
            connection.execute(deleted)
            return rows

    def transfer(self, name: Name, owner: str) -> AdapterRow:
        """Give an adapter to another owner.

        Raises Refused ADAPTER_NOT_FOUND, or VERSION_NOT_READY if no version of it was ever stored, so that it has no
        owner yet.
        """
        with self._database.writing() as connection:
            adapter = adapter_named(connection, name, lock=True)
            if not adapter.bound:
                raise Refused(VERSION_NOT_READY, f"no version of {adapter.name} was ever stored: nobody owns the name")
            connection.execute(update(adapters).where(adapters.c.id == adapter.id).values(key_owner=owner))
            return adapter_named(connection, name).public

    def recover(self) -> Recovered:
        """Fail the versions that a stop left in flight, and return those still to be loaded.

        Call it at start, before the first upload. If several gateways share the catalogue, at any time: versions that
        other living gateways work on are left to them.
        """
        with self._database.writing() as connection:
            failed = []
            dead = () if self._gateway is None else (orphaned(self._beats),)
            for row in versions_where(connection, versions.c.state.in_(IN_FLIGHT), *dead):
                message = f"interrupted: the gateway stopped when the version was {row.state}"
                values: dict[str, Any] = {"error_code": SCREENING_FAILED.name, "error_message": message}
                failed.append(self._move(connection, row, Event.FAIL, **values))
            return Recovered(tuple(failed), versions_where(connection, versions.c.state == State.STORED))

    def _begin(
        self,
        connection: Connection,
        name: AdapterName,
        received: Received,
        parameters: str,
        after: int | None,
        claim: Claim,
    ) -> VersionRow:
        adapter, number = numbered(connection, name, self._now())
        nothing_since(name, number, after)
        now = self._now()
        values = {
            "adapter_id": adapter,
            "number": number,
            "state": State.RECEIVED,
            "config_digest": received.config_digest.hex,
            "weights_digest": received.weights_digest.hex,
            "config_bytes": received.config_bytes,
            "weights_bytes": received.weights_bytes,
            "parameters": parameters,
            "created_at": now,
            "updated_at": now,
            "owner": self._gateway,
            "key_owner": claim.owner,
            "spelling": name.text,
            "revision": next_revision(connection),
        }
        connection.execute(insert(versions).values(values))
        self.limits.check_stock(connection, name, received, exempt=claim.exempt)
        return version_numbered(connection, name, number)


_DELETED: Final[Mapping[str, Any]] = {
    "deleted": True,
    "active_version": None,
    "bound": False,
    "key_owner": None,
    "traffic": None,
}
"""Columns of a deleted adapter: any uploader may take the name again."""
