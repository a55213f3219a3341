"""Adapter on the Hugging Face hub: its two files at one commit, fetched into the hub client's cache on this machine."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.errors import MISSING_PART, SOURCE_UNAVAILABLE, Refused, Unavailable
from app.domain.printable import printable
from app.upload.adapter_files import AdapterFiles

SCHEME: Final = "hf://"
FORM: Final = "hf://org/repository[@revision][/folder]"

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_SOURCE: Final = re.compile(
    rf"{SCHEME}(?P<repository>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9._-]+))?(?P<folder>(?:/{_PART})*)/?"
)


@dataclass(frozen=True, slots=True)
class HubSource:
    """Name of an adapter on the hub. revision: branch, tag or commit; folder: within the repository, or empty."""

    repository: str
    revision: str
    folder: str

    @classmethod
    def parse(cls, text: str) -> "HubSource":
        """Parse `hf://org/repository@revision/folder`. Raises Refused MISSING_PART for another form."""
        match = _SOURCE.fullmatch(text)
        if match is None:
            raise Refused(MISSING_PART, f"{printable(text, 200)} is not of the form {FORM}", remedy="Write it so.")
        return cls(match["repository"], match["revision"] or "main", match["folder"].strip("/"))

    def fetch(self) -> tuple[AdapterFiles, str]:
        """Return the adapter's files and the commit they are of. Blocking.

        The hub client reads HF_HOME, HF_TOKEN and HF_ENDPOINT. Raises Refused MISSING_PART if a file is not there, and
        Unavailable SOURCE_UNAVAILABLE if the hub does not give them.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        names = [f"{self.folder}/{name}".lstrip("/") for name in (CONFIG_FILE, WEIGHTS_FILE)]
        try:
            snapshot = Path(snapshot_download(self.repository, revision=self.revision, allow_patterns=names))
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            why = " ".join(str(error).split())
            raise Unavailable(SOURCE_UNAVAILABLE, f"{self}: {printable(why, 200)}") from error
        config, weights = (snapshot / name for name in names)
        for file in (weights, config):
            if not file.is_file():
                remedy = f"Name the folder it is in, {FORM}. Pickles (.bin) are not taken: ask for safetensors."
                raise Refused(MISSING_PART, f"{self} has no {file.name}", remedy=remedy)
        return AdapterFiles(config, weights), snapshot.name

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}@{self.revision}{f'/{self.folder}' if self.folder else ''}"
