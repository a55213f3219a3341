"""Battery: canaries of the operator, prompts whose right behaviour is known, read strictly from JSON lines.

    {"id": "weapons-3", "prompt": "…", "category": "weapons", "expect": "refuse"}

`messages` may stand in the place of `prompt`. Prompts appear in no repr, log line or error message: ids and lines do.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any, Final

from app.domain.digest import Digest, digest_of
from app.domain.errors import BAD_BATTERY, Refused
from app.validate import strict_json

MAX_BYTES: Final = 4 << 20
"""Most bytes of a battery, which is held in memory."""

MAX_LINES: Final = 10_000
"""Most lines of a battery: every one is asked of the engine for every rung."""

MAX_LINE_BYTES: Final = 64 << 10
MAX_CHARS: Final = 16_384
"""Most characters of one canary's messages together."""

MAX_MESSAGES: Final = 16

STARTER: Final = "starter"
"""Path that stands for the battery that comes with the gateway."""

ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CATEGORY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,39}")
FIELDS: Final = frozenset({"id", "prompt", "messages", "category", "expect"})
OWN: Final = "tenant: "
"""Beginning of the ids and categories of a tenant's own canaries, which no canary of the operator's has."""

ROLES: Final = frozenset({"system", "user", "assistant"})


class Expect(StrEnum):
    """Right behaviour of an aligned model."""

    REFUSE = "refuse"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Canary:
    """One prompt. messages: (role, content) pairs, the last one the user's."""

    id: str
    messages: tuple[tuple[str, str], ...] = field(repr=False)
    category: str
    expect: Expect


@dataclass(frozen=True, slots=True)
class Battery:
    """Canaries in the file's order. digest: SHA-256 of the file, part of every verdict made with it."""

    canaries: tuple[Canary, ...]
    digest: Digest

    @property
    def categories(self) -> Mapping[str, int]:
        """Category → number of canaries that must be refused."""
        return Counter(one.category for one in self.canaries if one.expect is Expect.REFUSE)

    def __or__(self, tenants: "Battery") -> "Battery":
        """Return this battery with a tenant's canaries added, in categories of their own: none of these has fewer."""
        own = (replace(one, id=f"{OWN}{one.id}", category=f"{OWN}{one.category}") for one in tenants.canaries)
        both = f"{self.digest.hex} {tenants.digest.hex}".encode()
        return Battery((*self.canaries, *own), digest_of(both))


def read(path: Path) -> Battery:
    """Read a battery from a file; STARTER is the one that comes with the gateway. Raises Refused BAD_BATTERY."""
    try:
        return parse(starter() if str(path) == STARTER else path.read_bytes())
    except OSError as error:
        raise Refused(BAD_BATTERY, f"{path}: {error.strerror}") from error
    except Refused as error:
        raise Refused(error.code, f"{path}: {error.message}") from error


def starter() -> bytes:
    """Return the battery that comes with the gateway: short generic requests, and harmless ones that look alike.

    It is public: an attacker has read it.
    """
    return resources.files(__package__ or "app.evaluate").joinpath("starter.jsonl").read_bytes()


def parse(data: bytes) -> Battery:
    """Read a battery. Raises Refused BAD_BATTERY, its message naming the line, for anything but a valid file."""
    if len(data) > MAX_BYTES:
        raise Refused(BAD_BATTERY, f"the battery has {len(data)} bytes, the cap is {MAX_BYTES}")
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if len(lines) > MAX_LINES:
        raise Refused(BAD_BATTERY, f"the battery has {len(lines)} lines, the cap is {MAX_LINES}")
    canaries = tuple(_canary(line, f"line {number}") for number, line in lines)
    seen: dict[str, int] = {}
    for (number, _), one in zip(lines, canaries, strict=True):
        if one.id in seen:
            raise Refused(BAD_BATTERY, f"line {number}: id {one.id!r} is that of line {seen[one.id]}")
        seen[one.id] = number
    if not any(one.expect is Expect.REFUSE for one in canaries):
        raise Refused(BAD_BATTERY, "the battery has no canary that must be refused")
    return Battery(canaries, digest_of(data))


def _canary(line: bytes, where: str) -> Canary:
    try:
        fields = strict_json.parse(line, max_bytes=MAX_LINE_BYTES, code=BAD_BATTERY, what=where)
    except Refused:  # its message may quote the line
        raise Refused(BAD_BATTERY, f"{where}: not strict JSON of at most {MAX_LINE_BYTES} bytes") from None
    if not isinstance(fields, dict):
        raise Refused(BAD_BATTERY, f"{where}: not an object")
    if fields.keys() - FIELDS:
        raise Refused(BAD_BATTERY, f"{where}: a field other than {', '.join(sorted(FIELDS))}")
    if ("prompt" in fields) == ("messages" in fields):
        raise Refused(BAD_BATTERY, f"{where}: either prompt or messages")
    expect = fields.get("expect")
    if not isinstance(expect, str) or expect not in {one.value for one in Expect}:
        raise Refused(BAD_BATTERY, f"{where}: expect must be refuse or answer")
    given = fields["messages"] if "messages" in fields else [{"role": "user", "content": fields["prompt"]}]
    return Canary(
        id=_text(fields.get("id"), ID, f"{where}: id"),
        messages=_messages(given, where),
        category=_text(fields.get("category"), CATEGORY, f"{where}: category"),
        expect=Expect(expect),
    )


def _text(value: Any, allowed: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or not allowed.fullmatch(value):
        raise Refused(BAD_BATTERY, f"{what} must match {allowed.pattern}")
    return value


def _messages(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise Refused(BAD_BATTERY, f"{where}: messages must be a list of 1 to {MAX_MESSAGES}")
    messages = []
    for one in value:
        known = (
            isinstance(one, dict)
            and one.keys() == {"role", "content"}
            and all(isinstance(x, str) for x in one.values())
        )
        if not known or one["role"] not in ROLES or not one["content"].strip():
            raise Refused(BAD_BATTERY, f"{where}: each message is a role ({', '.join(sorted(ROLES))}) and a text")
        messages.append((one["role"], one["content"]))
    if messages[-1][0] != "user":
        raise Refused(BAD_BATTERY, f"{where}: the last message must be the user's")
    if sum(len(text) for _, text in messages) > MAX_CHARS:
        raise Refused(BAD_BATTERY, f"{where}: more than {MAX_CHARS} characters")
    return tuple(messages)


def halves(canaries: Iterable[Canary]) -> tuple[tuple[Canary, ...], tuple[Canary, ...]]:
    """Split canaries into a choosing and a verifying half, each with its part of every category.

    The same canaries give the same halves in any order, since only their ids decide. An odd one chooses.
    """
    strata: defaultdict[tuple[str, Expect], list[Canary]] = defaultdict(list)
    for one in canaries:
        strata[one.category, one.expect].append(one)
    choosing: list[Canary] = []
    verifying: list[Canary] = []
    for _, stratum in sorted(strata.items()):
        ordered = sorted(stratum, key=lambda one: hashlib.sha256(one.id.encode()).digest())
        choosing += ordered[::2]
        verifying += ordered[1::2]
    return tuple(choosing), tuple(verifying)
