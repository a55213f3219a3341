"""Reload of the battery, on SIGHUP: a new plan for uploads from then on, and versions that are served are asked again."""

import logging
from collections.abc import Callable

from app.domain.errors import GatewayError
from app.evaluate.plan import Plan
from app.gateway.canary_recheck import CanaryRecheck
from app.gateway.catalogue_follower import CatalogueFollower
from app.gateway.components import Components
from app.observe.log import event


async def reload_battery(
    components: Components,
    follower: CatalogueFollower,
    recheck: CanaryRecheck | None,
    read: Callable[[], Plan | None],
) -> None:
    """Read the battery again and put it in force; a faulty one is logged, and the one before stays.

    read: reads the file; blocking. recheck: None if the gateway was started without a battery.
    """
    if recheck is None:
        event(
            "canaries_not_reloaded",
            logging.WARNING,
            why="the gateway was started without a battery: restart it with one",
        )
        return
    try:
        plan = await components.pools.store(read)
    except GatewayError as error:
        event("canaries_not_reloaded", logging.ERROR, why=error.message, note="the battery in force stays")
        return
    changed = await components.pools.store(components.rules.replace, plan)
    event("canaries_reloaded", changed=changed)
    if not changed:
        return
    if components.peers is not None:
        components.peers.parameters = components.parameters  # sent with the next heartbeat
    try:
        await follower.refresh()
    except GatewayError as error:
        event("not_following", logging.ERROR, why=error.message)  # followed at the next pass
    recheck.poke()
