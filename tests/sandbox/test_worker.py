"""The worker and the gateway's end of it: what one order lacks or holds fails that order, and nothing beside it."""

import errno
import gc
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from app.domain.errors import BAD_CONFIG, SCREENING_FAILED, SCREENING_KILLED, SCREENING_TIMEOUT, Unavailable
from app.sandbox.client import Sandbox
from app.sandbox.protocol import FRAME, ORDER, STATUS, ChildStatus, Line
from app.sandbox.sanitise import Measure
from app.sandbox.worker import NICENESS
from tests.support.adapters import Upload
from tests.support.sandboxes import (
    BOUND_S,
    MEMORY,
    InFlight,
    children,
    descriptors,
    refused,
    sound,
    sound_in_the_end,
    through,
    worker_pid,
)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def our_descriptors() -> set[tuple[int, str]]:
    """Open files of this process as (number, file), so that a leak into a number that became free is seen too.

    Without what earlier tests left to the garbage collector; their servers may hold another for a moment.
    """
    gc.collect()
    found = set()
    for number in descriptors(os.getpid()):
        with suppress(FileNotFoundError):  # closed meanwhile, as the one that listed them
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


def state(pid: int) -> str:
    """Of a process: Z is dead and not reaped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def unmeasured(sandbox: Sandbox, upload: Upload, directory: Path) -> str:
    """It fails as the gateway's own failure; its message."""
    with pytest.raises(Unavailable) as caught:
        through(sandbox, upload, directory)
    assert caught.value.code is SCREENING_FAILED
    assert caught.value.code.retryable
    return caught.value.message


# ---- orders that cannot be carried out ---------------------------------------------------------------------------------


def test_a_failed_fork_fails_one_upload(
    measure: Measure, tiny_reference_dir: Path, upload: Upload, tmp_path: Path
) -> None:
    module = "tests.support.failing_fork_worker"
    sandbox = Sandbox(measure, tiny_reference_dir, MEMORY, wall_seconds=600, module=module)
    try:
        with InFlight(sandbox, upload, tmp_path / "beside") as beside:
            pid = worker_pid(sandbox)
            until(lambda: state(pid) == "S")  # it has done with the one beside, and waits
            before, ours = descriptors(pid), our_descriptors()
            for _ in range(3):
                assert os.strerror(errno.EAGAIN) in unmeasured(sandbox, upload, tmp_path)
                sound(sandbox, upload, tmp_path)
            until(lambda: descriptors(pid) == before)  # a child that ended is reaped a moment later
            until(lambda: our_descriptors() <= ours)
            assert worker_pid(sandbox) == pid
            beside.finished()
    finally:
        sandbox.close()


