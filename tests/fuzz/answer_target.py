"""Fuzz target of the reader of a screening child's answer.

Frames are written as JSON and payload in turn, with `SEPARATOR` between all of them: no lengths to guess.
"""

import json
import math
import socket
import time
from types import SimpleNamespace
from typing import Any, Final

from app.domain.artefact import content_digest
from app.domain.digest import Digest, digest_of
from app.domain.errors import CODES, GatewayError, Stage
from app.domain.lora import Received, ServingDtype, Shape, TargetModel
from app.domain.policy import Policy
from app.domain.printable import MESSAGE_LIMIT
from app.domain.verdict import Outcome, Verdict
from app.prune.canonical_check import check_form
from app.sandbox.answer import AnswerReader
from app.sandbox.protocol import FRAME, Line, OutOfFormError
from app.sandbox.sanitise import Measure
from app.validate.adapter import ValidateLimits

SEPARATOR: Final = b"\n--\n"
MODULES: Final = {"model.layers.0.q_proj": Shape(2, 3), "model.layers.1.q_proj": Shape(2, 3)}
TARGET: Final = TargetModel("served", MODULES, ServingDtype.FLOAT32, 4)
RECEIVED: Final = Received(digest_of(b"c"), digest_of(b"w"), 1, 1)
REFERENCE: Any = SimpleNamespace(digest=Digest("0" * 64))
"""All that the reader asks of a reference."""

MEASURE: Final = Measure(TARGET, ValidateLimits(), REFERENCE, Policy(), 60.0)
READ_S: Final = 60.0
"""Seconds to read what is all there already."""


class Checking:
    """Steps that hold what they hear against what it must be."""

    def __init__(self) -> None:
        self.validated_first = False
        self.verdict: Verdict | None = None

    def took(self, stage: Stage, seconds: float, outcome: str) -> None:
        assert isinstance(stage, Stage)
        assert 0 <= seconds < math.inf
        assert outcome in {"ok", "failed", *CODES}

    def validated(self) -> None:
        assert self.verdict is None
        self.validated_first = True

    def screened(self, verdict: Verdict) -> None:
        assert self.validated_first
        assert {module.name for module in verdict.modules} <= set(MODULES)
        self.verdict = verdict


def stream(data: bytes) -> bytes:
    """The bytes on the socket."""
    if data[:1] and data[0] & 1:
        return data[1:]
    parts = data[1:].split(SEPARATOR)
    pairs = zip(parts[::2], [*parts[1::2], b""], strict=False)
    return b"".join(FRAME.pack(len(text), len(payload)) + text + payload for text, payload in pairs)


def answer(data: bytes) -> None:
    """Read to its end, to a refusal of the table, or refused as out of form; nothing else may come of it."""
    ours, theirs = socket.socketpair()
    steps = Checking()
    with ours:
        with theirs:
            theirs.sendall(stream(data))
        try:
            made = AnswerReader(MEASURE, RECEIVED, steps).read(Line(ours, time.monotonic() + READ_S))
        except (OutOfFormError, EOFError):
            return
        except GatewayError as error:
            assert CODES[error.code.name] is error.code
            assert len(error.message) <= MESSAGE_LIMIT
            assert error.message.isprintable()
            return
    verdict = steps.verdict
    assert verdict is not None
    if made is None:
        assert verdict.outcome in {Outcome.REJECTED, Outcome.EMPTIED}
        return
    check_form(made.config, made.weights, verdict.served, TARGET)
    assert made.digest == content_digest(made.config, made.weights)
    assert json.loads(made.manifest)["verdict"]["id"] == verdict.id.hex
