"""Signals of the process: SIGHUP reloads the battery, SIGTERM and SIGINT drain requests before the server ends."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

from app.api.access.ending import Ending
from app.observe.log import event

ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def in_terminal() -> bool:
    """Return whether the process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def in_main_thread() -> bool:
    """Return whether this is the process's main thread: only that one receives signals."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def reload_on_sighup(reload: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Run `reload` on SIGHUP for the duration of the context.

    In a terminal SIGHUP says that the terminal was closed, and ends the gateway.
    """
    if in_terminal() or not in_main_thread():
        yield
        return
    loop, running = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    def start() -> None:
        running.add(task := loop.create_task(reload(), name="reload"))
        task.add_done_callback(running.discard)

    loop.add_signal_handler(signal.SIGHUP, start)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        for task in running:
            task.cancel()


@contextlib.contextmanager
def drain_before_the_end(ending: Ending, seconds: float) -> Iterator[None]:
    """Drain requests on SIGTERM and SIGINT, and only then pass the signal on to the server's own handler.

    A second signal is passed on at once. seconds: see Ending.drain.
    """
    if not in_main_thread():
        yield
        return
    handler = _Drain(ending, seconds)
    try:
        yield
    finally:
        handler.close()


class _Drain:
    """Handler of ENDING_SIGNALS, in the place of those that were there before."""

    def __init__(self, ending: Ending, seconds: float) -> None:
        self._ending, self._seconds = ending, seconds
        self._loop = asyncio.get_running_loop()
        self._before = {one: signal.getsignal(one) for one in ENDING_SIGNALS}
        self._task: asyncio.Task[None] | None = None
        for one in ENDING_SIGNALS:
            self._loop.add_signal_handler(one, self._begin, one)

    def _begin(self, number: signal.Signals) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._drain(number), name="drain")
        else:
            self._task.cancel()
            self._pass_on(number)

    async def _drain(self, number: signal.Signals) -> None:
        event("stopping", signal=number.name, seconds=self._seconds)
        event("drained", cut_off=await self._ending.drain(self._seconds))
        self._pass_on(number)

    def _pass_on(self, number: signal.Signals) -> None:
        self.close()
        signal.raise_signal(number)

    def close(self) -> None:
        """Put the handlers from before in force again. Safe to call twice."""
        for one, handler in self._before.items():
            self._loop.remove_signal_handler(one)
            signal.signal(one, handler)
        self._before = {}