@contextmanager
def room_for(pid: int, count: int) -> Iterator[None]:
    """No more than so many descriptors free in process `pid`."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = set(descriptors(pid))
    free = [number for number in range(max(taken) + count + 2) if number not in taken]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[count], hard))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("count", range(5))
def test_too_few_descriptors_in_the_worker_fail_one_upload(
    bad: Sandbox, upload: Upload, tmp_path: Path, count: int
) -> None:
    with InFlight(bad, upload, tmp_path / "beside") as beside:
        pid = worker_pid(bad)
        until(lambda: state(pid) == "S")  # it has done with the one beside, and waits
        before = descriptors(pid)
        with room_for(pid, count):
            if count < 3:
                message = unmeasured(bad, upload, tmp_path)
                assert os.strerror(errno.EMFILE) in message or count == 0
            else:  # with three there is none for the handle that a child is ended with, which is missed only in need
                sound(bad, upload, tmp_path)
        sound(bad, upload, tmp_path)
        until(lambda: descriptors(pid) == before)
        assert worker_pid(bad) == pid
        beside.finished()


@pytest.mark.parametrize("pair", [0, 1])
def test_no_descriptor_in_the_gateway_fails_one_upload(
    bad: Sandbox, upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: int
) -> None:
    sound(bad, upload, tmp_path)
    before, real, calls = our_descriptors(), socket.socketpair, iter(range(9))

    def fails() -> tuple[socket.socket, socket.socket]:
        if next(calls) == pair:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real()

    with monkeypatch.context() as patched:
        patched.setattr("app.sandbox.client.socket.socketpair", fails)
        assert os.strerror(errno.EMFILE) in unmeasured(bad, upload, tmp_path)
    until(lambda: our_descriptors() <= before)
    sound(bad, upload, tmp_path)


@pytest.mark.parametrize("code", [errno.ETOOMANYREFS, errno.ENOBUFS, errno.EMSGSIZE, errno.EBADF, errno.ENOMEM])
def test_an_order_that_the_system_does_not_pass_on_fails_alone(
    bad: Sandbox, upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fails(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with InFlight(bad, upload, tmp_path / "beside") as beside:
        pid = worker_pid(bad)
        with monkeypatch.context() as patched:
            patched.setattr("app.sandbox.process.socket.send_fds", fails)
            assert os.strerror(code) in unmeasured(bad, upload, tmp_path)
        sound(bad, upload, tmp_path)
        assert worker_pid(bad) == pid
        beside.finished()


def test_a_worker_that_cannot_be_started_is_a_refusal_and_leaks_nothing(
    measure: Measure, tiny_reference_dir: Path, upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    sandbox = Sandbox(measure, tiny_reference_dir, MEMORY)
    before = our_descriptors()
    with monkeypatch.context() as patched:
        patched.setattr("app.sandbox.process.subprocess.Popen", fails)
        assert "does not start" in unmeasured(sandbox, upload, tmp_path)
        with pytest.raises(Unavailable):
            sandbox.start()
    until(lambda: our_descriptors() <= before)


# ---- orders by hand ----------------------------------------------------------------------------------------------------


@contextmanager
def by_hand(sandbox: Sandbox, data: bytes, passed: int, *, order: bytes = ORDER) -> Iterator[socket.socket]:
    """An order with `data` on its line, which then ends, and so many of its descriptors; the status socket."""
    assert sandbox._worker is not None
    pairs = [socket.socketpair(), socket.socketpair()]
    (heard, status), (ours, line) = pairs
    heard.settimeout(BOUND_S)
    with heard, ours, open(os.devnull, "rb") as weights:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        with status, line:
            numbers = [status.fileno(), line.fileno(), weights.fileno(), weights.fileno(), weights.fileno()]
            if passed:
                socket.send_fds(sandbox._worker.control, [order], numbers[:passed])
            else:
                sandbox._worker.control.sendall(order)
        yield heard


def statuses(heard: socket.socket) -> list[tuple[int, int]]:
    data = b""
    while more := heard.recv(1 << 10):
        data += more
    return list(STATUS.iter_unpack(data))


GARBAGE = [
    *(b"", b"\0", FRAME.pack(0, 0), FRAME.pack(2, 0) + b"[]", FRAME.pack(2, 0) + b"{}", FRAME.pack(9, 9) + b"{}"),
    *(
        b"\xff" * 12,
        FRAME.pack(2, 1 << 60) + b"{}",
        FRAME.pack(1, MEMORY) + b"1",
        FRAME.pack(100_000, 0) + b"[" * 100_000,
    ),
]


def test_garbage_and_truncated_orders_end_their_child_alone(bad: Sandbox, upload: Upload, tmp_path: Path) -> None:
    with InFlight(bad, upload, tmp_path / "beside") as beside:
        pid = worker_pid(bad)
        until(lambda: state(pid) == "S")  # it has done with the one beside, and waits
        before = descriptors(pid)
        for data in GARBAGE:
            with by_hand(bad, data, 3) as heard:
                (started, _), (ended, code) = statuses(heard)
            assert (started, ended, code) == (ChildStatus.STARTED, ChildStatus.ENDED, os.EX_OSERR), data[:20]
        for passed in (1, 2, 4, 5):
            with by_hand(bad, b"", passed) as heard:
                assert statuses(heard) == [(ChildStatus.NOT_STARTED, errno.EMFILE)], passed
        with by_hand(bad, b"", 0, order=b"\xff" * (1 << 12)) as heard:
            assert statuses(heard) == []
        sound(bad, upload, tmp_path)
        until(lambda: descriptors(pid) == before)
        assert worker_pid(bad) == pid
        beside.finished()


def test_a_child_that_could_not_be_set_up_is_not_the_uploads_fault(
    bad: Sandbox, upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound(bad, upload, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("app.sandbox.client.Order.send", lambda _, line: line.send({"order": None}))
        assert "could not be set up" in unmeasured(bad, upload, tmp_path)
    sound(bad, upload, tmp_path)


# ---- processes that hang -----------------------------------------------------------------------------------------------


def test_a_child_is_ended_though_the_worker_hangs_and_nothing_else_is(
    hasty: Sandbox, upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sandbox.client.GRACE_S", 0.2)
    sound_in_the_end(hasty, upload, tmp_path)
    pid = worker_pid(hasty)
    real = Line.receive

    def stops(line: Line, most: int) -> object:
        os.kill(pid, signal.SIGSTOP)
        return real(line, most)

    with monkeypatch.context() as patched:
        patched.setattr("app.sandbox.client.Line.receive", stops)
        assert refused(hasty, upload, tmp_path, f"signal:{int(signal.SIGSTOP)}").code is SCREENING_TIMEOUT
    try:
        assert children(pid)
        until(lambda: all(state(child) == "Z" for child in children(pid)))
    finally:
        os.kill(pid, signal.SIGCONT)
    sound_in_the_end(hasty, upload, tmp_path)
    assert worker_pid(hasty) == pid


def test_a_hung_worker_is_replaced_and_keeps_what_it_has(
    measure: Measure, bad: Sandbox, upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sandbox.process.TAKE_S", 0.2)
    with InFlight(bad, upload, tmp_path / "beside") as beside:
        assert bad._worker is not None
        hung = bad._worker
        os.kill(hung.process.pid, signal.SIGSTOP)
        assert "replaced" in unmeasured(bad, upload, tmp_path)
        monkeypatch.undo()
        sound(bad, upload, tmp_path)
        assert worker_pid(bad) != hung.process.pid
        assert hung.process.poll() is None
        beside.finished()
    assert hung.process.poll() == -signal.SIGKILL, "with its last upload it goes"
    assert hung.control.fileno() == -1


def test_a_retired_worker_goes_with_its_sandbox(
    measure: Measure, tiny_reference_dir: Path, upload: Upload, tmp_path: Path
) -> None:
    sandbox = Sandbox(measure, tiny_reference_dir, MEMORY, module="tests.support.bad_sandbox_worker", wall_seconds=600)
    with InFlight(sandbox, upload, tmp_path / "beside") as beside:
        assert sandbox._worker is not None
        old = sandbox._worker
        old.retire()
        sound(sandbox, upload, tmp_path)
        sandbox.close()
        assert old.process.poll() is not None
        with pytest.raises(Unavailable, match="ended from outside"):
            beside.finished()


# ---- what is held ------------------------------------------------------------------------------------------------------


def test_no_way_to_end_leaves_a_descriptor_open(hasty: Sandbox, upload: Upload, tmp_path: Path) -> None:
    sound_in_the_end(hasty, upload, tmp_path)
    pid = worker_pid(hasty)
    until(lambda: not children(pid))
    ours, theirs = our_descriptors(), descriptors(pid)
    for wish in (
        "signal:9",
        "signal:11",
        "sleep",
        "look:files",
        "forge:noise",
        "forge:never done",
        "memory:" + "9" * 12,
    ):
        refused(hasty, upload, tmp_path, wish)
        sound_in_the_end(hasty, upload, tmp_path)
    until(lambda: not children(pid))
    until(lambda: descriptors(pid) == theirs)
    until(lambda: our_descriptors() <= ours)
    assert worker_pid(hasty) == pid


def test_a_child_holds_nothing_of_the_worker(bad: Sandbox, upload: Upload, tmp_path: Path) -> None:
    """Not its control socket, through which it could take another's order, nor the settings."""
    error = refused(bad, upload, tmp_path, "look:standard")
    assert error.code is BAD_CONFIG
    assert set(error.message.split()) == {os.devnull}


