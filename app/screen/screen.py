"""Screening of adapters against a reference, for one adapter or several: measurements, decisions, verdicts."""

import hashlib
import json
import time
from collections.abc import Sequence
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
from app.screen.distances import AgainstV, Scored, against_inputs, against_v_together, input_share, removed_share
from app.screen.engine_arithmetic import objection
from app.screen.lora_svd import Update, thin_svd
from app.screen.reference.manifest import ModuleInfo
from app.screen.reference.open import Reference, check_policy
from app.screen.threads import each, usable_cores

SCORE_DECIMALS: Final = 6
"""Decimals to which scores are rounded before any decision: the reported score is the compared one, and sums taken in
another order on another machine give the same decision."""


COLUMNS: Final = 64
"""Largest number of columns multiplied in one read of V if adapters are screened together: their blocks fit the cache."""


def screen(
    adapter: Adapter,
    reference: Reference,
    policy: Policy,
    *,
    workers: int | None = None,
    deadline_s: float | None = None,
) -> Verdict:
    """Measure every module of `adapter` against `reference` and decide by `policy`. Reads each V twice.

    workers: threads, each measuring one module at a time (None: one per usable core); the numbers do not depend on it.
    Memory beyond the reference is some 10 MiB a worker. The same bytes give the same verdict.
    deadline_s: seconds after which no further module is started (None: no limit); running measurements finish first.

    Raises Refused UNKNOWN_MODULE or WRONG_SHAPE if the adapter does not fit, BAD_NUMBERS if the engine would compute
    another update from its factors than was measured, Unavailable BAD_REFERENCE if the reference cannot serve the
    policy or was changed on disk, Refused SCREENING_TIMEOUT past the deadline, ValueError for an adapter without
    modules.
    """
    (result,) = screen_many([adapter], reference, policy, workers=workers, deadline_s=deadline_s)
    if isinstance(result, Refused):
        raise result
    return result


def screen_many(
    adapters: Sequence[Adapter],
    reference: Reference,
    policy: Policy,
    *,
    workers: int | None = None,
    deadline_s: float | None = None,
) -> list[Verdict | Refused]:
    """Screen several adapters, each V read twice for all of them; the verdicts are the same as from `screen` one by one.

    Adapters that do not fit, or with BAD_NUMBERS, appear as Refused in the result and do not affect the others.
    deadline_s limits all of them together. Raises the other exceptions of `screen`.
    """
    if not all(adapter.modules for adapter in adapters):
        raise ValueError("an adapter without modules is not screened")
    check_policy(reference, policy)
    reference.check_unchanged()
    end = None if deadline_s is None else time.monotonic() + deadline_s

    def measure(modules: Sequence[LoraModule]) -> list[Found | Refused]:
        if end is not None and not time.monotonic() < end:
            late = f"screening took longer than {deadline_s:g} s; module {modules[0].name} unseen"
            raise Refused(SCREENING_TIMEOUT, late)
        return _measure(modules, reference, policy)

    refused = [_misfit(adapter, reference) for adapter in adapters]
    owners_of, groups = _groups([None if no else adapter for adapter, no in zip(adapters, refused, strict=True)])
    found: list[list[Found]] = [[] for _ in adapters]
    for owners, results in zip(owners_of, each(measure, groups, workers or usable_cores()), strict=True):
        for owner, one in zip(owners, results, strict=True):
            if isinstance(one, Refused):
                refused[owner] = refused[owner] or one
            else:
                found[owner].append(one)
    reference.check_unchanged()
    answers = zip(adapters, refused, found, strict=True)
    return [no or _verdict(adapter, reference.digest, policy, one) for adapter, no, one in answers]


def _verdict(adapter: Adapter, reference: Digest, policy: Policy, found: Sequence[Found]) -> Verdict:
    outcome, reason, modules = decide(found, policy)
    return Verdict(
        id=_verdict_id(adapter, reference, policy, modules),
        metric=METRIC_VERSION,
        policy=policy,
        reference=reference,
        outcome=outcome,
        reason=reason,
        modules=modules,
    )


