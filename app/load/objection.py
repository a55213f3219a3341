"""What speaks against using an engine, although it answers: asked whenever it comes up."""

import logging

from app.errors import Unavailable
from app.load.engine import Engine


class Objection:
    """Against one engine. why: what was found when last asked; None: nothing."""

    def __init__(self) -> None:
        self.why: str | None = None

    async def stands(self, engine: Engine) -> bool:
        """Ask; whether the engine must count as away. Said in the log when it is new."""
        before = self.why
        try:
            self.why = await engine.objection()
        except Unavailable:
            return True
        if self.why is not None and self.why != before:
            logging.getLogger("gateway").error("engine not used: %s", self.why)
        return self.why is not None
