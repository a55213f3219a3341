"""Work for a client that may leave before it is answered."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request

T = TypeVar("T")


async def unless_disconnected(
    request: Request, working: Coroutine[Any, Any, T], discard: Callable[[T], object]
) -> T | None:
    """Await some work; cancel it and return None if the client disconnects first.

    The body has been read, so the next message is the disconnect. discard: releases a result that nobody will get, so that
    what it holds is free now and not at garbage collection.
    """
    work = asyncio.ensure_future(working)
    disconnected = asyncio.ensure_future(request.receive())

    def discarded(_: object) -> None:
        if not work.cancelled() and work.exception() is None:
            discard(work.result())

    try:
        await asyncio.wait({work, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        work.add_done_callback(discarded)
        return None
    except asyncio.CancelledError:
        work.add_done_callback(discarded)
        raise
    finally:
        work.cancel()
        disconnected.cancel()
