"""Wiring: opens the components and use cases of one gateway and connects them, according to its settings."""

import logging
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from app.api.access.ending import Ending
from app.api.access.keys import Keys
from app.api.access.rate_limits import Kind, Rates
from app.api.dependencies import Context
from app.concurrency.pools import Pools
from app.domain.digest import Digest
from app.domain.lora import TargetModel
from app.domain.outside import LOOPBACK, Outside
from app.domain.tenant_limits import limits_from
from app.gateway.audit_job import Audited, Auditor, engines_of
from app.gateway.audit_trail import AuditTrail
from app.gateway.battery_reload import reload_battery
from app.gateway.canary_recheck import CanaryRecheck
from app.gateway.catalogue_follower import CatalogueFollower
from app.gateway.components import Components
from app.gateway.desired_state import StateInForce
from app.gateway.evaluation import Evaluation
from app.gateway.garbage import GarbageCollector
from app.gateway.gauges import watch_gateway
from app.gateway.key_ring import KeyRing
from app.gateway.peer_sync import PeerSync
from app.gateway.policy_recheck import PolicyRecheck
from app.gateway.publishing import Publishing
from app.gateway.readiness import details_of, readiness_of
from app.gateway.recovery import recover
from app.gateway.rescreening import Rescreening
from app.gateway.rollout_watch import RolloutGuard
from app.gateway.rollouts import Rollouts
from app.gateway.rules_in_force import RulesInForce
from app.gateway.tenant_meter import TenantMeter
from app.gateway.tenant_rules import TenantRules
from app.gateway.uploads import Uploads
from app.gateway.usage_ledger import UsageLedger
from app.gateway.version_summary import Summaries
from app.gateway.webhook_delivery import Webhooks
from app.gateway.zero_adapter import store_zero_adapter, zero_adapter_name
from app.load.client.engine import HttpEngine
from app.load.embedded.command import cpu_build
from app.load.embedded.supervisor import EmbeddedEngine
from app.load.fleet.fleet import Fleet
from app.load.reconcile.callbacks import AfterPass, Callbacks
from app.load.reconcile.plugin_engine import reconciler_factory
from app.load.reconcile.reconciler import Reconciler
from app.observe.log import event
from app.observe.metrics import Metrics
from app.observe.traces import open_traces
from app.observe.upload_progress import Progress
from app.sandbox.client import Sandbox
from app.sandbox.sanitise import Measure, sanitise
from app.screen.reference.open import Reference, check_policy, open_reference, short_of_energy
from app.serve.admission import Admission
from app.serve.in_flight import InFlight
from app.serve.relay import only
from app.serve.routing_table import RoutingTable
from app.server.receiving import receiver, shares_of
from app.server.settings import Settings
from app.server.settings.in_force import settings_in_force
from app.server.wiring_engines import ServedModel, engine_key, engines, served_model
from app.server.wiring_relay import choose_of, relay_of
from app.server.wiring_rules import parameters_of, plan_of
from app.server.wiring_sign_on import sign_on_of
from app.store.audit_file import AuditFile
from app.store.open import Place, Store, catalogue_at, open_store
from app.store.uploads import ORIGINALS, KeptUploads
from app.upload.limits import MIB
from app.validate.adapter import ValidateLimits

