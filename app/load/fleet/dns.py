"""A fleet whose engines DNS names: every address of one name is an engine, and which those are is asked again and again.

An address that appears is filled like an engine that came back, before it gets requests for adapters. One that disappears
gets no more requests and is let go once what is in flight on it is over. When DNS does not answer, nothing changes.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Final

from app.domain.engine_address import MAX_ENGINES, DnsName, dns_name
from app.domain.errors import ENGINE_UNAVAILABLE, Unavailable
from app.load.client.engine import HttpEngine
from app.load.fleet.fleet import Fleet
from app.load.fleet.member import CheckedEngine, Result
from app.load.reconcile.callbacks import Callbacks
from app.load.reconcile.reconciler import Reconciler

LOOKUP_S: Final = 5.0
"""Seconds between lookups: what Kubernetes' DNS lets its own answers be kept for is of that order."""


async def lookup(name: DnsName) -> frozenset[str]:
    """A name's engines, as URLs, by the system's resolver. Who has addresses of both kinds is one: IPv4 where there is any.

    Raises OSError, also when the name has no address.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name.host, name.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # how Python says that a part of it is empty or too long
        raise OSError("it is no host name") from error
    kinds = {family: {str(at[0]) for one, *_, at in found if one == family} for family, *_ in found}
    if plain := kinds.get(socket.AF_INET):
        return frozenset(f"http://{address}:{name.port}" for address in plain)
    return frozenset(f"http://[{address}]:{name.port}" for address in kinds.get(socket.AF_INET6, ()))


async def addresses(name: DnsName) -> tuple[str, ...]:
    """A name's engines now, in order. Raises Unavailable ENGINE_UNAVAILABLE when DNS does not say."""
    try:
        return tuple(sorted(await lookup(name)))
    except OSError as error:
        raise Unavailable(ENGINE_UNAVAILABLE, f"{name.host} leads nowhere: {error.strerror or error}") from error


class DiscoveredFleet(Fleet):
    """As Fleet, of the engines that one name leads to. Empty until it was looked up.

    made: an engine of its URL. say: told of each change, a line for people.
    """

    def __init__(
        self,
        name: DnsName,
        made: Callable[[str], CheckedEngine],
        callbacks: Callbacks,
        *,
        heard: Callable[[int, Result], None] = lambda _number, _result: None,
        keeper: Callable[[HttpEngine, Callbacks], Reconciler] = Reconciler,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__((), callbacks, heard=heard, keeper=keeper)
        self._name, self._made, self._say = name, made, say
        self._complete = False
        self._said = ""
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to look, and to look after what is found. Needs a running loop."""
        super().start()
        if self._looking is None:
            self._looking = asyncio.create_task(self._run(), name="discovery")

    async def stop(self) -> None:
        """Stop the background tasks; the engines keep what they hold."""
        task, self._looking = self._looking, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await super().stop()

    async def look(self) -> None:
        """Look the name up once, and have those engines that it leads to now."""
        try:
            found = await lookup(self._name)
        except OSError as error:
            self._once(f"{self._name.host} cannot be looked up, its engines stay: {error.strerror or error}")
            return
        here = {member.engine.url: member for member in self.members}
        room = MAX_ENGINES - len(here.keys() & found)
        fresh = sorted(found - here.keys())
        for url in fresh[:room]:
            self._say(f"{url} is engine {self.join(self._made(url), key=url).number}")
        for url in sorted(here.keys() - found):
            self._say(f"{url} was engine {here[url].number}")
            self.part(here[url])
        self._complete = True
        self._once(f"{len(fresh) - room} engines too many, at most {MAX_ENGINES}" if len(fresh) > room else "")

    def _once(self, line: str) -> None:
        """Say it, unless it was said last."""
        if line and line != self._said:
            self._say(line)
        self._said = line

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # a bug must not leave the fleet as it is for ever
                logging.getLogger("gateway").exception("looking for engines broke")
            await asyncio.sleep(LOOKUP_S)


def fleet_of(
    urls: Sequence[str],
    made: Callable[[str], CheckedEngine],
    callbacks: Callbacks,
    *,
    heard: Callable[[int, Result], None],
    keeper: Callable[[HttpEngine, Callbacks], Reconciler],
    say: Callable[[str], None],
) -> Fleet | None:
    """The fleet that these URLs mean; None where they are one engine's, or none. The rest: see Fleet, DiscoveredFleet."""
    name = dns_name(urls[0]) if urls else None
    if name is not None:
        return DiscoveredFleet(name, made, callbacks, heard=heard, keeper=keeper, say=say)
    return Fleet([made(url) for url in urls], callbacks, heard=heard, keeper=keeper) if len(urls) > 1 else None
