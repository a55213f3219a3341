"""Audit entries: who changed what, or was refused it, each bound to the one before by a hash."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

BEGINNING: Final = "0" * 64
"""Hash before the first entry."""


@dataclass(frozen=True, slots=True)
class Act:
    """One act of a caller. key: its key's id. tenant: in which it acted. action: method and route. target: full name of the
    adapter or key, "" for none. status: HTTP status of the answer, 499 if the client left. code: of the refusal, "" for
    none. address: the client's. request: its id."""

    at: datetime
    key: str
    tenant: str
    action: str
    target: str
    status: int
    code: str
    address: str
    request: str


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Act in the audit log. number: from 1 on, without gaps. previous, hash: SHA-256 in hex, of the entry before and of
    this one with `previous`."""

    number: int
    act: Act
    previous: str
    hash: str


def chained(act: Act, number: int, previous: str) -> AuditEntry:
    """Return the entry of an act that follows the entry with the hash `previous` (ours)."""
    fields = [
        number,
        act.at.isoformat(),
        *(act.key, act.tenant, act.action, act.target, act.status, act.code, act.address, act.request),
        previous,
    ]
    text = json.dumps(fields, ensure_ascii=True, separators=(",", ":"))
    return AuditEntry(number, act, previous, hashlib.sha256(text.encode()).hexdigest())


def first_broken(entries: Iterable[AuditEntry], number: int = 1, previous: str = BEGINNING) -> int | None:
    """Return the number of the first entry that is missing or does not follow from the one before; None if all do.

    number, previous: of the first entry that is expected, and the hash before it.
    """
    for entry in entries:
        if entry != chained(entry.act, number, previous):
            return number
        number, previous = number + 1, entry.hash
    return None
