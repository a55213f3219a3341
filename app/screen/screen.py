"""All of screening for one adapter."""

import hashlib
import json
from dataclasses import asdict
from typing import Final

import torch
from torch import Tensor

from app.domain.digest import Digest, digest_of
from app.domain.lora import Adapter, LoraModule
from app.domain.policy import Comparison, Policy
from app.domain.verdict import METRIC_VERSION, ModuleVerdict, Verdict
from app.errors import UNKNOWN_MODULE, WRONG_SHAPE, Refused
from app.screen.decide import Found, decide
from app.screen.ediem import Scored, against_inputs, against_v, input_share
from app.screen.reference import Reference, check_policy
from app.screen.threads import each, usable_cores
from app.screen.update import thin_svd

SCORE_DECIMALS: Final = 6
"""Scores are rounded to this many decimals before anything is decided: what is reported is what was compared, and sums
taken in another order on another machine give the same decision."""


def screen(adapter: Adapter, reference: Reference, policy: Policy, *, workers: int | None = None) -> Verdict:
    """Measure every module of `adapter` against `reference` and decide by `policy`. Reads each V twice.

    workers: threads, each measuring one module at a time (None: one per usable core); the numbers do not depend on it.
    Memory beyond the reference is some 10 MiB a worker. The same bytes give the same verdict.

    Raises Refused UNKNOWN_MODULE or WRONG_SHAPE when the adapter does not fit, Unavailable BAD_REFERENCE when the reference
    cannot serve the policy or was changed on disk, ValueError for an adapter without modules.
    """
    if not adapter.modules:
        raise ValueError("an adapter without modules is not screened")
    check_policy(reference, policy)
    reference.check_unchanged()
    found = each(lambda module: _measure(module, reference, policy), adapter.modules, workers or usable_cores())
    reference.check_unchanged()
    outcome, reason, modules = decide(found, policy)
    return Verdict(
        id=_verdict_id(adapter, reference.digest, policy, modules),
        metric=METRIC_VERSION,
        policy=policy,
        reference=reference.digest,
        outcome=outcome,
        reason=reason,
        modules=modules,
    )


def _measure(module: LoraModule, reference: Reference, policy: Policy) -> Found:
    name = module.name
    shape = reference.modules.get(name)
    if shape is None:
        raise Refused(UNKNOWN_MODULE, f"module {name} is not in the reference", param=name)
    if (module.b.shape[0], module.a.shape[1], module.b.shape[1]) != (shape.d_out, shape.d_in, module.a.shape[0]):
        given = f"B {tuple(module.b.shape)} times A {tuple(module.a.shape)}"
        raise Refused(WRONG_SHAPE, f"module {name}: {given} does not make {shape.d_out} × {shape.d_in}", param=name)
    info = reference.info(name)
    update = thin_svd(module.b, module.a)
    scored: dict[Comparison, Scored] = {}
    cosine = share = None
    if update is not None and update.norm > 0.0 and info.v_norm > 0.0:
        triples, v = reference.triples(name), reference.v(name)
        if triples is not None:
            scored[Comparison.INPUT] = against_inputs(update, triples.r[:, : policy.top_k])
            share = input_share(update, scored[Comparison.INPUT])
        if v is not None:
            whole = against_v(update, v, info)
            scored[Comparison.ALIGNMENT], scored[Comparison.PROJECTION] = whole.alignment, whole.projection
            cosine = whole.cosine
    return Found(
        name=name,
        rank=module.rank,
        scaling=module.scaling,
        finite=update is not None,
        zero=update is not None and update.zero,
        scores={comparison: _score(scored.get(comparison)) for comparison in Comparison},
        cosine=cosine,
        update_norm=None if update is None else update.norm,
        v_norm=info.v_norm,
        lambda_max=info.lambda_max,
        input_share=share,
    )


def _score(scored: Scored | None) -> float | None:
    score = None if scored is None else scored.score
    return None if score is None else round(score, SCORE_DECIMALS)


def _verdict_id(adapter: Adapter, reference: Digest, policy: Policy, modules: tuple[ModuleVerdict, ...]) -> Digest:
    """Over what was measured (the very bytes), with what, and what was decided; no score, whose last bits may differ."""
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
