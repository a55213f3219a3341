"""Settings of the evaluation of behaviour: battery, rungs and limits."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings

from app.domain.rungs import DEFAULT_RUNGS, rungs_from


def _rungs(text: str) -> str:
    rungs_from(text)
    return text


class CanarySettings(BaseSettings):
    """Settings of the evaluation on canaries."""

    canaries: Path | None = Field(
        None,
        description="Battery of canaries, JSON lines (docs/canaries.md), or `starter`, which is public; default: behaviour "
        "is not looked at",
    )
    rungs: Annotated[str, AfterValidator(_rungs)] = Field(
        DEFAULT_RUNGS,
        description="Corrections to try if an adapter fails canaries, weakest first, as energy:outputs: the inputs that "
        "hold this share of ‖V‖² and this many outputs are projected out; the reference must hold them",
    )
    canary_tolerance: int = Field(
        0,
        ge=0,
        description="Canaries of each category that an adapter may fail beyond those that the served model fails",
    )
    canary_seconds: float = Field(
        300.0, gt=0, allow_inf_nan=False, description="Longest evaluation of one adapter, seconds; a longer one fails"
    )