def test_steps_that_raise_end_the_child(bad: Sandbox, upload: Upload, tmp_path: Path) -> None:
    """Nobody is left to hear it, so it does not go on until its alarm."""

    class BrokenError(Exception):
        pass

    class Breaking:
        def took(self, *_: object) -> None:
            raise BrokenError

        def validated(self) -> None:
            raise BrokenError

        def screened(self, _: object) -> None:
            raise BrokenError

    sound(bad, upload, tmp_path)
    with pytest.raises(BrokenError):
        through(lambda config, file, received, _: bad(config, file, received, Breaking()), upload, tmp_path)
    until(lambda: not children(worker_pid(bad)))
    assert refused(bad, upload, tmp_path, "signal:9").code is SCREENING_KILLED


def test_a_child_leaves_the_processors_to_chat(bad: Sandbox, upload: Upload, tmp_path: Path) -> None:
    """It yields to the gateway, whose session's share it uses: no engine that is always busy can starve it."""
    with InFlight(bad, upload, tmp_path / "one") as one:
        until(lambda: len(children(worker_pid(bad))) == 1)
        (child,) = children(worker_pid(bad))
        assert os.getpriority(os.PRIO_PROCESS, child) == os.getpriority(os.PRIO_PROCESS, 0) + NICENESS
        assert os.getsid(child) == os.getsid(0)
        one.finished()
