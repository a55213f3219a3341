"""Reader of a screening child's answer, which is read as a stranger's words: frames in their order, each of bounded size.

The verdict must be one of this policy and reference, the bytes must have the canonical form, and the manifest and every
digest are made here.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from app.domain.artefact import Artefact, content_digest
from app.domain.digest import digest_of
from app.domain.errors import CODES, SCREENING_KILLED, GatewayError, Refused, Stage, Unavailable
from app.domain.lora import Received
from app.domain.manifest import manifest_json, verdict_from
from app.domain.verdict import Decision, ModuleVerdict, Outcome, Verdict
from app.prune.canonical_check import check_form
from app.sandbox.protocol import Line, OutOfFormError
from app.sandbox.sanitise import OK, Measure, Steps

BYTES_PER_VALUE: Final = 4
SLACK_BYTES: Final = 2 << 20
"""Header and padding of the largest canonical file, and the whole of the largest canonical configuration."""


class AnswerReader:
    """Follows one upload through its frames, which must come in their order."""

    def __init__(self, measure: Measure, received: Received, steps: Steps) -> None:
        self._measure = measure
        self._received = received
        self._steps = steps

    def read(self, line: Line) -> Artefact | None:
        """Read to the end. Raises the refusal that it holds, OutOfFormError, and as `Line`."""
        self._expect(line, "validated")
        self._steps.validated()
        fields, _ = self._next(line)
        with _in_form():
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
        if not all(map(_measured, verdict.modules)):
            raise OutOfFormError("a measurement that is not a finite number")
        if verdict.outcome is not _outcome_of(verdict):
            raise OutOfFormError("an outcome that does not follow from its modules")
        return verdict

    def _artefact(self, verdict: Verdict, line: Line) -> Artefact:
        target = self._measure.target
        shapes = [target.modules[name] for name in verdict.served]
        most = sum(shape.d_in + shape.d_out for shape in shapes) * target.max_rank * BYTES_PER_VALUE + SLACK_BYTES
        config = self._expect(line, "config", SLACK_BYTES)
        weights = self._expect(line, "weights", most)
        with _in_form():
            check_form(config, weights, verdict.served, target)
        digests = {"config": digest_of(config), "weights": digest_of(weights)}
        manifest = manifest_json(self._received, verdict, **digests)
        return Artefact(content_digest(config, weights), config, weights, manifest)

    def _expect(self, line: Line, kind: str, max_payload: int = 0) -> bytes:
        """Payload of the next frame, which must be of this kind."""
        fields, payload = self._next(line, max_payload)
        if fields.get(kind) is not True:
            raise OutOfFormError(f"a frame that is not {kind!r}, which was due")
        return payload

    def _next(self, line: Line, max_payload: int = 0) -> tuple[dict[str, Any], bytes]:
        """The next frame that is neither a duration nor an end."""
        while True:
            fields, payload = line.receive(max_payload)
            if "took" in fields:
                with _in_form():
                    stage, seconds, outcome = _duration(fields)
                self._steps.took(stage, seconds, outcome)
            elif "refused" in fields or "died" in fields:
                with _in_form():
                    refusal = _refusal(fields)
                raise refusal
            else:
                return fields, payload


@contextmanager
def _in_form() -> Iterator[None]:
    """Whatever reading a stranger's values raises, as one error."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise OutOfFormError(f"{type(error).__name__}: {error}") from error


def _measured(module: ModuleVerdict) -> bool:
    """Whether every measurement is a finite number, or None if it may be."""
    always: list[Any] = [module.rank, module.scaling, module.v_norm, module.lambda_max]
    maybe = [module.cosine, module.update_norm, module.input_share, module.removed_share, module.inputs]
    found = [value for value in (*maybe, *module.scores.values()) if value is not None]
    return all(type(value) in (int, float) and math.isfinite(value) for value in (*always, *found))


def _duration(fields: dict[str, Any]) -> tuple[Stage, float, str]:
    seconds, outcome = float(fields["seconds"]), str(fields["outcome"])
    if not 0 <= seconds < math.inf:
        raise OutOfFormError("a duration that is negative or not finite")
    known = outcome == OK or outcome in CODES  # a stranger's word goes into no log
    return Stage(fields["took"]), seconds, outcome if known else "failed"


def _refusal(fields: dict[str, Any]) -> GatewayError:
    if "died" in fields:
        return Refused(SCREENING_KILLED, str(fields["died"]))
    code, param = CODES[fields["refused"]], fields["param"]
    kind = Refused if code.status < 500 else Unavailable
    return kind(code, str(fields["message"]), param=None if param is None else str(param))


def _outcome_of(verdict: Verdict) -> Outcome:
    """Outcome that the modules' decisions allow; a rejection may have other reasons."""
    if verdict.outcome is Outcome.REJECTED or any(one.decision is Decision.REJECT for one in verdict.modules):
        return Outcome.REJECTED
    if not verdict.served:
        return Outcome.EMPTIED
    if verdict.projected:
        return Outcome.PROJECTED
    return Outcome.PRUNED if verdict.pruned else Outcome.CLEAN
