"""Reader of a screening child's answer, which is treated as untrusted: frames in a fixed order, each of bounded size.

The verdict must be by this policy and reference, and the bytes must have the canonical form; the manifest and every digest
are computed here.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from app.domain.artefact import Artefact, content_digest_of
from app.domain.digest import digest_of
from app.domain.errors import CODES, SCREENING_KILLED, Fault, GatewayError, Refused, Stage, Unavailable
from app.domain.lora import Received
from app.domain.manifest import manifest_json, verdict_from
from app.domain.verdict import Decision, ModuleVerdict, Outcome, Verdict
from app.prune.canonical import CONFIG_BYTES, written
from app.prune.canonical_check import check_form
from app.sandbox.protocol import Line, OutOfFormError
from app.sandbox.sanitise import OK, Measure, Steps
from app.validate.faults import MAX_FAULTS

BYTES_PER_VALUE: Final = 4
SLACK_BYTES: Final = 2 << 20
"""Bytes allowed for header and padding of canonical weights, and ENTRY_BYTES for each tensor."""

ENTRY_BYTES: Final = 256
"""Most bytes of a tensor's entry in the header: 160 to 200 with the longest names in use."""


class AnswerReader:
    """Reader of one upload's frames, which must come in order."""

    def __init__(self, measure: Measure, received: Received, steps: Steps) -> None:
        self._measure = measure
        self._received = received
        self._steps = steps

    def read(self, line: Line) -> Artefact | None:
        """Read all frames and return the artefact, None if there is none. Raises the refusal that the answer holds,
        OutOfFormError, and as `Line`."""
        self._expect(line, "validated")
        self._steps.validated()
        fields, _ = self._next(line)
        with _malformed_as_error():
            verdict = self._verdict(fields["screened"])
        self._steps.screened(verdict)
        artefact = None
        if verdict.outcome is not Outcome.REJECTED and verdict.served:
            artefact = self._artefact(verdict, line)
        self._expect(line, "done")
        return artefact

    def _verdict(self, fields: Any) -> Verdict:
        verdict = verdict_from(fields, self._measure.policy, self._measure.reference.digest)
        if any(module.name not in self._measure.target.modules for module in verdict.modules):
            raise OutOfFormError("a verdict on a module that does not exist")
        if not all(map(_all_finite, verdict.modules)):
            raise OutOfFormError("a measurement that is not a finite number")
        if verdict.outcome is not _outcome_of(verdict):
            raise OutOfFormError("an outcome that does not follow from its modules")
        return verdict

    def _artefact(self, verdict: Verdict, line: Line) -> Artefact:
        target = self._measure.target
        shapes = [target.modules[name] for name in written(verdict.served, target)]
        values = sum(shape.d_in + shape.d_out for shape in shapes) * target.max_rank
        most = values * BYTES_PER_VALUE + 2 * len(shapes) * ENTRY_BYTES + SLACK_BYTES
        config = self._expect(line, "config", CONFIG_BYTES)
        weights = self._expect(line, "weights", most)
        with _malformed_as_error():
            check_form(config, weights, verdict.served, target)
        digests = {"config": digest_of(config), "weights": digest_of(weights)}
        manifest = manifest_json(self._received, verdict, **digests)
        return Artefact(content_digest_of(**digests), config, weights, manifest)

    def _expect(self, line: Line, kind: str, max_payload: int = 0) -> bytes:
        """Return the payload of the next frame, which must be of this kind."""
        fields, payload = self._next(line, max_payload)
        if fields.get(kind) is not True:
            raise OutOfFormError(f"a frame that is not {kind!r}, which was due")
        return payload

    def _next(self, line: Line, max_payload: int = 0) -> tuple[dict[str, Any], bytes]:
        """Return the next frame, after reporting durations to the steps. Raises the refusal that a frame holds."""
        while True:
            fields, payload = line.receive(max_payload)
            if "took" in fields:
                with _malformed_as_error():
                    stage, seconds, outcome = _duration(fields)
                self._steps.took(stage, seconds, outcome)
            elif "refused" in fields or "died" in fields:
                with _malformed_as_error():
                    refusal = _refusal(fields)
                raise refusal
            else:
                return fields, payload


@contextmanager
def _malformed_as_error() -> Iterator[None]:
    """Turn every error raised by malformed values into OutOfFormError."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise OutOfFormError(f"{type(error).__name__}: {error}") from error


def _all_finite(module: ModuleVerdict) -> bool:
    """Return whether every measurement is a finite number, or None if it may be None."""
    always: list[Any] = [module.rank, module.scaling, module.v_norm, module.lambda_max]
    maybe = [module.cosine, module.update_norm, module.input_share, module.removed_share, module.inputs]
    found = [value for value in (*maybe, *module.scores.values()) if value is not None]
    return all(type(value) in (int, float) and math.isfinite(value) for value in (*always, *found))


def _duration(fields: dict[str, Any]) -> tuple[Stage, float, str]:
    seconds, outcome = float(fields["seconds"]), str(fields["outcome"])
    if not 0 <= seconds < math.inf:
        raise OutOfFormError("a duration that is negative or not finite")
    known = outcome == OK or outcome in CODES  # untrusted text is not logged
    return Stage(fields["took"]), seconds, outcome if known else "failed"


def _refusal(fields: dict[str, Any]) -> GatewayError:
    if "died" in fields:
        return Refused(SCREENING_KILLED, str(fields["died"]))
    code, param, remedy = CODES[fields["refused"]], fields["param"], fields.get("remedy")
    kind = Refused if code.status < 500 else Unavailable
    return kind(
        code,
        str(fields["message"]),
        param=None if param is None else str(param),
        remedy=None if remedy is None else str(remedy),
        details=tuple(map(Fault.read, fields.get("details", [])[:MAX_FAULTS])),
    )


def _outcome_of(verdict: Verdict) -> Outcome:
    """Return the outcome that follows from the modules' decisions; a rejection may have other reasons."""
    if verdict.outcome is Outcome.REJECTED or any(one.decision is Decision.REJECT for one in verdict.modules):
        return Outcome.REJECTED
    if not verdict.served:
        return Outcome.EMPTIED
    if verdict.projected:
        return Outcome.PROJECTED
    return Outcome.PRUNED if verdict.pruned else Outcome.CLEAN
