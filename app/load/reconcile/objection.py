"""Reasons against using an engine that answers: asked for whenever it comes up."""

import logging

from app.domain.errors import Unavailable
from app.load.client.engine import Engine
from app.load.client.identity import Identify, Identity


class Objection:
    """Against one engine. why: what was found when last asked; None: nothing. model: what it serves, once asked."""

    def __init__(self, identify: Identify) -> None:
        self.why: str | None = None
        self.model: Identity | None = None
        self._identify = identify

    async def stands(self, engine: Engine) -> bool:
        """Ask; whether the engine must count as away. Said in the log when it is new."""
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
