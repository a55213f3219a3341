"""Adapter on the Hugging Face hub: its two files at one commit, fetched into the hub client's cache on this machine."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.errors import BAD_SAFETENSORS, MISSING_PART, SOURCE_UNAVAILABLE, Refused, Unavailable, printable
from app.upload.adapter_files import AdapterFiles

SCHEME: Final = "hf://"
FORM: Final = "hf://org/repository[@revision][/folder]"
_PICKLES: Final = (".bin", ".pt", ".pth")

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

        The hub client reads HF_HOME, HF_TOKEN and HF_ENDPOINT. Raises Refused MISSING_PART or BAD_SAFETENSORS if the files
        are not there, and Unavailable SOURCE_UNAVAILABLE if the hub does not give them.
        """
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            found = HfApi().model_info(self.repository, revision=self.revision)
            commit = found.sha or self.revision
            self._check({one.rfilename for one in found.siblings or ()})
            config, weights = (
                Path(hf_hub_download(self.repository, self._inside(name), revision=commit))
                for name in (CONFIG_FILE, WEIGHTS_FILE)
            )
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            why = " ".join(str(error).split())
            raise Unavailable(SOURCE_UNAVAILABLE, f"{self}: {printable(why, 200)}") from error
        return AdapterFiles(config, weights), commit

    def _inside(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name

    def _check(self, names: set[str]) -> None:
        """Raise Refused unless both files are among these names."""
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            if self._inside(name) not in names:
                raise self._without(name, names)

    def _without(self, name: str, names: set[str]) -> Refused:
        here = [one for one in names if one.rpartition("/")[0] == self.folder]
        if name == WEIGHTS_FILE and any(one.endswith(_PICKLES) for one in here):
            remedy = "Ask its author for adapter_model.safetensors, or convert it where nothing can be lost."
            return Refused(BAD_SAFETENSORS, f"{self} holds a pickle, which may run code when it is read", remedy=remedy)
        folders = sorted(one.rpartition("/")[0] for one in names if one.endswith(f"/{WEIGHTS_FILE}"))
        remedy = f"Name one of the folders with an adapter: {', '.join(folders[:5])}." if folders else f"Name {FORM}."
        return Refused(MISSING_PART, f"{self} has no {name}", remedy=remedy)

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}@{self.revision}{f'/{self.folder}' if self.folder else ''}"
