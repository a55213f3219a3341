"""Incremental parser of an engine's list of models: however long the list is, it holds the text of one entry at a time.

{"object": "list", "data": [{"id": …, "root": …, "parent": …, …}, …]}
"""

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any, Final

ENTRY_CHARS: Final = 64 << 10
"""Characters of one entry, and of the text before and after all entries, at most; vLLM 0.32 writes 560."""

LIST_BYTES: Final = 256 << 20
"""Bytes read of a whole list, at most: some 480,000 entries. Only their names and cards are kept."""

CARD: Final = ("root", "parent")
"""Members that are read of an entry, besides its name."""

_BEGIN: Final = re.compile(r'"data"\s*:\s*\[')
_BETWEEN: Final = " \t\r\n,"
_entry = json.JSONDecoder().raw_decode

Cards = Mapping[str, Mapping[str, str | None]]
"""Name → the path it is read from (`root`) and, for an adapter, its base model (`parent`)."""


class CardReader:
    """Incremental parser of a list of models. Every method raises ValueError if the bytes are not a list of models."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._found: dict[str, Mapping[str, str | None]] = {}
        self._head: str | None = None
        self._text = ""
        self._ended = False

    def feed(self, piece: bytes) -> None:
        """Parse the next bytes."""
        self._text += self._decode.decode(piece)
        if self._head is None and (begin := _BEGIN.search(self._text)):
            self._head, self._text = self._text[: begin.end()], self._text[begin.end() :]
        if self._head is not None and not self._ended:
            self._take_entries()
        if len(self._text) > ENTRY_CHARS:
            raise ValueError(f"an entry of more than {ENTRY_CHARS} characters")

    def end(self) -> Cards:
        """Finish parsing and return the entries."""
        self._decode.decode(b"", final=True)
        around = json.loads(f"{self._head or ''}{self._text}") if self._ended else None
        if not isinstance(around, dict) or around.get("data") != []:  # any other shape is refused, not guessed at
            raise ValueError("no list of models")
        return self._found

    def _take_entries(self) -> None:
        """Take every complete entry; keep the rest, which is the beginning of an entry or the text behind the last one."""
        text, at = self._text, 0
        while True:
            while at < len(text) and text[at] in _BETWEEN:
                at += 1
            if text.startswith("]", at):
                self._ended = True
                break
            try:
                entry, at = _entry(text, at)
            except json.JSONDecodeError:  # incomplete so far, or malformed: its length is bounded in `feed`
                break
            self._keep(entry)
        self._text = text[at:]

    def _keep(self, entry: Any) -> None:
        if not isinstance(entry, dict) or "id" not in entry:
            raise ValueError("an entry without a name")
        self._found[str(entry["id"])] = {key: _text(entry.get(key)) for key in CARD}


def _text(value: object) -> str | None:
    return None if value is None else str(value)
