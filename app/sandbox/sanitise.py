"""validate → balance → screen → prune → balance → canonical bytes of one upload: the pipeline without store and engine.

Pure but for reading the sealed file, so that it runs the same here or in a process that is shut away (app/sandbox/).
"""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Protocol

from app.domain.artefact import Artefact
from app.domain.errors import RESCREEN_FAILED, SCREENING_KILLED, GatewayError, Refused, Stage
from app.domain.lora import Adapter, Received, TargetModel
from app.domain.out_of_memory import out_of_memory
from app.domain.policy import Policy
from app.domain.verdict import Outcome, Verdict
from app.prune.canonical import canonicalise
from app.prune.prune import cut
from app.screen.balance import balance_all
from app.screen.reference.open import Reference
from app.screen.screen import screen
from app.screen.threads import single_threaded_kernels
from app.validate.adapter import ValidateLimits, validate

RULES: Final = 2
"""Changes when what is refused, or the form that is written, changes: what older rules decided is then measured anew."""

OK: Final = "ok"
"""Outcome of a stage that ended well."""


@dataclass(frozen=True, slots=True)
class Measure:
    """All that a verdict and its bytes depend on besides the upload. screen_seconds: the longest one screening may take."""

    target: TargetModel
    limits: ValidateLimits
    reference: Reference
    policy: Policy
    screen_seconds: float

    def screen(self, adapter: Adapter, policy: Policy | None = None) -> Verdict:
        """The verdict by this policy or another. Raises as `screen.screen`."""
        return screen(adapter, self.reference, policy or self.policy, deadline_s=self.screen_seconds)

    def balance(self, adapter: Adapter) -> Adapter:
        """The adapter in the form that is measured and served. Raises as `balance.balance_all`."""
        return balance_all(adapter, deadline_s=self.screen_seconds)


class Steps(Protocol):
    """Who is told how far it got. What they raise ends it."""

    def took(self, stage: Stage, seconds: float, outcome: str) -> None:
        """One stage is over: "ok", or the code of what ended it."""

    def validated(self) -> None:
        """It is a LoRA adapter for this model."""

    def screened(self, verdict: Verdict) -> None:
        """It was measured; a rejection is no error here."""


Sanitise = Callable[[bytes, io.BufferedReader, Received, Steps], Artefact | None]
"""(adapter_config.json, weights open at any position, digests and sizes, who is told) → what may be stored, or None when
the verdict rejects it or leaves nothing. Raises GatewayError."""


def sanitise(
    measure: Measure, config: bytes, weights: io.BufferedReader, received: Received, steps: Steps
) -> Artefact | None:
    """See `Sanitise`. Blocking.

    Torch's kernels use one thread each throughout, not in the measuring alone: reading and projecting are hundreds of small
    operations, and on a busy machine OpenMP's barriers made seconds of them.
    """
    with single_threaded_kernels():
        return _sanitise(measure, config, weights, received, steps)


def _sanitise(
    measure: Measure, config: bytes, weights: io.BufferedReader, received: Received, steps: Steps
) -> Artefact | None:
    with _timed(steps, Stage.VALIDATE):
        adapter = validate(config, weights, measure.target, measure.limits)
    steps.validated()
    with _timed(steps, Stage.SCREEN):
        adapter = measure.balance(adapter)
        verdict = measure.screen(adapter)
    steps.screened(verdict)
    if verdict.outcome is Outcome.REJECTED:
        return None
    with _timed(steps, Stage.PRUNE):
        left = pruned(measure, adapter, verdict)
        return canonicalise(left, verdict, received, measure.target) if left.modules else None


@contextmanager
def _timed(steps: Steps, stage: Stage) -> Iterator[None]:
    begun, outcome = time.monotonic(), OK
    try:
        yield
    except GatewayError as error:
        outcome = error.code.name
        raise
    except BaseException as error:
        outcome = type(error).__name__
        if out_of_memory(error):
            outcome = SCREENING_KILLED.name
            raise Refused(SCREENING_KILLED, "it needed more memory than one upload may") from error
        raise
    finally:
        steps.took(stage, time.monotonic() - begun, outcome)


def pruned(measure: Measure, adapter: Adapter, verdict: Verdict) -> Adapter:
    """Cut or project, balance, and measure what is left once more: it must pass. Raises Refused RESCREEN_FAILED or
    BAD_NUMBERS."""
    left = measure.balance(cut(adapter, verdict, lambda module: measure.reference.ends(module, measure.policy)))
    if left.modules and (verdict.pruned or verdict.projected):
        again = measure.screen(left, accepting(measure.policy))
        if again.outcome is not Outcome.CLEAN:
            raise Refused(RESCREEN_FAILED, f"screened again after pruning: {again.reason}")
    return left


def accepting(policy: Policy) -> Policy:
    """For what pruning left: what the operator's cap spared stays above tau and was accepted as such."""
    return replace(policy, max_pruned=0) if policy.cap_keeps and policy.max_pruned is not None else policy
