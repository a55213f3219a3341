"""Download of a served model given by its hub id, before the engine starts, because the engine itself runs offline."""

from pathlib import Path
from typing import Final

from app.domain.errors import ENGINE_UNAVAILABLE, Unavailable

PATTERNS: Final = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""Files that make up a checkpoint: no pickles, no code."""


def local_model(model: str) -> Path:
    """Return the directory of `model`: itself if it is one, else its snapshot from the hub. Blocking.

    The hub client reads HF_HOME and HF_TOKEN. Raises Unavailable ENGINE_UNAVAILABLE if `model` is neither a directory
    nor available from the hub.
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
