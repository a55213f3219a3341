"""No body, whatever its shape, holds the event loop, or the interpreter's lock, for long."""

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from app.domain.errors import GatewayError
from app.load.client.engine import HttpEngine
from app.serve.relay import Relay, only
from app.serve.request import parse
from app.serve.routing_table import RoutingTable
from tests.support.large_bodies import Body, large_bodies
from tests.support.simulator import MODEL, Simulator

HELD_S = 0.020
"""Seconds of the processor's time that one callback on the loop may take."""

LOCKED_S = 0.040
"""Seconds of the processor's time for which one call of C code in another thread may keep the interpreter's lock, and the
5 ms for which Python lets any thread run."""

TRIES = 4
"""What is too long once is tried again: another process may have had the caches, or this thread was not let run."""


@contextlib.contextmanager
def callbacks() -> Iterator[list[float]]:
    """The longest callback on the loop so far, by the processor time of its thread."""
    longest, run = [0.0], asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        longest[0] = max(longest[0], time.thread_time() - began)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", timed)
        yield longest


@pytest.mark.hostile("P14")
@pytest.mark.filterwarnings("ignore:Sending a large body")  # aiohttp's, of what it takes: that is measured here
async def test_no_body_holds_the_loop(simulator: Simulator, simulated_client: HttpEngine) -> None:
    relay = Relay(only(simulated_client), RoutingTable(MODEL))
    for body in large_bodies():
        raw = body.raw.replace(b'"model":"m"', b'"model":"%s"' % MODEL.encode(), 1)
        for _ in range(TRIES):
            with callbacks() as longest, contextlib.suppress(GatewayError):
                await relay.complete(body.kind, raw)
            if longest[0] < HELD_S:
                break
        assert longest[0] < HELD_S, f"{body.name}: {longest[0] * 1e3:.0f} ms"


def longest_lock(work: Callable[[], object]) -> float:
    """Processor time that another thread, doing `work`, had at a stretch while this one wanted the interpreter."""
    watched = threading.Event()
    other = threading.Thread(target=lambda: (watched.wait(), work()))
    other.start()
    assert other.ident is not None
    clock = time.pthread_getcpuclockid(other.ident)
    longest, before = 0.0, time.clock_gettime(clock)
    watched.set()
    while other.is_alive():
        with contextlib.suppress(OSError):  # it has just ended
            now = time.clock_gettime(clock)
            longest, before = max(longest, now - before), now
    return longest


@pytest.mark.hostile("P14")
def test_no_body_holds_the_interpreter() -> None:
    def read(body: Body) -> None:
        with contextlib.suppress(GatewayError):
            parse(body.kind, body.raw).encode("mine@0123456789ab")

    gc.collect()
    gc.freeze()  # as the gateway does when it is open: what the other tests left is not searched
    try:
        for body in large_bodies():
            for _ in range(TRIES):
                held = longest_lock(partial(read, body))
                if held < LOCKED_S:
                    break
            assert held < LOCKED_S, f"{body.name}: {held * 1e3:.0f} ms"
    finally:
        gc.unfreeze()
