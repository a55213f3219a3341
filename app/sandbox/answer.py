"""What a screening process sends back, read as a stranger's words: frame by frame, in their order, of bounded size.

The verdict must be one of this policy and reference, the bytes must have the canonical form, and the manifest and every
digest are made here. Wrong form is a ValueError, an early end an EOFError, too late a TimeoutError.
"""

import json
import socket
import time
from typing import Any, Final

from app.domain.artefact import Artefact, content_digest
from app.domain.digest import digest_of
from app.domain.lora import Received
from app.domain.manifest import manifest_json, verdict_from
from app.domain.verdict import Decision, Outcome, Verdict
from app.errors import CODES, SCREENING_KILLED, Refused, Stage, Unavailable
from app.prune.form import check_form
from app.sandbox.worker import FRAME
from app.sanitise import OK, Measure, Steps

JSON_BYTES: Final = 64 << 20
"""Most bytes of one frame's JSON: a verdict on thousands of modules has a few MiB."""

BYTES_PER_VALUE: Final = 4
SLACK_BYTES: Final = 2 << 20
"""Header and padding of the largest canonical file."""


class Answer:
    """Frames as they arrive, until a deadline (monotonic). Raises EOFError and TimeoutError."""

    def __init__(self, line: socket.socket, deadline: float) -> None:
        self._line = line
        self._deadline = deadline

    def next(self, most: int) -> tuple[dict[str, Any], bytes]:
        """One frame: its JSON, and its payload of at most `most` bytes. Raises ValueError for what is none."""
        length, size = FRAME.unpack(self._read(FRAME.size))
        if length > JSON_BYTES or size > most:
            raise ValueError(f"a frame of {length} and {size} bytes")
        fields = json.loads(self._read(length))
        if not isinstance(fields, dict):
            raise ValueError("a frame without fields")  # noqa: TRY004 - of their form, as all the others
        return fields, self._read(size)

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        view, got = memoryview(data), 0
        while got < size:
            self._line.settimeout(max(1e-3, self._deadline - time.monotonic()))
            read = self._line.recv_into(view[got:])
            if not read:
                raise EOFError
            got += read
        view.release()
        return bytes(data)


class Listener:
    """Follows one upload through its frames, which must come in their order."""

    def __init__(self, measure: Measure, received: Received, steps: Steps) -> None:
        self._measure = measure
        self._received = received
        self._steps = steps

    def listen(self, answer: Answer) -> Artefact | None:
        """To its end. Raises what it was refused with; EOFError, TimeoutError, ValueError as `Answer`."""
        if not self._frame(answer).get("validated"):
            raise ValueError("measured before it was validated")
        self._steps.validated()
        fields = self._frame(answer)["screened"]
        verdict = verdict_from(fields, self._measure.policy, self._measure.reference.digest)
        if any(module.name not in self._measure.target.modules for module in verdict.modules):
            raise ValueError("a verdict on a module that does not exist")
        if verdict.outcome is not _outcome_of(verdict):
            raise ValueError("an outcome that does not follow from its modules")
        self._steps.screened(verdict)
        artefact = None
        if verdict.outcome is not Outcome.REJECTED and verdict.served:
            artefact = self._artefact(verdict, answer)
        if not self._frame(answer).get("done"):
            raise ValueError("more than was asked for")
        return artefact

    def _artefact(self, verdict: Verdict, answer: Answer) -> Artefact:
        target = self._measure.target
        shapes = [target.modules[name] for name in verdict.served]
        most = sum(shape.d_in + shape.d_out for shape in shapes) * target.max_rank * BYTES_PER_VALUE + SLACK_BYTES
        fields, weights = self._frame_with(answer, most)
        config = bytes.fromhex(fields["config"])
        check_form(config, weights, verdict.served, target)
        digests = {"config": digest_of(config), "weights": digest_of(weights)}
        manifest = manifest_json(self._received, verdict, **digests)
        return Artefact(content_digest(config, weights), config, weights, manifest)

    def _frame(self, answer: Answer) -> dict[str, Any]:
        return self._frame_with(answer, 0)[0]

    def _frame_with(self, answer: Answer, most: int) -> tuple[dict[str, Any], bytes]:
        """The next frame that is neither a duration nor an end."""
        while True:
            fields, payload = answer.next(most)
            if "took" in fields:
                outcome = str(fields["outcome"])
                known = outcome == OK or outcome in CODES  # a stranger's word goes into no log
                self._steps.took(Stage(fields["took"]), float(fields["seconds"]), outcome if known else "failed")
            elif "refused" in fields:
                code = CODES[fields["refused"]]
                kind = Refused if code.status < 500 else Unavailable
                raise kind(
                    code, str(fields["message"]), param=None if fields["param"] is None else str(fields["param"])
                )
            elif "died" in fields:
                raise Refused(SCREENING_KILLED, str(fields["died"]))
            else:
                return fields, payload


def _outcome_of(verdict: Verdict) -> Outcome:
    """What the modules' decisions allow; a rejection may have other reasons."""
    if verdict.outcome is Outcome.REJECTED or any(one.decision is Decision.REJECT for one in verdict.modules):
        return Outcome.REJECTED
    if not verdict.served:
        return Outcome.EMPTIED
    if verdict.projected:
        return Outcome.PROJECTED
    return Outcome.PRUNED if verdict.pruned else Outcome.CLEAN
