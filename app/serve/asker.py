"""Asker: the sender of an inference request, as far as the relay must know it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.domain.tenants import EVERYTHING, Reach
from app.serve.routing_table import Target

Used = Callable[[Target, Mapping[str, Any] | None], None]
"""Called once, when a request that reached an engine has ended, with OpenAI's token counts: empty if it failed, None if the
client left before they came. It must not block or raise."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Sender of a request. reach: adapters that it can name. cache: name of the cache of prompts that its requests may use
    and add to; None: the one without a name. used: None: nobody counts. session: value of the header that names the session
    that the request belongs to; None: it has none."""

    reach: Reach = EVERYTHING
    cache: str | None = None
    used: Used | None = None
    session: str | None = None


GATEWAY: Final = Asker()
"""The gateway itself."""
