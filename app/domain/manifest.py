"""Manifest of an artefact and report of a version: upload as received, measurements, modules removed and written."""

import json
from dataclasses import asdict
from typing import Any, Final

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE, content_digest_of
from app.domain.combined_score import Total, Totals, kept, totals_of
from app.domain.digest import Digest
from app.domain.lora import Received
from app.domain.policy import Comparison, Policy
from app.domain.verdict import METRIC_VERSION, Decision, ModuleVerdict, Outcome, Reason, Verdict

MANIFEST_FORMAT: Final = 1


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as plain JSON values; scores that could not be, or were not, `measured` are null.

    `together`: the combined score of all modules and of each block (combined_score.py), over the modules `received` and
    over those `kept`.
    """
    comparison = verdict.policy.comparison
    return {
        "id": str(verdict.id),
        "metric": verdict.metric,
        "measured": [comparison.value for comparison in verdict.measured],
        "policy": {key: _plain(value) for key, value in asdict(verdict.policy).items()},
        "reference": str(verdict.reference),
        "outcome": verdict.outcome.value,
        "reason": verdict.reason,
        "modules_total": len(verdict.modules),
        "modules_pruned": len(verdict.pruned),
        "modules_projected": len(verdict.projected),
        "together": {
            "received": _totals_json(totals_of(verdict.modules, comparison)),
            "kept": _totals_json(totals_of(kept(verdict.modules), comparison)),
        },
        "modules": [_module_json(module) for module in verdict.modules],
    }


def _plain(value: object) -> object:
    return str(value) if isinstance(value, str) else value


def _totals_json(totals: Totals) -> dict[str, Any]:
    return {"adapter": _total_json(totals.adapter), "blocks": [_total_json(block) for block in totals.blocks]}


def _total_json(total: Total) -> dict[str, Any]:
    return asdict(total)


def _module_json(module: ModuleVerdict) -> dict[str, Any]:
    return {
        "name": module.name,
        "decision": module.decision.value,
        "reason": module.reason.value,
        "scores": {str(comparison): score for comparison, score in module.scores.items()},
        "safe_lora_cosine": module.cosine,
        "input_share": module.input_share,
        "removed_share": module.removed_share,
        "inputs": module.inputs,
        "update_norm": module.update_norm,
        "v_norm": module.v_norm,
        "lambda_max": module.lambda_max,
        "rank": module.rank,
        "scaling": module.scaling,
    }


def verdict_from(fields: Any, policy: Policy, reference: Digest) -> Verdict:
    """Parse a verdict that `verdict_json` wrote and that was made by this policy and this reference.

    Raises ValueError for anything else, however it is malformed.
    """
    try:
        verdict = Verdict(
            id=Digest(fields["id"]),
            metric=METRIC_VERSION,
            policy=policy,
            reference=reference,
            outcome=Outcome(fields["outcome"]),
            reason=str(fields["reason"]),
            modules=tuple(_module_from(entry) for entry in fields["modules"]),
            measured=tuple(map(Comparison, fields["measured"])),
        )
        if verdict_json(verdict) == fields:
            return verdict
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"no verdict: {type(error).__name__}") from error
    raise ValueError("no verdict of this policy and reference")


def _module_from(entry: Any) -> ModuleVerdict:
    return ModuleVerdict(
        name=entry["name"],
        rank=entry["rank"],
        scaling=entry["scaling"],
        scores={Comparison(key): score for key, score in entry["scores"].items()},
        cosine=entry["safe_lora_cosine"],
        update_norm=entry["update_norm"],
        v_norm=entry["v_norm"],
        lambda_max=entry["lambda_max"],
        decision=Decision(entry["decision"]),
        reason=Reason(entry["reason"]),
        input_share=entry["input_share"],
        removed_share=entry["removed_share"],
        inputs=entry["inputs"],
    )


def received_json(received: Received) -> dict[str, Any]:
    """Return the digests and sizes of an upload as plain JSON values."""
    return {
        "config_sha256": str(received.config_digest),
        "config_bytes": received.config_bytes,
        "weights_sha256": str(received.weights_digest),
        "weights_bytes": received.weights_bytes,
    }


def manifest_json(received: Received, verdict: Verdict, *, config: Digest, weights: Digest) -> bytes:
    """Return `manifest.json` of an artefact: no name and no time, so that equal uploads give equal manifests."""
    fields = {
        "format": MANIFEST_FORMAT,
        "digest": str(content_digest_of(config, weights)),
        "files": {CONFIG_FILE: str(config), WEIGHTS_FILE: str(weights)},
        "received": received_json(received),
        "verdict": verdict_json(verdict),
    }
    return (json.dumps(fields, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
