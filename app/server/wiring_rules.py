"""Rules in force from the settings: the plan of evaluating behaviour, and the key of everything a verdict depends on."""

import logging

from app.domain.digest import digest_of
from app.domain.policy import Policy
from app.domain.rungs import policies, rungs_from
from app.domain.verdict import METRIC_VERSION
from app.evaluate.battery import read, starter
from app.evaluate.plan import Plan
from app.observe.log import event
from app.sandbox.sanitise import RULES
from app.screen.reference.open import Reference, check_policy
from app.server.settings import Settings


def plan_of(settings: Settings, reference: Reference) -> Plan | None:
    """Return the plan of evaluating behaviour; None without a battery.

    Raises Refused BAD_BATTERY, or Unavailable BAD_REFERENCE if the reference does not hold what a rung takes out.
    """
    if settings.canaries is None:
        event("canaries", note="none: behaviour is not looked at", hint="set GATEWAY_CANARIES; docs/canaries.md")
        return None
    battery = read(settings.canaries)
    if battery.digest == digest_of(starter()):
        event("canaries_are_public", logging.WARNING, why="attackers have read the starter battery: bring your own")
    rungs = rungs_from(settings.rungs)
    made = policies(settings.policy, rungs)
    for rung, policy in zip(rungs, made, strict=True):
        check_policy(reference, policy, f"rung {rung}")
    plan = Plan(battery, rungs, made, settings.canary_tolerance, settings.canary_seconds, settings.canary_judge)
    event(
        "canaries", battery=battery.digest.short, canaries=len(battery.canaries), rungs=settings.rungs, judge=plan.judge
    )
    return plan


def parameters_of(settings: Settings, reference: Reference, policy: Policy, plan: Plan | None) -> str:
    """Return one key for everything that a verdict, a refusal and the written bytes depend on besides the upload.

    policy: the tenant's; a rejection by the operator's counts, too, so that both decide if they differ.
    """
    evaluation = () if plan is None else (plan.key,)
    bar = () if policy == settings.policy else (settings.policy,)
    parts = (
        RULES,
        METRIC_VERSION,
        str(reference.digest),
        policy,
        settings.dtype,
        settings.max_lora_rank,
        settings.max_scaling,
        None if settings.base_names is None else sorted(settings.base_names),
        *evaluation,
        *bar,
    )
    return digest_of(repr(parts).encode()).hex
