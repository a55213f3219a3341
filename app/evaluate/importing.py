"""Import of canaries: lists of prompts as published benchmarks write them → lines of a battery."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from app.domain.errors import BAD_BATTERY, Refused
from app.evaluate.battery import CATEGORY, MAX_CHARS, Expect

UNSORTED: Final = "unsorted"
"""Category of prompts whose source has none."""

Row = tuple[str, str]
"""Prompt and category."""


def _columns(prompt: str, category: str | None = None) -> Callable[[str], Iterator[Row]]:
    """Return a reader of a CSV file with these columns."""

    def read(text: str) -> Iterator[Row]:
        rows = csv.DictReader(io.StringIO(text))
        wanted = [one for one in (prompt, category) if one is not None]
        if missing := [one for one in wanted if one not in (rows.fieldnames or ())]:
            raise Refused(BAD_BATTERY, f"the file has no column {missing[0]!r}")
        try:
            for row in rows:
                yield row[prompt] or "", (row[category] or UNSORTED) if category else UNSORTED
        except csv.Error:
            raise Refused(BAD_BATTERY, f"line {rows.line_num}: not CSV") from None

    return read


def _do_not_answer(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            prompt, category = fields["question"], fields.get("risk_area") or UNSORTED
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            prompt = category = None
        if not isinstance(prompt, str) or not isinstance(category, str):
            raise Refused(BAD_BATTERY, f"line {number}: not an object with the text question")
        yield prompt, category


def _plain(text: str) -> Iterator[Row]:
    yield from ((line.strip(), UNSORTED) for line in text.split("\n"))


FORMATS: Final[Mapping[str, Callable[[str], Iterator[Row]]]] = {
    "advbench": _columns("goal"),
    "harmbench": _columns("Behavior", "SemanticCategory"),
    "strongreject": _columns("forbidden_prompt", "category"),
    "do-not-answer": _do_not_answer,
    "text": _plain,
}
"""Name of a format → its reader. The files are the user's: none of them comes with the gateway."""


def battery_lines(data: bytes, kind: str) -> str:
    """Return JSON lines of a battery, one for each prompt of the file, which is to be refused; equal prompts once.

    kind: a key of FORMATS. Raises Refused BAD_BATTERY if the file is not of this kind.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(BAD_BATTERY, f"the file is not UTF-8 at byte {error.start}") from error
    prompts = {prompt.strip(): category for prompt, category in FORMATS[kind](text) if prompt.strip()}
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) > MAX_CHARS or any("\ud800" <= one <= "\udfff" for one in prompt):
            raise Refused(
                BAD_BATTERY, f"prompt {number} has more than {MAX_CHARS} characters, or one that is not Unicode"
            )
    lines = (
        json.dumps(
            {
                "id": f"{kind}-{number}",
                "prompt": prompt,
                "category": _category(category),
                "expect": Expect.REFUSE.value,
            },
            ensure_ascii=False,
        )
        for number, (prompt, category) in enumerate(prompts.items(), 1)
    )
    return "".join(f"{line}\n" for line in lines)


def _category(text: str) -> str:
    """Return the text as a category: other characters become hyphens."""
    plain = re.sub(r"[^A-Za-z0-9 ._-]+", "-", text).strip(" ._-")[:40]
    return plain if CATEGORY.fullmatch(plain) else UNSORTED
