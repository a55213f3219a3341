"""Sanitising pipeline of one upload: validate → balance → screen → prune → balance → canonical bytes; no store, no engine.

Pure except for reading the sealed file, so that it runs the same in the gateway and in the sandboxed process.
"""

import ctypes
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Protocol

from app.domain.artefact import Artefact
from app.domain.errors import RESCREEN_FAILED, SCREENING_KILLED, GatewayError, Refused, Stage
from app.domain.lora import Adapter, Received, TargetModel
from app.domain.out_of_memory import out_of_memory
from app.domain.policy import Action, Policy
from app.domain.policy_override import NO_OVERRIDE, PolicyOverride
from app.domain.rungs import bounded_as
from app.domain.verdict import Outcome, Verdict
from app.prune.canonical import CONFIG_BYTES, canonicalise
from app.prune.prune import cut
from app.screen.balance import balance_all
from app.screen.reference.open import Reference
from app.screen.screen import screen
from app.screen.threads import single_threaded_kernels
from app.validate.adapter import ValidateLimits, validate

RULES: Final = 4
"""Version of the pipeline's rules: changes when refusals or the written form change; versions decided under older rules
are then measured again."""

OK: Final = "ok"
"""Outcome of a stage that ended well."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Everything besides the upload that a verdict and its bytes depend on.

    screen_seconds: time limit of one screening. rungs: policies of the ladder above `policy`, its floor. complete: measure
    every comparison, not only the one that decides. bar: the operator's policy, if `policy` is a tenant's own: what it
    rejects is rejected.
    """

    target: TargetModel
    limits: ValidateLimits
    reference: Reference
    policy: Policy
    screen_seconds: float
    rungs: tuple[Policy, ...] = ()
    complete: bool = False
    bar: Policy | None = None

    def under(self, override: PolicyOverride) -> "Measure":
        """Return the measure of a tenant with this override."""
        policy = override.applied(self.policy)
        if policy == self.policy:
            return self
        return replace(self, policy=policy, rungs=tuple(bounded_as(r, policy) for r in self.rungs), bar=self.policy)

    def at(self, rung: int) -> "Measure":
        """Return the measure of a rung; 0 is the floor.

        Above it an artefact is corrected, not an upload: its configuration is ours, and names the served model.
        """
        if rung == 0:
            return self
        ours = replace(self.limits, base_names=None, max_config_bytes=CONFIG_BYTES)
        return replace(self, policy=self.rungs[rung - 1], limits=ours, bar=None)

    def screen(self, adapter: Adapter, policy: Policy, *, bar: Policy | None = None, complete: bool = False) -> Verdict:
        """Screen an adapter by a policy. Raises as `screen.screen`."""
        return screen(adapter, self.reference, policy, bar=bar, complete=complete, deadline_s=self.screen_seconds)

    def balance(self, adapter: Adapter) -> Adapter:
        """Return the adapter in the form that is measured and served. Raises as `balance.balance_all`."""
        return balance_all(adapter, deadline_s=self.screen_seconds)


class Steps(Protocol):
    """Progress callbacks of one sanitising. An exception raised by one ends the sanitising."""

    def took(self, stage: Stage, seconds: float, outcome: str) -> None:
        """Called at the end of a stage. outcome: "ok", or the code of the error that ended it."""

    def validated(self) -> None:
        """Called when the upload is a valid LoRA adapter for this model."""

    def screened(self, verdict: Verdict) -> None:
        """Called with the verdict, also if it is a rejection."""


class Sanitise(Protocol):
    """Function that turns an upload into the artefact to store."""

    def __call__(
        self,
        config: bytes,
        weights: io.BufferedReader,
        received: Received,
        steps: Steps,
        *,
        rung: int = 0,
        complete: bool = False,
        override: PolicyOverride = NO_OVERRIDE,
    ) -> Artefact | None:
        """Return the artefact; None if the verdict rejects the adapter or leaves no module. Raises GatewayError.

        config, weights: the upload's two files, the weights open at any position; for a rung above 0, the floor, those of
        the artefact made on the floor. received: digests and sizes of the upload. complete: measure every comparison, also
        where the measure says only the one that decides. override: the uploader's tenant's.
        """


def sanitise(
    measure: Measure,
    config: bytes,
    weights: io.BufferedReader,
    received: Received,
    steps: Steps,
    *,
    rung: int = 0,
    complete: bool = False,
    override: PolicyOverride = NO_OVERRIDE,
) -> Artefact | None:
    """Run the pipeline on one upload; see `Sanitise`. Blocking.

    Torch's kernels use one thread throughout, not only while measuring: reading and projecting are hundreds of small
    operations, and on a busy machine OpenMP's barriers made them take seconds.
    """
    with single_threaded_kernels():
        measure = replace(measure.under(override).at(rung), complete=complete or measure.complete)
        return _sanitise(measure, config, weights, received, steps)


def _sanitise(
    measure: Measure, config: bytes, weights: io.BufferedReader, received: Received, steps: Steps
) -> Artefact | None:
    with _timed(steps, Stage.VALIDATE):
        adapter = validate(config, weights, measure.target, measure.limits)
    steps.validated()
    with _timed(steps, Stage.SCREEN):
        adapter = measure.balance(adapter)
        return_free_memory()  # the factors as uploaded are gone
        verdict = measure.screen(adapter, measure.policy, bar=measure.bar, complete=measure.complete)
    steps.screened(verdict)
    if verdict.outcome is Outcome.REJECTED:
        return None
    with _timed(steps, Stage.PRUNE):
        adapter = pruned(measure, adapter, verdict)
        return_free_memory()  # the factors before are gone
        return canonicalise(adapter, verdict, received, measure.target) if adapter.modules else None


def return_free_memory() -> None:
    """Give free memory back to the system, where the C library can: it would keep gigabytes between smaller blocks."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def _timed(steps: Steps, stage: Stage) -> Iterator[None]:
    started, outcome = time.monotonic(), OK
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
        steps.took(stage, time.monotonic() - started, outcome)


def pruned(measure: Measure, adapter: Adapter, verdict: Verdict) -> Adapter:
    """Cut or project, balance, and screen the remaining modules again: they must pass. Raises Refused RESCREEN_FAILED or
    BAD_NUMBERS."""
    left = measure.balance(
        cut(adapter, verdict, lambda module: measure.reference.singular_vectors(module, measure.policy))
    )
    if left.modules and (verdict.pruned or verdict.projected):
        again = measure.screen(left, accepting(measure.policy))
        if again.outcome is not Outcome.CLEAN:
            raise Refused(RESCREEN_FAILED, f"screened again after pruning: {again.reason}")
    return left


def accepting(policy: Policy) -> Policy:
    """Return the policy for the corrected adapter.

    Modules spared by the operator's cap stay above tau and are accepted. Where every module was condemned, what projecting
    left must score no more than a random update.
    """
    policy = replace(policy, tau=max(policy.tau, 0.0)) if policy.action is Action.PROJECT else policy
    return replace(policy, max_pruned=0) if policy.cap_keeps and policy.max_pruned is not None else policy
