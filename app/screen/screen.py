"""Screening of an adapter against a reference: measurements, decisions, verdict."""

import hashlib
import json
import time
from dataclasses import asdict
from typing import Final

import torch
from torch import Tensor

from app.domain.digest import Digest, digest_of
from app.domain.errors import BAD_NUMBERS, SCREENING_TIMEOUT, UNKNOWN_MODULE, WRONG_SHAPE, Refused
from app.domain.lora import Adapter, LoraModule
from app.domain.policy import Comparison, Policy
from app.domain.singular_vectors import SingularVectors
from app.domain.verdict import METRIC_VERSION, ModuleVerdict, Verdict
from app.screen.decide import Found, decide
from app.screen.distances import AgainstV, Scored, against_inputs, against_v, input_share, removed_share
from app.screen.engine_arithmetic import objection
from app.screen.lora_svd import Update, thin_svd
from app.screen.reference.manifest import ModuleInfo
from app.screen.reference.open import Reference, check_policy
from app.screen.threads import each, threads_for, usable_cores

SCORE_DECIMALS: Final = 6
"""Decimals to which scores are rounded before any decision: the reported score is the compared one, and sums taken in
another order on another machine give the same decision."""


def screen(
    adapter: Adapter,
    reference: Reference,
    policy: Policy,
    *,
    bar: Policy | None = None,
    complete: bool = True,
    workers: int | None = None,
    deadline_s: float | None = None,
) -> Verdict:
    """Measure every module of `adapter` against `reference` and decide by `policy`.

    bar: see `decide`; it measures the same inputs, and takes out no more outputs.
    complete: measure every comparison that the reference allows, which reads each V three times; False: only the one that
    decides, which for `input` reads no V. Decisions are the same.
    workers: threads, each measuring one module at a time (None: one per usable core if V is read, else see `threads_for`);
    the numbers do not depend on it.
    Memory beyond the reference is some 10 MiB a worker. The same bytes give the same verdict.
    deadline_s: seconds after which no further module is started (None: no limit); running measurements finish first.

    Raises Refused UNKNOWN_MODULE or WRONG_SHAPE if the adapter does not fit, BAD_NUMBERS if the engine would compute
    another update from its factors than was measured, Unavailable BAD_REFERENCE if the reference cannot serve the
    policy or was changed on disk, Refused SCREENING_TIMEOUT past the deadline, ValueError for an adapter without
    modules.
    """
    if not adapter.modules:
        raise ValueError("an adapter without modules is not screened")
    check_policy(reference, policy)
    reference.check_unchanged()
    _check_fit(adapter, reference)
    end = None if deadline_s is None else time.monotonic() + deadline_s
    measured = _measured(reference, policy, complete)

    def measure(module: LoraModule) -> Found:
        if end is not None and not time.monotonic() < end:
            late = f"screening took longer than {deadline_s:g} s; module {module.name} unseen"
            raise Refused(SCREENING_TIMEOUT, late)
        return _measure(module, reference, policy, measured, bar)

    reads_v = Comparison.ALIGNMENT in measured
    threads = workers or (usable_cores() if reads_v else threads_for(adapter.modules))
    found = each(measure, adapter.modules, threads)
    reference.check_unchanged()
    outcome, reason, modules = decide(found, policy, bar)
    return Verdict(
        id=_verdict_id(adapter, reference.digest, policy, bar, modules),
        metric=METRIC_VERSION,
        policy=policy,
        reference=reference.digest,
        outcome=outcome,
        reason=reason,
        modules=modules,
        measured=measured,
    )


def _measured(reference: Reference, policy: Policy, complete: bool) -> tuple[Comparison, ...]:
    """Return the comparisons to measure. Those with V come together: the same products give both."""
    with_v = not reference.compact and (complete or policy.comparison is not Comparison.INPUT)
    return tuple(Comparison) if with_v else (Comparison.INPUT,)


