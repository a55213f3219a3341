"""Roll-outs in the catalogue: an adapter's requests divided among several versions until one is promoted."""

from sqlalchemy import Connection, select, update

from app.domain.errors import NO_TRAFFIC, VERSION_NOT_READY, Refused
from app.domain.rollout import Rollout, Wanted, all_to, stable_version
from app.domain.version_state import SERVABLE, State
from app.store.catalogue.beginning import not_ready
from app.store.catalogue.queries import Name, adapter_named, version_numbered
from app.store.catalogue.tables import AdapterRecord, AdapterRow, VersionRow, adapters
from app.store.catalogue.writer import CatalogueWriter
from app.store.cluster.peers import next_revision


class RolloutCatalogue(CatalogueWriter):
    """Roll-outs. The adapter's active version is the stable one: an abort leaves its requests to it."""

    def set_traffic(self, name: Name, wanted: Wanted) -> AdapterRow:
        """Begin a roll-out, or change its weights. Moves the name to the stable version (`stable_version`).

        Raises Refused VERSION_NOT_FOUND, or VERSION_NOT_READY for a version that was never published.
        """
        with self._database.writing() as connection:
            adapter = adapter_named(connection, name, lock=True)
            rows = {number: version_numbered(connection, name, number) for number in sorted(wanted.versions)}
            for row in rows.values():
                if row.state not in SERVABLE:
                    raise not_ready(row)
            assert adapter.active is not None  # there is a published version
            begun = adapter.rollout is not None
            stable = stable_version(adapter.active, wanted.weights, begun=begun)
            rollout = (adapter.rollout or all_to(stable)).to(wanted, str(adapter.name))
            self._write_rollout(connection, adapter, rollout)
            if rows[stable].state is State.RETIRED:
                self._point(connection, adapter, rows[stable])
            return adapter_named(connection, name).public

    def promote(self, name: Name, number: int, evaluation: str | None = None) -> VersionRow:
        """Give all requests to one version of the roll-out, which ends.

        Versions that still wait for the engine are retired, as by a rollback (evaluation: as there). Raises Refused
        NO_TRAFFIC, or VERSION_NOT_READY if the version has no part in it.
        """
        with self._database.writing() as connection:
            adapter = adapter_named(connection, name, lock=True)
            row = version_numbered(connection, name, promoted(adapter.public, number))
            self._retire_waiting(connection, adapter, evaluation)
            self._end_rollout(connection, adapter)
            return row if row.number == adapter.active else self._point(connection, adapter, row)

    def abort(self, name: Name, rollout: Rollout | None = None, evaluation: str | None = None) -> AdapterRow:
        """End the roll-out: all requests go to the stable version.

        rollout: end it only if it is still this one. Versions that still wait for the engine are retired, as by a rollback
        (evaluation: as there): none of them must take the name. Raises Refused NO_TRAFFIC.
        """
        with self._database.writing() as connection:
            adapter = adapter_named(connection, name, lock=True)
            if adapter.rollout is None or rollout not in (None, adapter.rollout):
                raise no_traffic(adapter.public)
            self._retire_waiting(connection, adapter, evaluation)
            self._end_rollout(connection, adapter)
            return adapter_named(connection, name).public

    def rollouts(self) -> dict[str, Rollout]:
        """Return every roll-out by its adapter's name."""
        query = select(adapters.c.name, adapters.c.traffic).where(adapters.c.traffic.is_not(None))
        with self._database.reading() as connection:
            return {row.name: Rollout.read(row.traffic) for row in connection.execute(query)}

    def _end_rollout(self, connection: Connection, adapter: AdapterRecord) -> None:
        if adapter.rollout is not None:
            self._write_rollout(connection, adapter, None)

    def _write_rollout(self, connection: Connection, adapter: AdapterRecord, rollout: Rollout | None) -> None:
        written = None if rollout is None else rollout.write()
        connection.execute(update(adapters).where(adapters.c.id == adapter.id).values(traffic=written))
        next_revision(connection)


def promoted(adapter: AdapterRow, number: int | None) -> int:
    """Return the version to promote. Raises Refused as `RolloutCatalogue.promote`."""
    if adapter.rollout is None or adapter.active is None:
        raise no_traffic(adapter)
    others = adapter.rollout.others(adapter.active)
    if number is None and len(others) == 1:
        return others[0]
    if number in (*others, adapter.active):
        return number
    if number is not None:
        message = f"version {number} of {adapter.name.plain} has no part in its traffic"
        raise Refused(VERSION_NOT_READY, message, param="version", remedy="Give it a weight first, or promote another.")
    message = (
        f"{len(others)} versions of {adapter.name.plain} could be promoted: {', '.join(map(str, others)) or 'none'}"
    )
    raise Refused(VERSION_NOT_READY, message, param="version", remedy="Say which one: `version`.")


def no_traffic(adapter: AdapterRow) -> Refused:
    """Return the refusal for an adapter without a roll-out."""
    return Refused(NO_TRAFFIC, f"no roll-out of {adapter.name.plain} is under way", param="name")
