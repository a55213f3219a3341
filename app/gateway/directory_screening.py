"""Screening of an adapter in a directory, without a gateway."""

from pathlib import Path
from typing import Final

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.errors import MISSING_PART, Refused
from app.domain.lora import ServingDtype, TargetModel
from app.domain.policy import Policy
from app.domain.verdict import Verdict
from app.screen.balance import balance_all
from app.screen.reference.open import check_policy, open_reference
from app.screen.screen import screen
from app.validate.adapter import ValidateLimits, validate

MAX_RANK: Final = 512
"""Largest rank that vLLM serves; screening without an engine accepts ranks up to it."""


def screen_directory(
    directory: Path, reference_dir: Path, policy: Policy, dtype: ServingDtype, max_rank: int = MAX_RANK
) -> Verdict:
    """Validate and screen one adapter on disk as if its two files were uploaded. Raises GatewayError."""
    reference = open_reference(reference_dir, None)
    check_policy(reference, policy)
    target = TargetModel("any", reference.modules, dtype, max_rank)
    try:
        config = (directory / CONFIG_FILE).read_bytes()
        with (directory / WEIGHTS_FILE).open("rb") as weights:
            return screen(balance_all(validate(config, weights, target, ValidateLimits())), reference, policy)
    except OSError as error:
        raise Refused(MISSING_PART, f"{error.filename}: {error.strerror}") from error