def _misfit(adapter: Adapter, reference: Reference) -> Refused | None:
    """Return the refusal of an adapter that does not fit the reference, naming the first such module; None if it fits."""
    for module in adapter.modules:
        name, shape = module.name, reference.modules.get(module.name)
        if shape is None:
            return Refused(UNKNOWN_MODULE, f"module {name} is not in the reference", param=name)
        if (module.b.shape[0], module.a.shape[1], module.b.shape[1]) != (shape.d_out, shape.d_in, module.a.shape[0]):
            given = f"B {tuple(module.b.shape)} times A {tuple(module.a.shape)}"
            return Refused(
                WRONG_SHAPE, f"module {name}: {given} does not make {shape.d_out} × {shape.d_in}", param=name
            )
    return None


def _groups(adapters: Sequence[Adapter | None]) -> tuple[list[list[int]], list[list[LoraModule]]]:
    """Group the modules to be measured in one read of V, at most COLUMNS columns (or one module); with their owners."""
    owners: list[list[int]] = []
    groups: list[list[LoraModule]] = []
    last: dict[str, int] = {}
    for owner, adapter in enumerate(adapters):
        for module in () if adapter is None else adapter.modules:
            at = last.get(module.name)
            if at is None or sum(m.rank for m in groups[at]) + module.rank > COLUMNS:
                at = last[module.name] = len(groups)
                groups.append([])
                owners.append([])
            groups[at].append(module)
            owners[at].append(owner)
    return owners, groups


def _measure(modules: Sequence[LoraModule], reference: Reference, policy: Policy) -> list[Found | Refused]:
    """Measure the updates of one module by several adapters; Refused for those that the engine would compute otherwise."""
    name = modules[0].name
    info, v = reference.info(name), reference.v(name)
    updates = [thin_svd(module.b, module.a) for module in modules]
    active = [u for u in updates if u is not None and u.norm > 0.0 and info.v_norm > 0.0]
    measured = against_v_together(active, v, info) if active and v is not None else []
    against = {id(u): one for u, one in zip(active, measured, strict=False)}
    vectors = reference.singular_vectors(name, policy) if active and reference.triples(name) is not None else None
    found: list[Found | Refused] = []
    for module, update in zip(modules, updates, strict=True):
        why = None if update is None else objection(module, update, None if vectors is None else vectors.r)
        if why is not None:
            found.append(Refused(BAD_NUMBERS, f"module {name}: {why}", param=name))
            continue
        mine = vectors if any(update is u for u in active) else None
        found.append(_found(module, update, info, against.get(id(update)), mine))
    return found


def _found(
    module: LoraModule,
    update: Update | None,
    info: ModuleInfo,
    against: AgainstV | None,
    vectors: SingularVectors | None,
) -> Found:
    scored: dict[Comparison, Scored] = {}
    share = removed = None
    if update is not None and vectors is not None:
        scored[Comparison.INPUT] = against_inputs(update, vectors.r)
        share = input_share(update, scored[Comparison.INPUT])
        removed = removed_share(update, vectors.r, vectors.u)
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
    )


def _score(scored: Scored | None) -> float | None:
    score = None if scored is None else scored.score
    return None if score is None else round(score, SCORE_DECIMALS)


def _verdict_id(adapter: Adapter, reference: Digest, policy: Policy, modules: tuple[ModuleVerdict, ...]) -> Digest:
    """Return the digest of the measured bytes, the policy and reference, and the decisions; scores are left out, because
    their last bits may differ."""
    bytes_of = {m.name: (_bytes_digest(m.a), _bytes_digest(m.b)) for m in adapter.modules}
    fields = {
        "metric": METRIC_VERSION,
        "policy": asdict(policy),
        "reference": str(reference),
        "dtype": adapter.dtype,
        "modules": [[m.name, *bytes_of[m.name], m.scaling, m.decision, m.reason] for m in modules],
    }
    return digest_of(json.dumps(fields, sort_keys=True).encode())


def _bytes_digest(tensor: Tensor) -> str:
    sha = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    sha.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
