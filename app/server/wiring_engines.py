"""Engines of one gateway, made from its settings: served model, embedded or external engines, and their reconcilers."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.domain.errors import MODEL_MISMATCH, Unavailable
from app.domain.policy import Towers
from app.gateway.gauges import watch_fleet
from app.load.client.engine import HttpEngine
from app.load.client.identity import RECORD, Expected, Identify, ModelCheck
from app.load.embedded.command import EngineSpec
from app.load.embedded.download import local_model
from app.load.embedded.supervisor import EmbeddedEngine, socket_home
from app.load.fleet.dns import fleet_of
from app.load.fleet.fleet import Fleet
from app.load.fleet.member import CheckedEngine
from app.load.reconcile.callbacks import Callbacks
from app.load.reconcile.plugin_engine import ReconcilerFactory
from app.load.reconcile.reconciler import Reconciler
from app.observe.log import event
from app.observe.metrics import Metrics
from app.screen.reference.open import Reference
from app.screen.served import CACHE, difference
from app.server.settings import Settings


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Served model.

    spec: specification of the embedded engine that serves it; None with external engines. identify: checks the identity of
    an engine's model.
    """

    spec: EngineSpec | None
    identify: Identify


def served_model(settings: Settings, reference: Reference) -> ServedModel:
    """Return the model to serve. Blocking.

    Raises Unavailable MODEL_MISMATCH if the embedded engine's model is not the reference's, or as `engine_spec`.
    """
    spec = None if settings.engine_urls else engine_spec(settings)
    files = None if spec is None else Path(spec.model)
    check = ModelCheck(
        Expected(
            name=settings.served_name,
            checkpoint=reference.manifest.aligned,
            difference=partial(difference, manifest=reference.manifest, cache=settings.data / CACHE),
            record=settings.data / RECORD,
            files=files,
            trusted=settings.trust_model,
        )
    )
    if files is not None:
        event("comparing_model", path=files, hint="its files are read once, and again when they have changed")
        try:
            found = check.of_files(files).objection
        except Unavailable as error:
            found = None if settings.trust_model else error.message
        if found is not None:
            raise Unavailable(MODEL_MISMATCH, f"{files}: {found}")
    return ServedModel(spec, check.identify)


def engines(
    settings: Settings,
    spec: EngineSpec | None,
    callbacks: Callbacks,
    metrics: Metrics,
    make_reconciler: ReconcilerFactory,
) -> tuple[EmbeddedEngine | None, HttpEngine | Fleet, Reconciler | Fleet]:
    """Return the embedded engine (None with external ones), the client or fleet for requests, and its reconciler.

    spec: specification of the embedded engine, if there is one.
    """
    urls, key = settings.engine_urls, engine_key(settings)
    made, report = partial(CheckedEngine, api_key=key), partial(event, "engines")
    if fleet := fleet_of(
        urls,
        made,
        callbacks,
        on_result=metrics.engine_asked,
        make_reconciler=make_reconciler,
        report=lambda it: report(says=it),
    ):
        watch_fleet(metrics, fleet)
        return None, fleet, fleet
    if spec is None:
        engine = HttpEngine(urls[0], api_key=key)
        return None, engine, make_reconciler(engine, callbacks)
    embedded = _embedded(settings, spec)
    reconciler = Reconciler(embedded.client, callbacks)
    embedded.on_ready = reconciler.poke
    embedded.on_restart = metrics.engine_restarted
    embedded.hangs = reconciler.hangs
    return embedded, embedded.client, reconciler


def _embedded(settings: Settings, spec: EngineSpec) -> EmbeddedEngine:
    return EmbeddedEngine(
        spec,
        socket_home(settings.data / "engine"),
        settings.data / "engine.log",
        report=lambda line: event("engine", says=line),
    )


def engine_spec(settings: Settings) -> EngineSpec:
    """Return the specification of the embedded engine. Blocking.

    Raises Unavailable ENGINE_UNAVAILABLE if the model is neither a directory nor available from the hub.
    """
    return EngineSpec(
        model=local_model(settings.model),
        served_name=settings.served_name,
        dtype=settings.dtype.value,
        max_loras=settings.max_loras,
        max_lora_rank=settings.max_lora_rank,
        max_cpu_loras=settings.max_cpu_loras,
        max_model_len=settings.max_model_len,
        kv_cache_gib=settings.kv_cache_gib,
        threads=settings.engine_threads,
        tool_call_parser=settings.tool_call_parser,
        memory_bytes=settings.engine_memory_mib and settings.engine_memory_mib << 20,
        step_tokens=settings.engine_step_tokens,
        tower_lora=settings.towers is Towers.SERVE,
    )


def engine_key(settings: Settings) -> str | None:
    """Return the key of the external engines; None if they need none."""
    return settings.engine_api_key.get_secret_value() if settings.engine_api_key else None
