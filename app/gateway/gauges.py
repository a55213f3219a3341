"""Gauges whose values are computed when Prometheus scrapes them, not pushed on each change."""

import shutil
from functools import partial

from app.domain.shares import Resource, Shares
from app.gateway.uploads import Uploads
from app.load.fleet.fleet import Fleet
from app.load.fleet.member import Member
from app.observe.metrics import Metrics
from app.upload.quarantine import Quarantine


def watch_waiting(metrics: Metrics, shares: Shares, quarantine: Quarantine, floor_bytes: int) -> None:
    """Register the gauges of uploads in progress and of the quarantine.

    floor_bytes: uploads are refused if less disk space is free.
    """
    gauges = metrics.uploads
    gauges.store_reserve.set(floor_bytes)
    metrics.watch(gauges.in_progress, lambda: shares.in_use(Resource.UPLOADS))
    metrics.watch(gauges.quarantine_files, lambda: quarantine.open_files)
    metrics.watch(gauges.quarantine_bytes, lambda: quarantine.open_bytes)


def watch_gateway(uploads: Uploads) -> None:
    """Register the gauges of versions in progress, the store's disk, and the engine's adapters."""
    components, metrics = uploads.components, uploads.components.metrics
    store, reconciler, engine = components.blobs.root, components.reconciler, metrics.engine
    metrics.watch(metrics.uploads.screening, lambda: uploads.working)
    metrics.watch(metrics.uploads.store_free, lambda: shutil.disk_usage(store).free)
    metrics.watch(metrics.uploads.store_size, lambda: shutil.disk_usage(store).total)
    metrics.watch(engine.up, lambda: reconciler.engine_up)
    metrics.watch(engine.resident, lambda: len(reconciler.loaded))
    metrics.watch(engine.desired, lambda: len(uploads.components.desired.state.adapters))
    metrics.watch(engine.failing, lambda: len(reconciler.failures))


def watch_fleet(metrics: Metrics, fleet: Fleet) -> None:
    """Register the gauges of each engine of a fleet: up, number of adapters, requests in flight.

    Engines that join later are added; the metrics of engines that leave are removed.
    """
    gauges = metrics.fleet

    def watch(member: Member) -> None:
        label = str(member.number)
        metrics.watch(gauges.up.labels(label), partial(_up, member))
        metrics.watch(gauges.resident.labels(label), partial(_resident, member))
        metrics.watch(gauges.in_flight.labels(label), partial(_in_flight, member))

    def forget(member: Member) -> None:
        for metric in (gauges.up, gauges.resident, gauges.in_flight, gauges.asked):
            metric.remove_by_labels({"engine": str(member.number)})

    fleet.joined, fleet.parted = watch, forget
    for member in fleet.members:
        watch(member)


def _up(member: Member) -> float:
    return member.reconciler.engine_up


def _resident(member: Member) -> float:
    return len(member.reconciler.loaded)


def _in_flight(member: Member) -> float:
    return member.flying
