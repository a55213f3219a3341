"""Wire format between the gateway and its screening worker: settings, orders, frames and child statuses.

Everything travels over stream sockets or a file, in units that carry their own length, so nothing is ever cut short:

- *settings*: the worker's standard input, JSON to the end of the file;
- *control* (gateway → worker): an order is one byte and three descriptors (`ORDER_DESCRIPTORS`); the worker reads no more
  of an upload than that. The worker's only answer is one frame when it has started;
- *status* (worker → gateway, one socket an order): `STATUS` structs that say whether a child was started and how it ended;
- *line* (gateway ↔ child, one socket an order): frames. The first holds the order, the rest the child's answer.
"""

import json
import math
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Final

from app.domain.digest import Digest
from app.domain.lora import Received

FRAME: Final = struct.Struct(">IQ")
"""Header of a frame: bytes of JSON, bytes of payload; then both."""

JSON_BYTES: Final = 64 << 20
"""Most bytes of one frame's JSON: a verdict on thousands of modules has a few MiB."""

ORDER: Final = b"\x01"
"""An order on the control socket. Its content is not looked at: the descriptors that come with it are the order."""

ORDER_DESCRIPTORS: Final = 3
"""Descriptors of an order: status socket, line, weights. The status socket comes first: if the worker has room for one
descriptor only, the kernel passes that one, and the worker can still say so."""

STATUS: Final = struct.Struct(">Bi")
"""A child's status: `ChildStatus` and its number."""


class ChildStatus(IntEnum):
    """Meaning of a status, and of the number beside it."""

    STARTED = 1
    """The child's process id; the child's pidfd comes with it if the system has such."""

    NOT_STARTED = 2
    """The error number why there is no child."""

    ENDED = 3
    """The child's exit code, negative for a signal."""


class OutOfFormError(Exception):
    """A frame that is not as it should be."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """All that a worker is told, once, at its start.

    reference: its directory. base_names: see ValidateLimits. policy: as `policy_from` reads it. memory_bytes: what one
    child may take beyond what it has at birth. wall_seconds: of one child, by the clock. The others are named as in
    TargetModel, ValidateLimits and Measure.
    """

    model: str
    dtype: str
    max_rank: int
    max_scaling: float
    base_names: list[str] | None
    max_config_bytes: int
    reference: str
    reference_digest: str
    policy: Mapping[str, Any]
    screen_seconds: float
    memory_bytes: int
    wall_seconds: float

    def encoded(self) -> bytes:
        """As the worker's standard input."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decoded(cls, data: bytes) -> "WorkerSettings":
        """Settings as `encoded` wrote them."""
        return cls(**json.loads(data))


class Line:
    """Frames over a stream socket, both ways, until a deadline (monotonic; default: none).

    Sending and receiving raise TimeoutError after the deadline, and EOFError when the other end is gone.
    """

    def __init__(self, stream: socket.socket, deadline: float = math.inf) -> None:
        self._stream = stream
        self._deadline = deadline

    def send(self, fields: Mapping[str, Any], payload: bytes = b"") -> None:
        """Write one frame."""
        text = json.dumps(fields, allow_nan=False).encode()
        try:
            for part in (FRAME.pack(len(text), len(payload)) + text, payload):
                self._set_timeout()
                self._stream.sendall(part)
        except ConnectionError as error:
            raise EOFError from error

    def receive(self, max_payload: int) -> tuple[dict[str, Any], bytes]:
        """Read one frame: its JSON, and its payload of at most `max_payload` bytes. Raises OutOfFormError."""
        length, size = FRAME.unpack(self._read(FRAME.size))
        if length > JSON_BYTES or size > max_payload:
            raise OutOfFormError(f"a frame of {length} bytes of JSON and {size} bytes of payload")
        try:
            fields = json.loads(self._read(length))
        except (ValueError, RecursionError) as error:
            raise OutOfFormError(f"a frame without JSON: {type(error).__name__}") from error
        if not isinstance(fields, dict):
            raise OutOfFormError("a frame whose JSON is not an object")
        return fields, self._read(size)

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        with memoryview(data) as view:
            got = 0
            while got < size:
                self._set_timeout()
                try:
                    read = self._stream.recv_into(view[got:])
                except ConnectionError as error:  # the other end went away with our last frame unread
                    raise EOFError from error
                if not read:
                    raise EOFError
                got += read
        return bytes(data)

    def _set_timeout(self) -> None:
        left = self._deadline - time.monotonic()
        self._stream.settimeout(None if left == math.inf else max(1e-3, left))


@dataclass(frozen=True, slots=True)
class Order:
    """One upload to measure: adapter_config.json as it came, and the record of what arrived."""

    config: bytes
    received: Received

    def send(self, line: Line) -> None:
        """Write it as one frame, the configuration as raw bytes. Raises as `Line`."""
        received = self.received
        digests = [received.config_digest.hex, received.weights_digest.hex]
        line.send({"order": [*digests, received.config_bytes, received.weights_bytes]}, self.config)

    @classmethod
    def receive(cls, line: Line, max_config: int) -> "Order":
        """Read what `send` wrote. Raises as `Line`."""
        fields, config = line.receive(max_config)
        try:
            config_hex, weights_hex, config_bytes, weights_bytes = fields["order"]
            received = Received(Digest(config_hex), Digest(weights_hex), int(config_bytes), int(weights_bytes))
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise OutOfFormError(f"not an order: {type(error).__name__}") from error
        return cls(config, received)
