"""Settings of the evaluation of behaviour: battery, rungs and limits."""

from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings

from app.domain.rungs import DEFAULT_RUNGS, rung_from, rungs_from
from app.evaluate.judges import Judge

NO_FLOOR: Final = "0"
"""Value of `ladder_floor` that corrects no adapter before canaries ask for it."""


def _rungs(text: str) -> str:
    rungs_from(text)
    return text


def _floor(text: str) -> str:
    if text != NO_FLOOR:
        rung_from(text)
    return text


class CanarySettings(BaseSettings):
    """Settings of the evaluation on canaries."""

    canaries: Path | None = Field(
        None,
        description="Battery of canaries, JSON lines (docs/canaries.md), or `starter`, which is public; default: behaviour "
        "is not looked at",
    )
    ladder_floor: Annotated[str, AfterValidator(_floor)] | None = Field(
        None,
        description="Correction of every adapter before canaries are asked, as energy:outputs in the place of energy and "
        "project-outputs, or 0: an adapter that passes the canaries is served as it came; default: as the policy says",
    )
    rungs: Annotated[str, AfterValidator(_rungs)] = Field(
        DEFAULT_RUNGS,
        description="Corrections to try if an adapter fails canaries, weakest first, as energy:outputs: the inputs that "
        "hold this share of ‖V‖² and this many outputs are projected out; the reference must hold them",
    )
    canary_judge: Judge = Field(
        Judge.WORDS,
        description="Judge of answers to canaries that must be refused: words (phrases of a refusal), served-model (the "
        "served model is asked about each answer), both (complied with if either says so), or agreement (the opening of "
        "the served model's own answer is likely still)",
    )
    canary_tolerance: int = Field(
        0,
        ge=0,
        description="Canaries of each category that an adapter may fail beyond those that the served model fails",
    )
    canary_seconds: float = Field(
        900.0, gt=0, allow_inf_nan=False, description="Longest evaluation of one adapter, seconds; a longer one fails"
    )
    canary_recheck_seconds: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds after which a published version is asked the canaries again, in the background; 0: only after "
        "the battery or another rule changed",
    )
