"""Key ring: the keys that this gateway accepts now, given at its start or made at run time by any gateway."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Final

from app.concurrency.pools import Pools
from app.domain.api_keys import Key, Role, digest_of_key, new_key, new_secret
from app.domain.errors import BAD_REQUEST, KEY_EXISTS, GatewayError, Refused
from app.domain.shares import Shares
from app.domain.stored_key import StoredKey
from app.observe.log import event
from app.store.catalogue.keys import KeyStore

LOOK_S: Final = 0.4
"""Seconds between two looks for keys that another gateway changed: a revoked one is refused everywhere within a second."""

LOOK_ALONE_S: Final = 5.0
"""The same for a gateway with a catalogue of its own, whose changes are in force at once unless reading them failed."""

REREAD_S: Final = 3600.0
"""Seconds between two readings of every key: rows of revoked ones are deleted after a day by the database's or another
machine's clock, and this process may have been suspended for longer."""

USED_S: Final = 60.0
"""Seconds between two records of the keys' last uses."""


class KeyRing:
    """Keys that this gateway accepts. Used on the event loop, except for its making.

    given: keys of the environment and the keys file. shared: whether other gateways may change keys. shares: ledger that
    must know who may hold what.
    """

    def __init__(self, given: Iterable[Key], store: KeyStore, pools: Pools, shares: Shares, *, shared: bool) -> None:
        """Read the keys made at run time. Blocking. Raises Unavailable."""
        self._given = {key.digest: key for key in given}
        self._store, self._pools, self._shares, self._shared = store, pools, shares, shared
        self._stored: dict[str, StoredKey] = {}  # Key.id → key, without revoked ones
        self._accepted: dict[bytes, tuple[Key, datetime | None]] = {}
        self._used: dict[tuple[str, str], datetime] = {}
        self._revision, self._read_at = 0, time.monotonic()
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._following = asyncio.Lock()
        self._apply(store.changed_since(0))
        shares.know(self._keys())

    def find(self, digest: bytes) -> Key | None:
        """Return the key with this SHA-256; None if it is unknown, revoked or expired."""
        if (given := self._given.get(digest)) is not None:
            return given
        key, until = self._accepted.get(digest, (None, None))
        now = datetime.now(UTC)
        if key is None or (until is not None and now >= until):
            return None
        self._used[key.tenant, key.name] = now
        return key

    async def create(
        self, tenant: str, name: str, roles: Iterable[Role], owner: str | None, expires_at: datetime | None
    ) -> tuple[str, StoredKey]:
        """Make a key: its text, to be shown once, and its row. Raises Refused BAD_REQUEST, KEY_EXISTS, TOO_MANY_KEYS."""
        try:
            text, key = new_key(name, roles, owner, tenant)
        except ValueError as error:
            raise Refused(BAD_REQUEST, str(error)) from error
        if any(one.id == key.id for one in self._given.values()):
            raise Refused(KEY_EXISTS, f"the operator's files have a key {name!r} already", param="name")
        stored = await self._pools.store(self._store.create, key, expires_at)
        await self.follow()
        event("key_created", tenant=tenant, key=name, roles=",".join(sorted(key.roles)))
        return text, stored

    async def rotate(self, tenant: str, name: str, overlap_s: float) -> tuple[str, StoredKey]:
        """Replace a key: the text of the new one and its row. Raises Refused KEY_NOT_FOUND."""
        text = new_secret()
        try:
            stored = await self._pools.store(self._store.rotate, tenant, name, digest_of_key(text), overlap_s)
        finally:
            await self.follow()
        event("key_rotated", tenant=tenant, key=name, overlap_s=overlap_s)
        return text, stored

    async def revoke(self, tenant: str, name: str) -> None:
        """Revoke a key: no request that comes later is admitted with it. Raises Refused KEY_NOT_FOUND."""
        try:
            await self._pools.store(self._store.revoke, tenant, name)
        finally:  # also if it was revoked before: by a try after which this ring could not be read
            await self.follow()
        event("key_revoked", tenant=tenant, key=name)

    async def follow(self) -> None:
        """Read the keys that were changed since the last look, and put them in force. Raises Unavailable."""
        async with self._following:
            now = time.monotonic()
            whole = now - self._read_at > REREAD_S
            changed = await self._pools.heartbeat(self._store.changed_since, 0 if whole else self._revision)
            if whole:
                self._stored, self._accepted = {}, {}
            self._apply(changed)
            if whole:
                self._read_at = now
            if changed:
                await self._pools.heartbeat(self._shares.know, self._keys())

    def start(self) -> None:
        """Start the tasks. Needs a running loop."""
        look = LOOK_S if self._shared else LOOK_ALONE_S
        work = {"last uses": (USED_S, self._record_used), "keys": (look, self.follow)}
        self._tasks = tuple(asyncio.create_task(self._every(*each), name=name) for name, each in work.items())

    async def stop(self) -> None:
        """Stop the tasks, and record the last uses."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(GatewayError):
            await self._record_used()

    def _apply(self, changed: Iterable[StoredKey]) -> None:
        for stored in changed:
            before = self._stored.pop(stored.key.id, None)
            for digest in before.accepted() if before else ():
                self._accepted.pop(digest, None)
            if stored.revoked_at is None:
                self._stored[stored.key.id] = stored
                self._accepted |= {digest: (stored.key, until) for digest, until in stored.accepted().items()}
            self._revision = max(self._revision, stored.revision)

    def _keys(self) -> tuple[Key, ...]:
        now = datetime.now(UTC)
        living = (one.key for one in self._stored.values() if one.expires_at is None or one.expires_at > now)
        return (*self._given.values(), *living)

    async def _record_used(self) -> None:
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self._pools.store(self._store.record_used, used)
        except GatewayError:
            self._used = used | self._used
            raise

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        failing = False
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
                failing = False
            except GatewayError as error:
                if not failing:  # logged once, not twice a second
                    event("keys_not_followed", logging.ERROR, why=error.message)
                failing = True
            except Exception:  # a bug must not end the task: revoked keys would be accepted for ever
                logging.getLogger("gateway").exception("following keys broke")
