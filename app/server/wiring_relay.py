"""Relay of inference requests, made from the settings, and its choice of engines."""

from app.gateway.components import Components
from app.gateway.rollout_watch import LiveHooks, RolloutGuard, ShadowHooks
from app.load.client.engine import HttpEngine
from app.load.embedded.command import cpu_build
from app.load.fleet.fleet import Fleet
from app.load.reconcile.reconciler import Reconciler
from app.serve.admission import Admission
from app.serve.relay import Choose, Relay, only
from app.serve.shadows import Shadows
from app.server.settings import Settings


def relay_of(
    settings: Settings, components: Components, choose: Choose, admission: Admission, guard: RolloutGuard
) -> Relay:
    """Return the relay. choose: engines for a request."""
    metrics = components.metrics
    return Relay(
        choose,
        components.routing_table,
        hooks=LiveHooks(metrics, guard.counted),
        shadows=Shadows(admission, metrics.rollouts.shadow_dropped),
        shadow_hooks=ShadowHooks(metrics, guard.counted),
        missing=lambda _: components.reconciler.poke(),
        pool=components.pools.bodies,
        prompt_logprobs=settings.prompt_logprobs,
        seeds=bool(settings.engine_urls or not cpu_build()) if settings.seeds is None else settings.seeds,
    )


def choose_of(engine: HttpEngine | Fleet, components: Components) -> Choose:
    """Return the choice of engines for a request."""
    if isinstance(engine, Fleet):
        return engine.choose
    return only(engine, lambda: not _known_down(components.reconciler))


def _known_down(reconciler: Reconciler | Fleet) -> bool:
    """Return whether an engine is known to be down: asked at least once, and not up. Before that no request is refused."""
    return any(one.looked and not one.engine_up for one in reconciler.each)
