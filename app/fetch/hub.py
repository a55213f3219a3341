"""Hub: adapters in repositories of a server that speaks the Hugging Face hub's protocol, read at one commit.

Two kinds of request suffice: `/api/models/<repository>/revision/<revision>` says which commit that is, and
`/<repository>/resolve/<commit>/<path>` has a file, or redirects to it. (huggingface_hub makes the same requests, but
follows redirects to anywhere and writes into a cache of its own.)
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from app.domain.adapter_source import HubSource, Provenance, SourceFile
from app.domain.errors import (
    SOURCE_BROKEN,
    SOURCE_CHANGED,
    SOURCE_NOT_FOUND,
    SOURCE_TIMEOUT,
    Refused,
    Unavailable,
)
from app.domain.printable import printable
from app.fetch.client import HEAD_S, Connected, as_announced, number

MAX_INFO: Final = 1 << 20
"""Most bytes of the answer that has the commit: it also lists every file."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r'"?([0-9a-f]{64})"?')


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub. url: without a slash at its end. token: sent to the hub itself only."""

    url: str
    token: str | None = field(default=None, repr=False)

    async def pin(self, http: Connected, source: HubSource) -> "PinnedRepository":
        """Return the repository at the commit that the revision names now. Raises GatewayError."""
        info = await self._info(http, source)
        commit, named = info.get("sha"), info.get("id", source.repository)
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise Unavailable(SOURCE_BROKEN, "the hub names no commit")
        if _COMMIT.fullmatch(source.revision) and commit != source.revision:
            raise Unavailable(SOURCE_BROKEN, f"the hub names another commit than {source.revision}")
        if named != source.repository:
            why = f"the hub calls this repository {printable(str(named), 100)}: name it so"
            raise Refused(SOURCE_NOT_FOUND, why, param="source")
        return PinnedRepository(self, http, source, commit)

    async def _info(self, http: Connected, source: HubSource) -> Mapping[str, Any]:
        url = f"{self.url}/api/models/{source.repository}/revision/{source.revision}"
        try:
            async with (
                asyncio.timeout(HEAD_S),
                http.ask("GET", url, {}, secret=self.secret, redirects=False) as answer,
            ):
                found = json.loads(await answer.read(MAX_INFO))
        except TimeoutError as error:
            raise Unavailable(SOURCE_TIMEOUT, "the hub did not answer in time") from error
        except (ValueError, RecursionError) as error:
            raise Unavailable(SOURCE_BROKEN, "the hub's answer is not JSON") from error
        if not isinstance(found, dict):
            raise Unavailable(SOURCE_BROKEN, "the hub's answer is not an object")
        return found

    @property
    def secret(self) -> Mapping[str, str]:
        """Headers that hold the credential."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


@dataclass(frozen=True, slots=True)
class PinnedRepository:
    """Repository at one commit."""

    _hub: Hub
    _http: Connected
    _source: HubSource
    _commit: str

    @property
    def provenance(self) -> Provenance:
        """Origin, and the commit."""
        return Provenance(str(self._source), {"commit": self._commit})

    @asynccontextmanager
    async def open(self, file: str) -> AsyncIterator[SourceFile]:
        """Open a file at the commit. Raises GatewayError.

        The first answer, before a redirect, has the size and SHA-256 of a large file in X-Linked-Size and X-Linked-ETag.
        """
        url = f"{self._hub.url}/{self._source.repository}/resolve/{self._commit}/{self._source.path(file)}"
        async with self._http.ask("GET", url, {}, secret=self._hub.secret, redirects=True) as answer:
            if answer.first.get("X-Repo-Commit", self._commit) != self._commit:
                raise Refused(SOURCE_CHANGED, f"the hub has {file} of another commit than {self._commit}")
            linked = _SHA256.fullmatch(answer.first.get("X-Linked-ETag", ""))
            said = (answer.length, number(answer.first, "X-Linked-Size"))
            sizes = {size for size in said if size is not None}
            chunks = as_announced(answer.chunks(), sizes)
            yield SourceFile(max(sizes, default=None), linked[1] if linked else None, chunks)
