"""Adapter on the Hugging Face hub: its two files at one commit, fetched into the hub client's cache on this machine."""

from pathlib import Path

from app.domain.adapter_source import HUB_FORM, HubSource
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.errors import MISSING_PART, SOURCE_UNAVAILABLE, Refused, Unavailable
from app.domain.printable import printable
from app.upload.adapter_files import AdapterFiles


def fetched(source: HubSource) -> tuple[AdapterFiles, str]:
    """Return the adapter's files and the commit they are of. Blocking.

    The hub client reads HF_HOME, HF_TOKEN and HF_ENDPOINT. Raises Refused MISSING_PART if a file is not there, and
    Unavailable SOURCE_UNAVAILABLE if the hub does not give them.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    names = [source.path(name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    try:
        snapshot = Path(snapshot_download(source.repository, revision=source.revision, allow_patterns=names))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        why = " ".join(str(error).split())
        remedy = "Check the source's name and revision, and HF_TOKEN if it is private or gated."
        raise Unavailable(SOURCE_UNAVAILABLE, f"{source}: {printable(why, 200)}", remedy=remedy) from error
    config, weights = (snapshot / name for name in names)
    for file in (weights, config):
        if not file.is_file():
            remedy = f"Name the folder it is in, {HUB_FORM}. Pickles (.bin) are not taken: ask for safetensors."
            raise Refused(MISSING_PART, f"{source} has no {file.name}", remedy=remedy)
    return AdapterFiles(config, weights), snapshot.name
