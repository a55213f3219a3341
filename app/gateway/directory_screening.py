"""Screening of an adapter on disk, without a gateway."""

from pathlib import Path
from typing import Final

from app.domain.errors import MISSING_PART, Refused
from app.domain.lora import ServingDtype, TargetModel
from app.domain.policy import Policy
from app.domain.verdict import Verdict
from app.screen.balance import balance_all
from app.screen.reference.open import check_policy, open_reference
from app.screen.screen import screen
from app.upload.adapter_files import adapter_files
from app.validate.adapter import ValidateLimits, validate

MAX_RANK: Final = 512
"""Largest rank that vLLM serves; screening without an engine accepts ranks up to it."""


def screen_directory(
    path: Path, reference_dir: Path, policy: Policy, dtype: ServingDtype, max_rank: int = MAX_RANK
) -> Verdict:
    """Validate and screen the adapter at `path` (see `adapter_files`) as if it were uploaded. Raises GatewayError."""
    files = adapter_files(path)
    reference = open_reference(reference_dir, None)
    check_policy(reference, policy)
    target = TargetModel("the reference", reference.modules, dtype, max_rank)
    try:
        with files.weights.open("rb") as weights:
            adapter = validate(files.config.read_bytes(), weights, target, ValidateLimits())
        return screen(balance_all(adapter), reference, policy)
    except OSError as error:
        raise Refused(MISSING_PART, f"{error.filename}: {error.strerror}") from error
