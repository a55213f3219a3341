"""Fleet discovered by DNS: every address of one name is an engine, and the name is looked up again and again.

A new address is filled with adapters, like an engine that came back, before it gets requests for them. An address that
has disappeared gets no more requests, and its connections are closed once its requests in flight have ended. While DNS
does not answer, nothing changes.
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
"""Seconds between lookups: of the order of the time for which answers of Kubernetes' DNS may be cached."""


async def lookup(name: DnsName) -> frozenset[str]:
    """Look up a name's engines, as URLs, with the system's resolver.

    IPv6 addresses count only if there is no IPv4 address, so that an engine with both is one engine. Raises OSError,
    also if the name has no address.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name.host, name.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # Python's error for a part of the name that is empty or too long
        raise OSError("it is no host name") from error
    kinds = {family: {str(at[0]) for one, *_, at in found if one == family} for family, *_ in found}
    if plain := kinds.get(socket.AF_INET):
        return frozenset(f"http://{address}:{name.port}" for address in plain)
    return frozenset(f"http://[{address}]:{name.port}" for address in kinds.get(socket.AF_INET6, ()))


async def addresses(name: DnsName) -> tuple[str, ...]:
    """Return the URLs of a name's engines now, sorted. Raises Unavailable ENGINE_UNAVAILABLE if the lookup fails."""
    try:
        return tuple(sorted(await lookup(name)))
    except OSError as error:
        raise Unavailable(ENGINE_UNAVAILABLE, f"{name.host} leads nowhere: {error.strerror or error}") from error


class DiscoveredFleet(Fleet):
    """Fleet of the engines that one name resolves to. Empty until the first lookup.

    made: creates the client of an engine from its URL.
    report: called with a message for people about each change, one line.
    """

    def __init__(
        self,
        name: DnsName,
        made: Callable[[str], CheckedEngine],
        callbacks: Callbacks,
        *,
        on_result: Callable[[int, Result], None] = lambda _number, _result: None,
        make_reconciler: Callable[[HttpEngine, Callbacks], Reconciler] = Reconciler,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__((), callbacks, on_result=on_result, make_reconciler=make_reconciler)
        self._name, self._made, self._report = name, made, report
        self._complete = False
        self._last_line = ""
        self._discovery: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the lookups, and the reconcilers of the engines. Needs a running loop."""
        super().start()
        if self._discovery is None:
            self._discovery = asyncio.create_task(self._run(), name="discovery")

    async def stop(self) -> None:
        """Stop the background tasks; the engines keep their adapters."""
        task, self._discovery = self._discovery, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await super().stop()

    async def look(self) -> None:
        """Look the name up once, and add and remove engines accordingly."""
        try:
            found = await lookup(self._name)
        except OSError as error:
            self._report_new(f"{self._name.host} cannot be looked up, its engines stay: {error.strerror or error}")
            return
        here = {member.engine.url: member for member in self.members}
        room = MAX_ENGINES - len(here.keys() & found)
        fresh = sorted(found - here.keys())
        for url in fresh[:room]:
            self._report(f"{url} is engine {self.join(self._made(url), key=url).number}")
        for url in sorted(here.keys() - found):
            self._report(f"{url} was engine {here[url].number}")
            self.part(here[url])
        self._complete = True
        self._report_new(f"{len(fresh) - room} engines too many, at most {MAX_ENGINES}" if len(fresh) > room else "")

    def _report_new(self, line: str) -> None:
        """Report `line` unless it is empty or was the last one reported."""
        if line and line != self._last_line:
            self._report(line)
        self._last_line = line

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # a bug must not end the lookups
                logging.getLogger("gateway").exception("looking for engines broke")
            await asyncio.sleep(LOOKUP_S)


def fleet_of(
    urls: Sequence[str],
    made: Callable[[str], CheckedEngine],
    callbacks: Callbacks,
    *,
    on_result: Callable[[int, Result], None],
    make_reconciler: Callable[[HttpEngine, Callbacks], Reconciler],
    report: Callable[[str], None],
) -> Fleet | None:
    """Return the fleet of these URLs; None if they mean one engine, or none.

    The other parameters are those of Fleet and DiscoveredFleet.
    """
    name = dns_name(urls[0]) if urls else None
    if name is not None:
        return DiscoveredFleet(
            name, made, callbacks, on_result=on_result, make_reconciler=make_reconciler, report=report
        )
    return (
        Fleet([made(url) for url in urls], callbacks, on_result=on_result, make_reconciler=make_reconciler)
        if len(urls) > 1
        else None
    )
