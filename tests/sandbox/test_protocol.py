"""Frames, orders, statuses and settings: whole at every size, and refused where they are not in form."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest

from app.domain.digest import digest_of
from app.domain.lora import Received
from app.domain.policy import Policy
from app.sandbox.protocol import FRAME, JSON_BYTES, STATUS, ChildStatus, Line, Order, OutOfFormError, WorkerSettings
from app.upload.limits import UploadLimits
from app.validate.adapter import ValidateLimits

CAP = UploadLimits().max_config_bytes
RECEIVED = Received(digest_of(b"config"), digest_of(b"weights"), 6, 7)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def framed(text: bytes, payload: bytes = b"") -> bytes:
    return FRAME.pack(len(text), len(payload)) + text + payload


def test_both_caps_of_a_configuration_are_one() -> None:
    assert ValidateLimits().max_config_bytes == CAP


def test_a_configuration_of_every_size_arrives_whole(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = map(Line, ends)
    noise = bytes(range(256)) * (CAP // 256 + 1)  # no text in any encoding
    for size in range(1, CAP + 2):
        order = Order(noise[-size:], RECEIVED)
        order.send(ours)
        assert Order.receive(theirs, CAP + 1) == order


def test_one_larger_than_the_socket_holds_arrives_whole(ends: tuple[socket.socket, socket.socket]) -> None:
    order = Order(bytes(8 << 20), RECEIVED)
    sender = threading.Thread(target=order.send, args=(Line(ends[0]),))
    sender.start()
    assert Order.receive(Line(ends[1]), 8 << 20) == order
    sender.join()


def test_an_order_cut_short_anywhere_is_an_end(ends: tuple[socket.socket, socket.socket]) -> None:
    Order(b"config", RECEIVED).send(Line(ends[0]))
    whole = ends[1].recv(1 << 16)
    for length in range(len(whole)):
        ours, theirs = socket.socketpair()
        with theirs:
            with ours:
                ours.sendall(whole[:length])
            with pytest.raises(EOFError):
                Order.receive(Line(theirs), CAP)


@pytest.mark.parametrize(
    "data",
    [
        *(framed(b"{}"), framed(b"[]"), framed(b"null"), framed(b"\xff"), framed(b"["), framed(b"[" * 200_000)),
        *(framed(b'{"order": 1}'), framed(b'{"order": ["a", "b", 1, 2]}'), framed(b'{"order": [1, 2, 3, 4]}')),
        *(framed(b'{"order": {"a": 1}}'), framed(b'{"order": [' + b"1," * 9 + b"1]}"), framed(b"9" * 5000)),
        *(FRAME.pack(JSON_BYTES + 1, 0), FRAME.pack(2, CAP + 1), b"\xff" * FRAME.size),
    ],
)
def test_garbage_is_no_order(ends: tuple[socket.socket, socket.socket], data: bytes) -> None:
    sender = threading.Thread(target=ends[0].sendall, args=(data,))
    sender.start()
    with pytest.raises(OutOfFormError):
        Order.receive(Line(ends[1]), CAP)
    sender.join()


def test_too_late_is_a_timeout_on_either_side(ends: tuple[socket.socket, socket.socket]) -> None:
    line = Line(ends[0], time.monotonic() + 0.05)
    with pytest.raises(TimeoutError):
        line.receive(0)
    with pytest.raises(TimeoutError):
        line.send({}, bytes(8 << 20))


def test_an_end_is_one_whether_read_or_written(ends: tuple[socket.socket, socket.socket]) -> None:
    line = Line(ends[0])
    line.send({})
    ends[1].close()  # with our frame unread, which Linux reports as a reset
    with pytest.raises(EOFError):
        line.receive(0)
    with pytest.raises(EOFError):
        line.send({})


def test_a_status_holds_what_the_system_knows() -> None:
    for number in (-64, 0, 255, 1 << 22):  # signals, codes, the largest process id
        what, back = STATUS.unpack(STATUS.pack(ChildStatus.ENDED, number))
        assert (ChildStatus(what), back) == (ChildStatus.ENDED, number)


def test_settings_come_back_as_they_were() -> None:
    settings = WorkerSettings(
        model="served",
        dtype="float32",
        max_rank=16,
        max_scaling=64.0,
        base_names=["a", "ü"],
        max_config_bytes=CAP,
        reference="/reference",
        reference_digest="0" * 64,
        policy=asdict(Policy()),
        screen_seconds=60.0,
        memory_bytes=1 << 30,
        wall_seconds=180.0,
        rungs=[asdict(Policy(energy=0.7))],
    )
    for one in (settings, replace(settings, base_names=None), replace(settings, base_names=["n" * 100] * 100_000)):
        assert WorkerSettings.decoded(one.encoded()) == one
