"""Wire format between the gateway and its screening worker: settings, orders, frames and child statuses.

Everything is sent over stream sockets or a file, in units that carry their own length, so that truncation is detected:

- *settings*: the worker's standard input, JSON to the end of the file;
- *control* (gateway → worker): an order is one byte and three descriptors (`ORDER_DESCRIPTORS`); the worker reads nothing
  else of an upload. The worker's only answer is one frame when it has started;
- *status* (worker → gateway, one socket per order): `STATUS` structs: whether a child was started and how it ended;
- *line* (gateway ↔ child, one socket per order): frames. The first holds the order, the rest the child's answer.
"""

import json
import math
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any, Final

from app.domain.digest import Digest
from app.domain.lora import Received
from app.domain.policy_override import NO_OVERRIDE, PolicyOverride, override_from

FRAME: Final = struct.Struct(">IQ")
"""Header of a frame: length of the JSON and of the payload, in bytes; both follow."""

JSON_BYTES: Final = 64 << 20
"""Most bytes of one frame's JSON: a verdict on thousands of modules has a few MiB."""

ORDER: Final = b"\x01"
"""An order on the control socket. Its content is ignored: the descriptors sent with it are the order."""

ORDER_DESCRIPTORS: Final = 3
"""Descriptors of an order: status socket, line, weights. The status socket comes first: if the worker has room for one
descriptor only, the kernel passes that one, and the worker can still report the failure."""

STATUS: Final = struct.Struct(">Bi")
"""A child's status: `ChildStatus` and its number."""


class ChildStatus(IntEnum):
    """Kind of a status; each member's description gives the meaning of the number sent with it."""

    STARTED = 1
    """The child's process id; its pidfd is sent along if the system supports pidfds."""

    NOT_STARTED = 2
    """The errno of the failed start."""

    ENDED = 3
    """The child's exit code, negative for a signal."""


class OutOfFormError(Exception):
    """Malformed or unexpected frame."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Settings of a worker, sent once, at its start.

    reference: its directory. base_names: see ValidateLimits. policy, rungs: as `policy_from` reads them. memory_bytes: most
    memory of one child beyond its usage at the fork. wall_seconds: most wall-clock time of one child. The other fields are
    named as in TargetModel, ValidateLimits and Measure.
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
    rungs: list[Mapping[str, Any]] = field(default_factory=list)
    complete: bool = False

    def encoded(self) -> bytes:
        """Encode the settings for the worker's standard input."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decoded(cls, data: bytes) -> "WorkerSettings":
        """Decode settings that `encoded` wrote."""
        return cls(**json.loads(data))


class Line:
    """Connection that exchanges frames over a stream socket, until a deadline (monotonic; default: none).

    Sending and receiving raise TimeoutError after the deadline, and EOFError if the peer has closed the connection.
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
            done = 0
            while done < size:
                self._set_timeout()
                try:
                    read = self._stream.recv_into(view[done:])
                except ConnectionError as error:  # the peer closed the connection with our last frame unread
                    raise EOFError from error
                if not read:
                    raise EOFError
                done += read
        return bytes(data)

    def _set_timeout(self) -> None:
        left = self._deadline - time.monotonic()
        self._stream.settimeout(None if left == math.inf else max(1e-3, left))


@dataclass(frozen=True, slots=True)
class Order:
    """One upload to measure: adapter_config.json, the digests and sizes of the received parts, and the ladder's rung.

    complete, override: see `Sanitise`.
    """

    config: bytes
    received: Received
    rung: int = 0
    complete: bool = False
    override: PolicyOverride = NO_OVERRIDE

    def send(self, line: Line) -> None:
        """Send the order as one frame, the configuration as raw bytes. Raises as `Line`."""
        received = self.received
        digests = [received.config_digest.hex, received.weights_digest.hex]
        sizes = [received.config_bytes, received.weights_bytes]
        line.send({"order": [*digests, *sizes, self.rung, self.complete, asdict(self.override)]}, self.config)

    @classmethod
    def receive(cls, line: Line, max_config: int) -> "Order":
        """Receive an order that `send` wrote. Raises as `Line`."""
        fields, config = line.receive(max_config)
        try:
            config_hex, weights_hex, config_bytes, weights_bytes, rung, complete, override = fields["order"]
            received = Received(Digest(config_hex), Digest(weights_hex), int(config_bytes), int(weights_bytes))
            return cls(config, received, int(rung), bool(complete), override_from(override))
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise OutOfFormError(f"not an order: {type(error).__name__}") from error