OWN_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Names of loopback in a Host header."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway, opened and wired.

    embedded: supervisor of the embedded engine; None with external engines. engine: client of the only engine, or the
    fleet. front: client of the inference gateway in front of the engines, if there is one. recheck: None without a battery.
    reload: reads the battery again. sandbox: None if uploads are read in this process. drain_seconds: time for running
    requests after SIGTERM. hosts: accepted Host names; empty: any. origins: those whose pages may call the API. closers:
    closes everything that was opened.
    """

    embedded: EmbeddedEngine | None
    engine: HttpEngine | Fleet
    front: HttpEngine | None
    reconciler: Reconciler | Fleet
    sandbox: Sandbox | None
    auditor: Auditor
    recheck: CanaryRecheck | None
    reload: Callable[[], Coroutine[Any, Any, None]]
    peer_sync: PeerSync | None
    context: Context
    drain_seconds: float
    hosts: frozenset[str]
    origins: frozenset[str]
    closers: ExitStack


def wire_gateway(settings: Settings) -> Gateway:
    """Open and wire every component. Blocking. Starts only the sandbox; `app.started` starts the rest."""
    closers = ExitStack()
    try:
        wired = _wire(settings, closers)
        watch_gateway(wired.context.uploads)
        return wired
    except BaseException:
        closers.close()
        raise


def _wire(settings: Settings, closers: ExitStack) -> Gateway:
    traces = closers.enter_context(closing(open_traces(settings.otlp_endpoint)))
    metrics = Metrics(traces=traces, log_requests=settings.log_requests)
    reference = _reference(settings, metrics)
    model = served_model(settings, reference)
    plan = plan_of(settings, reference)
    rules = RulesInForce(settings.policy, plan, partial(parameters_of, settings, reference))
    store = open_store(_place(settings, rules.operators.parameters), closers)
    blobs, peers = store.blobs, store.peers
    pools = closers.enter_context(closing(Pools.for_uploads(settings.max_uploads)))  # closed after the sandbox
    target = TargetModel(settings.served_name, reference.modules, settings.dtype, settings.max_lora_rank)
    zero = store_zero_adapter(target, reference, settings.policy, store) if _uses_zero_adapter(settings) else None
    desired, in_flight, after_pass = StateInForce(), InFlight(), AfterPass()
    callbacks = _callbacks(settings, metrics, model, store, desired, in_flight, after_pass)
    make_reconciler = reconciler_factory(settings.engine_resolves, desired.waiting)
    embedded, engine, reconciler = engines(settings, model.spec, callbacks, metrics, make_reconciler)
    routing_table = RoutingTable(
        settings.served_name,
        base=zero_adapter_name(zero.digest) if zero else None,
        in_flight=in_flight,
        loaded=lambda name: reconciler.is_loaded(name) and (peers is None or peers.fresh),
    )
    limits = ValidateLimits(max_scaling=settings.max_scaling, base_names=settings.base_names)
    rungs = tuple(plan.policies) if plan else ()
    measure = Measure(
        target,
        limits,
        reference,
        settings.policy,
        settings.screen_seconds,
        rungs,
        complete=settings.all_comparisons,
    )
    sandbox = _sandbox(settings, measure, closers)
    components = Components(
        target=target,
        reference=reference,
        screen_seconds=settings.screen_seconds,
        keep_versions=settings.keep_versions,
        sanitise=sandbox or partial(sanitise, measure),
        blobs=blobs,
        kept_uploads=KeptUploads(settings.data / ORIGINALS, keep=settings.keep_originals),
        catalogue=store.catalogue,
        reconciler=reconciler,
        desired=desired,
        routing_table=routing_table,
        metrics=metrics,
        progress=Progress(),
        zero=zero,
        pools=pools,
        rules=rules,
        peers=peers,
    )
    return _with_use_cases(settings, components, after_pass, embedded, engine, sandbox, closers)


def _with_use_cases(
    settings: Settings,
    components: Components,
    after_pass: AfterPass,
    embedded: EmbeddedEngine | None,
    engine: HttpEngine | Fleet,
    sandbox: Sandbox | None,
    closers: ExitStack,
) -> Gateway:
    garbage = GarbageCollector(components)
    follower = CatalogueFollower(components, PolicyRecheck(components), garbage)
    evaluates = components.rules.operators.plan is not None
    evaluation = Evaluation(components, follower, choose_of(engine, components)) if evaluates else None
    recheck = CanaryRecheck(components, follower, evaluation, settings.canary_recheck_seconds) if evaluation else None
    publishing = Publishing(components, follower, garbage, evaluation)
    recover(components, follower, garbage)
    uploads = Uploads(components, publishing, garbage)
    rollouts = Rollouts(components, follower, publishing)
    guard = RolloutGuard(components, rollouts)
    after_pass.connect(publishing.settle, guard.look)
    auditor = _auditor(settings, uploads, engine)
    front = HttpEngine(settings.requests_url, api_key=engine_key(settings)) if settings.requests_url else None
    peers = components.peers
    return Gateway(
        embedded=embedded,
        engine=engine,
        front=front,
        reconciler=components.reconciler,
        sandbox=sandbox,
        auditor=auditor,
        peer_sync=PeerSync(peers, components, follower, garbage) if peers else None,
        recheck=recheck,
        reload=partial(reload_battery, components, follower, recheck, partial(plan_of, settings, components.reference)),
        context=_context(
            settings,
            uploads,
            rollouts,
            guard,
            engine,
            front,
            evaluation,
            auditor,
            TenantRules(components, follower),
            closers,
        ),
        drain_seconds=settings.drain_seconds,
        hosts=_hosts(settings),
        origins=settings.allowed_origins,
        closers=closers,
    )


def _callbacks(
    settings: Settings,
    metrics: Metrics,
    model: ServedModel,
    store: Store,
    desired: StateInForce,
    in_flight: InFlight,
    after_pass: AfterPass,
) -> Callbacks:
    return Callbacks(
        desired=desired.adapters,
        verify=lambda _, path: store.blobs.verify(Digest(path.name)),
        interval_s=settings.reconcile_seconds,
        silent_s=settings.engine_silent_seconds,
        idle=in_flight.idle,
        on_try=metrics.load_tried,
        on_lost=metrics.adapters_lost,
        after_pass=after_pass,
        identify=model.identify,
    )


def _context(
    settings: Settings,
    uploads: Uploads,
    rollouts: Rollouts,
    guard: RolloutGuard,
    engine: HttpEngine | Fleet,
    front: HttpEngine | None,
    evaluation: Evaluation | None,
    auditor: Auditor,
    tenant_rules: TenantRules,
    closers: ExitStack,
) -> Context:
    components, shares = uploads.components, shares_of(settings)
    catalogue, pools, shared = components.catalogue, components.pools, components.peers is not None
    ring = KeyRing(settings.keys, catalogue.keys, pools, shares, shared=shared)
    sign_on = sign_on_of(settings)
    choose, admission = only(front) if front else choose_of(engine, components), Admission(shares)
    per_minute = {
        Kind.UPLOAD: settings.uploads_per_minute,
        Kind.SCREEN: settings.screens_per_minute,
        Kind.CHAT: settings.chats_per_minute,
    }
    return Context(
        keys=Keys(ring.find, open_door=settings.open_door, sign_on=sign_on),
        ring=ring,
        sign_on=sign_on,
        usage=UsageLedger(catalogue.usage, pools, settings.usage_days, components.metrics.tenants),
        meter=TenantMeter(catalogue.limits, pools, components.metrics.tenants, components.notices, shared=shared),
        tenant_rules=tenant_rules,
        webhooks=_webhooks(settings, components),
        trail=AuditTrail(catalogue.audit_log, pools, _audit_file(settings, closers)),
        rates=Rates(per_minute, per_day={Kind.SCREEN: settings.screens_per_day}),
        ending=Ending(),
        shares=shares,
        admission=admission,
        metrics=components.metrics,
        uploads=uploads,
        rollouts=rollouts,
        summaries=Summaries(catalogue),
        evaluation=evaluation,
        rescreening=Rescreening(uploads),
        relay=relay_of(settings, components, choose, admission, guard),
        routing_table=components.routing_table,
        receive=receiver(settings, components, shares, closers),
        readiness=readiness_of(engine, components),
        details=details_of(components),
        engine_metrics=engine.exposition,
        auditor=auditor,
        signer=settings.signer,
        settings=settings_in_force(settings),
    )


def _webhooks(settings: Settings, components: Components) -> Webhooks:
    outside, c = Outside.of(settings.webhook_targets), components
    return Webhooks(c.catalogue.webhooks, c.pools, outside, settings.webhook_master, c.notices, c.metrics.tenants)


def _audit_file(settings: Settings, closers: ExitStack) -> AuditFile | None:
    return closers.enter_context(closing(AuditFile(settings.audit_file))) if settings.audit_file else None


def _reference(settings: Settings, metrics: Metrics) -> Reference:
    pinned = Digest(settings.reference_digest) if settings.reference_digest else None
    reference = open_reference(settings.reference, pinned, device=settings.screen_device)
    check_policy(reference, settings.policy)
    if short := short_of_energy(reference, settings.policy):
        event(
            "reference_holds_less_than_energy",
            logging.WARNING,
            modules=short,
            energy=settings.energy,
            hint="top-k bounds their inputs, which do not hold that share of V; GATEWAY_TOP_K may be higher",
        )
    metrics.in_force(reference.digest.short, reference.modules, settings.policy)
    event("reference", digest=reference.digest.short, modules=len(reference.modules), path=settings.reference)
    return reference


def _place(settings: Settings, parameters: str) -> Place:
    return Place(
        data=settings.data,
        artefacts=settings.artefacts,
        store_url=settings.store_url,
        catalogue_url=settings.catalogue_url,
        patience_s=settings.catalogue_wait_seconds,
        parameters=parameters,
        copies_bytes=settings.copies_mib * MIB,
        signatures=settings.signatures,
        default_limits=limits_from(settings.tenant_limits),
    )


def _hosts(settings: Settings) -> frozenset[str]:
    """Return the accepted Host names; empty: any.

    Without keys on loopback only loopback's own names are accepted: a foreign site's name that resolves to loopback must
    not make that site's pages same-origin with this gateway (DNS rebinding).
    """
    open_here = settings.open_door and settings.host in LOOPBACK
    return settings.allowed_hosts or (OWN_NAMES if open_here else frozenset())


def _auditor(settings: Settings, uploads: Uploads, engine: HttpEngine | Fleet) -> Auditor:
    asked = partial(engines_of, engine, uploads.components.reconciler)
    engines = (lambda: ()) if settings.engine_resolves else asked  # such engines list paths on machines of their own
    catalogue_url = catalogue_at(settings.data, settings.catalogue_url)
    scope = Audited(settings.data, catalogue_url, engines, engine_key(settings), settings.artefacts, settings.store_url)
    return Auditor(uploads, scope, settings.audit_seconds)


def _sandbox(settings: Settings, measure: Measure, closers: ExitStack) -> Sandbox | None:
    """Start and return the sandbox; None if uploads are to be read in this process.

    It is started at once, because it takes seconds to be warm. There is none if a device other than the CPU screens: such
    a device cannot be shared by forking.
    """
    if not settings.screen_sandbox or settings.screen_device != "cpu":
        event("sandbox", logging.WARNING, network="not isolated: uploads are read in the gateway's own process")
        return None
    sandbox = Sandbox(measure, settings.reference, settings.screen_memory_mib * MIB)
    closers.callback(sandbox.close)
    sandbox.start()
    return sandbox


def _uses_zero_adapter(settings: Settings) -> bool:
    """Return whether the served model answers through a zero adapter.

    It does by default with vLLM's CPU build, which applies adapters to the base model's rows of a batch, too.
    """
    if settings.base_through_noop is not None:
        return settings.base_through_noop
    return not settings.engine_urls and cpu_build()
