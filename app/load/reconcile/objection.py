"""Objections to an engine that answers: reasons not to use it, checked whenever it comes up."""

import logging

from app.domain.errors import Unavailable
from app.load.client.engine import Engine
from app.load.client.identity import Identify, Identity


class Objection:
    """Objection to one engine.

    why: reason found by the last check; None if there was none.
    model: identity of its model, once it has been checked.
    """

    def __init__(self, identify: Identify) -> None:
        self.why: str | None = None
        self.model: Identity | None = None
        self._identify = identify

    async def stands(self, engine: Engine) -> bool:
        """Check the engine and return whether it must count as down. A new reason is logged."""
        before = self.why
        try:
            why = await engine.objection()
            if why is None:
                model = await self._identify(engine)
                self._note(model)
                why = model.objection
        except Unavailable:
            return True
        self.why = why
        if why is not None and why != before:
            logging.getLogger("gateway").error("engine not used: %s", why)
        return why is not None

    def _note(self, model: Identity) -> None:
        if model != self.model and model.objection is None:
            level = logging.INFO if model.compared else logging.WARNING
            logging.getLogger("gateway").log(level, "served model: %s", model.note)
        self.model = model
