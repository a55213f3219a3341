"""Whose a name is and how it is spelled: settled by the first version that is stored, and by nothing before it."""

from dataclasses import dataclass

from sqlalchemy import Connection, update

from app.domain.api_keys import Uploader
from app.domain.errors import NAME_TAKEN, Refused
from app.domain.names import AdapterName
from app.store.catalogue.queries import adapter_keyed, adapter_named
from app.store.catalogue.tables import AdapterRecord, VersionRow, adapters


@dataclass(frozen=True, slots=True)
class Claim:
    """An upload's right to a name. owner: whom the name belongs to, or would. bound: whether it belongs to it by now."""

    owner: str | None
    bound: bool


def claim_of(connection: Connection, name: AdapterName, by: Uploader) -> Claim:
    """The claim that `by` has to `name`; locks the adapter. Raises Refused NAME_TAKEN.

    An upload to a name that is bound is made for its owner, whoever sends it: an administrator takes over nothing.
    """
    adapter = adapter_keyed(connection, name)
    if adapter is None or not adapter.bound:
        return Claim(by.owner, bound=False)
    _check(adapter, name, adapter.key_owner if by.admin else by.owner)
    return Claim(adapter.key_owner, bound=True)


def bind(connection: Connection, row: VersionRow) -> None:
    """Bind the adapter to the spelling and the owner of the version about to be stored. Raises Refused NAME_TAKEN where
    another upload that was under way at the same time was stored first, or the name was transferred meanwhile.
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
        raise Refused(NAME_TAKEN, f"{name.text!r} differs from {adapter.name.text!r} only in case", param="name")
    if adapter.key_owner not in (None, owner):
        raise Refused(NAME_TAKEN, f"{name.text!r} belongs to the owner of another key", param="name")


def spelled(connection: Connection, name: AdapterName) -> AdapterRecord:
    """The adapter, spelled like this from now on: for who has a claim to it."""
    connection.execute(update(adapters).where(adapters.c.name_key == name.key).values(name=name.text))
    return adapter_named(connection, name)
