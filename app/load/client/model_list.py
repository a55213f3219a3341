"""An engine's list of models, read as it arrives: however long it is, one entry at a time is held.

{"object": "list", "data": [{"id": …, "root": …, "parent": …, …}, …]}
"""

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any, Final

ENTRY_CHARS: Final = 64 << 10
"""Characters one entry may have, and whatever stands before and after all of them: vLLM 0.32 writes 560."""

LIST_BYTES: Final = 256 << 20
"""Bytes of a list that are read in all: some 480,000 entries. They are not kept, the names are."""

CARD: Final = ("root", "parent")
"""What is read of an entry besides its name."""

_BEGIN: Final = re.compile(r'"data"\s*:\s*\[')
_BETWEEN: Final = " \t\r\n,"
_entry = json.JSONDecoder().raw_decode

Cards = Mapping[str, Mapping[str, str | None]]
"""Name → what it reads (`root`) and, for an adapter, the model it rides on (`parent`)."""


class CardReader:
    """Takes a list's bytes piece by piece. Every method raises ValueError for what is no list of models."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._found: dict[str, Mapping[str, str | None]] = {}
        self._head: str | None = None
        self._text = ""
        self._ended = False

    def feed(self, piece: bytes) -> None:
        """The next bytes."""
        self._text += self._decode.decode(piece)
        if self._head is None and (begin := _BEGIN.search(self._text)):
            self._head, self._text = self._text[: begin.end()], self._text[begin.end() :]
        if self._head is not None and not self._ended:
            self._take_entries()
        if len(self._text) > ENTRY_CHARS:
            raise ValueError(f"an entry of more than {ENTRY_CHARS} characters")

    def end(self) -> Cards:
        """There is no more: what was listed."""
        self._decode.decode(b"", final=True)
        around = json.loads(f"{self._head or ''}{self._text}") if self._ended else None
        if not isinstance(around, dict) or around.get("data") != []:  # not ours to guess what else it may be
            raise ValueError("no list of models")
        return self._found

    def _take_entries(self) -> None:
        """Every whole entry; what is left is the beginning of one, or what stands behind them all."""
        text, at = self._text, 0
        while True:
            while at < len(text) and text[at] in _BETWEEN:
                at += 1
            if text.startswith("]", at):
                self._ended = True
                break
            try:
                entry, at = _entry(text, at)
            except json.JSONDecodeError:  # not all of it has come, or never will: that is told by its length
                break
            self._keep(entry)
        self._text = text[at:]

    def _keep(self, entry: Any) -> None:
        if not isinstance(entry, dict) or "id" not in entry:
            raise ValueError("an entry without a name")
        self._found[str(entry["id"])] = {key: _text(entry.get(key)) for key in CARD}


def _text(value: object) -> str | None:
    return None if value is None else str(value)
