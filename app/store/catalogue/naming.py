"""Owner and spelling of a name: settled by its first stored version, and by nothing before it."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, insert, update

from app.domain.api_keys import Uploader
from app.domain.errors import NAME_TAKEN, Refused
from app.domain.names import AdapterName
from app.store.catalogue.queries import adapter_keyed, adapter_named
from app.store.catalogue.tables import AdapterRecord, VersionRow, adapters, versions


@dataclass(frozen=True, slots=True)
class Claim:
    """Upload's right to a name. owner: present or future owner of the name. bound: whether the name is bound by now.
    exempt: as of the uploader."""

    owner: str | None
    bound: bool
    exempt: bool = False


def claim_of(connection: Connection, name: AdapterName, by: Uploader) -> Claim:
    """Return the claim that `by` has to `name`; locks the adapter. Raises Refused NAME_TAKEN.

    An upload to a bound name is made for the name's owner, even if an administrator sends it: they take over nothing.
    """
    adapter = adapter_keyed(connection, name)
    if adapter is None or not adapter.bound:
        return Claim(by.owner, bound=False, exempt=by.exempt)
    _check(adapter, name, adapter.key_owner if by.admin else by.owner)
    return Claim(adapter.key_owner, bound=True, exempt=by.exempt)


def numbered(connection: Connection, name: AdapterName, now: datetime) -> tuple[int, int]:
    """Return the adapter's id and its next version number, now used up. It is created if it is new.

    Until the adapter is bound, its name is spelled as in the latest upload.
    """
    found = adapter_keyed(connection, name)
    if found is None:
        values = {"name": name.text, "name_key": name.key, "created_at": now, "next_version": 2}
        made = connection.execute(insert(adapters).values(**values, deleted=False).returning(adapters.c.id))
        return int(made.scalar_one()), 1
    values = {"name": name.text, "deleted": False, "next_version": found.next_version + 1}
    connection.execute(update(adapters).where(adapters.c.id == found.id).values(values))
    return found.id, found.next_version


def bind(connection: Connection, row: VersionRow) -> None:
    """Bind the adapter to the spelling and the owner of the version about to be stored.

    Raises Refused NAME_TAKEN if another upload in flight at the same time was stored first, or if the name was
    transferred meanwhile.
    """
    adapter = adapter_keyed(connection, row.name)
    assert adapter is not None
    if adapter.bound:
        _check(adapter, row.name, row.key_owner)
        return
    values = {"name": row.name.text, "key_owner": row.key_owner, "bound": True}
    connection.execute(update(adapters).where(adapters.c.id == adapter.id).values(values))


def _check(adapter: AdapterRecord, name: AdapterName, owner: str | None) -> None:
    if adapter.name != name:
        raise Refused(NAME_TAKEN, f"{name.plain!r} differs from {adapter.name.plain!r} only in case", param="name")
    if adapter.key_owner not in (None, owner):
        raise Refused(NAME_TAKEN, f"{name.plain!r} belongs to the owner of another key", param="name")


def spelled(connection: Connection, name: AdapterName) -> AdapterRecord:
    """Set the spelling of the adapter's name and return the adapter; the caller has a claim to it."""
    connection.execute(update(adapters).where(adapters.c.name_key == name.key).values(name=name.text))
    return adapter_named(connection, name)


def owner_conditions(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions on the owner of equal bytes: none if the name is bound, else the claim's owner.

    On a bound name, equal bytes are one version for everyone who may push to it; until it is bound, only for one owner.
    """
    return () if claim.bound else (versions.c.key_owner.is_not_distinct_from(claim.owner),)
