"""What metrics ask the rooms at each scrape, rather than being told."""

import shutil

from app.observe.metrics import Metrics
from app.pipeline import Pipeline
from app.upload.quarantine import Quarantine
from app.upload.receive import Slots


def watch_waiting(metrics: Metrics, slots: Slots, quarantine: Quarantine, floor_bytes: int) -> None:
    """Uploads under way, and the room they wait in. floor_bytes: uploads are refused when less is free."""
    gauges = metrics.uploads
    gauges.store_reserve.set(floor_bytes)
    metrics.watch(gauges.in_progress, lambda: slots.in_use)
    metrics.watch(gauges.quarantine_files, lambda: quarantine.open_files)
    metrics.watch(gauges.quarantine_bytes, lambda: quarantine.open_bytes)


def watch_house(pipeline: Pipeline) -> None:
    """Versions in work, the store's disk, and what the engine holds."""
    rooms, metrics = pipeline.rooms, pipeline.rooms.metrics
    store, reconciler, engine = rooms.blobs.root, rooms.reconciler, metrics.engine
    metrics.watch(metrics.uploads.screening, lambda: pipeline.working)
    metrics.watch(metrics.uploads.store_free, lambda: shutil.disk_usage(store).free)
    metrics.watch(metrics.uploads.store_size, lambda: shutil.disk_usage(store).total)
    metrics.watch(engine.up, lambda: reconciler.engine_up)
    metrics.watch(engine.resident, lambda: len(reconciler.loaded))
    metrics.watch(engine.desired, lambda: len(pipeline.publishing.desired()))
    metrics.watch(engine.failing, lambda: len(reconciler.failures))