def _check_fit(adapter: Adapter, reference: Reference) -> None:
    """Raise the refusal of an adapter that does not fit the reference, naming the first such module."""
    for module in adapter.modules:
        name, shape = module.name, reference.modules.get(module.name)
        if shape is None:
            raise Refused(UNKNOWN_MODULE, f"module {name} is not in the reference", param=name)
        if (module.b.shape[0], module.a.shape[1], module.b.shape[1]) != (shape.d_out, shape.d_in, module.a.shape[0]):
            given = f"B {tuple(module.b.shape)} times A {tuple(module.a.shape)}"
            raise Refused(WRONG_SHAPE, f"module {name}: {given} does not make {shape.d_out} × {shape.d_in}", param=name)


def _measure(
    module: LoraModule, reference: Reference, policy: Policy, measured: tuple[Comparison, ...], bar: Policy | None
) -> Found:
    """Measure one module's update. Raises Refused BAD_NUMBERS if the engine would compute another one."""
    name = module.name
    info = reference.info(name)
    update = thin_svd(module.b, module.a)
    active = update is not None and update.norm > 0.0 and info.v_norm > 0.0
    vectors = reference.singular_vectors(name, policy) if active and reference.triples(name) is not None else None
    why = None if update is None else objection(module, update, None if vectors is None else vectors.r)
    if why is not None:
        raise Refused(BAD_NUMBERS, f"module {name}: {why}", param=name)
    v = reference.v(name) if active and Comparison.ALIGNMENT in measured else None
    against = None if update is None or v is None else against_v(update, v, info)
    return _found(module, update, info, against, vectors, bar)


def _found(
    module: LoraModule,
    update: Update | None,
    info: ModuleInfo,
    against: AgainstV | None,
    vectors: SingularVectors | None,
    bar: Policy | None,
) -> Found:
    scored: dict[Comparison, Scored] = {}
    share = removed = removed_at_bar = None
    if update is not None and vectors is not None:
        on_r = update.on_inputs(vectors.r)
        scored[Comparison.INPUT] = against_inputs(update, on_r)
        share = input_share(update, scored[Comparison.INPUT])
        on_u = update.on_outputs(vectors.u)
        removed = removed_share(update, on_r, on_u)
        removed_at_bar = None if bar is None else removed_share(update, on_r, on_u[:, : bar.project_outputs])
    if against is not None:
        scored[Comparison.ALIGNMENT], scored[Comparison.PROJECTION] = against.alignment, against.projection
    return Found(
        name=module.name,
        rank=module.rank,
        scaling=module.scaling,
        finite=update is not None,
        zero=update is not None and update.zero,
        scores={comparison: _score(scored.get(comparison)) for comparison in Comparison},
        cosine=None if against is None else against.cosine,
        update_norm=None if update is None else update.norm,
        v_norm=info.v_norm,
        lambda_max=info.lambda_max,
        input_share=share,
        removed_share=removed,
        inputs=None if vectors is None or update is None else vectors.r.shape[1],
        removed_share_at_bar=removed_at_bar,
    )


def _score(scored: Scored | None) -> float | None:
    score = None if scored is None else scored.score
    return None if score is None else round(score, SCORE_DECIMALS)


def _verdict_id(
    adapter: Adapter, reference: Digest, policy: Policy, bar: Policy | None, modules: tuple[ModuleVerdict, ...]
) -> Digest:
    """Return the digest of the measured bytes, the policy and reference, and the decisions; scores are left out, because
    their last bits may differ."""
    bytes_of = {m.name: (_bytes_digest(m.a), _bytes_digest(m.b)) for m in adapter.modules}
    fields = {
        "metric": METRIC_VERSION,
        "policy": asdict(policy),
        **({} if bar is None else {"bar": asdict(bar)}),
        "reference": str(reference),
        "dtype": adapter.dtype,
        "modules": [[m.name, *bytes_of[m.name], m.scaling, m.decision, m.reason] for m in modules],
    }
    return digest_of(json.dumps(fields, sort_keys=True).encode())


def _bytes_digest(tensor: Tensor) -> str:
    sha = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    sha.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
