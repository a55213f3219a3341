"""The served model by its hub id: downloaded before the engine starts, because the engine itself is kept offline."""

from pathlib import Path
from typing import Final

from app.domain.errors import ENGINE_UNAVAILABLE, Unavailable

PATTERNS: Final = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What a checkpoint consists of: no pickles, no code."""


def local_model(model: str) -> Path:
    """The directory of `model`: itself when it is one, else its snapshot from the hub (HF_HOME, HF_TOKEN). Blocking.

    Raises Unavailable ENGINE_UNAVAILABLE when it is neither a directory nor to be had from the hub.
    """
    directory = Path(model)
    if directory.is_dir():
        return directory
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(PATTERNS)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        why = str(error).strip().splitlines()[0]
        raise Unavailable(
            ENGINE_UNAVAILABLE, f"model {model}: no directory, and not to be had from the hub: {why}"
        ) from error
