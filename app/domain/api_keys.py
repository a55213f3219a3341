"""API keys as an operator stores them: a name, roles, and a SHA-256, never the key itself.

A generated key is 256 random bits, so its plain SHA-256 is as good as any slow hash: slow hashes make guessing a *weak*
secret more expensive, and one of 2^256 values cannot be guessed, fast or slow. This holds for generated keys only. A key
that the operator chose is therefore accepted only from the environment, where nothing stores its digest, and only with
`MIN_KEY_CHARS` characters or more.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from app.domain.tenants import DEFAULT, check_tenant, full_name

PREFIX: Final = "lg_"
"""Prefix of every generated key, so that scanners of repositories and logs can recognise one."""

KEY_BYTES: Final = 32
"""Random bytes of a key."""

MIN_KEY_CHARS: Final = 16
"""Fewest characters of a key that the operator chose: shorter ones could be found by trying them all over the network."""

MAX_KEYS: Final = 10_000
"""Most keys in a keys file; every request is compared with all of them."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LABELS: Final = ("owner", "tenant")
"""Labels that may follow a key's digest, each once."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class Role(StrEnum):
    """Permission of a key in its tenant. `engine`: remote engines, which read artefacts. `admin`: everything."""

    UPLOAD = "upload"
    CHAT = "chat"
    METRICS = "metrics"
    ENGINE = "engine"
    ADMIN = "admin"


BEARERS: Final = "oidc."
"""Beginning of the names of those who come with tokens of issuers (app/access/identity.py)."""

OPERATOR_ROLES: Final = frozenset({Role.METRICS, Role.ENGINE})
"""Roles that concern every tenant's adapters, so that only keys of the tenant `default` may have them."""


@dataclass(frozen=True, slots=True)
class Key:
    """One API key. name: its name in logs and rate limits. digest: SHA-256 of the key's UTF-8 bytes, 32 bytes.

    owner: label shared by the keys that own the same adapters; None: the key's name. tenant: the only tenant whose
    adapters it reaches, except for the operator's keys.
    """

    name: str
    roles: frozenset[Role]
    digest: bytes
    owner: str | None = None
    tenant: str = DEFAULT

    def may(self, roles: frozenset[Role]) -> bool:
        """Return whether the key has one of these roles; always true with `admin`."""
        return Role.ADMIN in self.roles or not self.roles.isdisjoint(roles)

    @property
    def operator(self) -> bool:
        """True for a key of the operator, who may act in every tenant."""
        return self.tenant == DEFAULT and Role.ADMIN in self.roles

    @property
    def id(self) -> str:
        """Its tenant and name, unique among all keys: its name in logs and rate limits."""
        return full_name(self.tenant, self.name)

    @property
    def holder(self) -> str:
        """Name under which it holds shared resources: its own, or its tenant's. No key's name contains a slash."""
        return self.name if self.tenant == DEFAULT else full_name(self.tenant, "")

    @property
    def line(self) -> str:
        """The key's line in a keys file."""
        given = {"owner": self.owner, "tenant": None if self.tenant == DEFAULT else self.tenant}
        labels = "".join(f" {name}={value}" for name, value in given.items() if value is not None)
        return f"{self.name} {','.join(sorted(self.roles))} sha256:{self.digest.hex()}{labels}"

    def uploader(self, tenant: str) -> "Uploader":
        """Owner and rights of uploads made with this key. Names made in another tenant belong to no key of its own."""
        owner = self.owner or self.name
        return Uploader(owner if tenant == self.tenant else None, Role.ADMIN in self.roles, tenant)


@dataclass(frozen=True, slots=True)
class Uploader:
    """Owner and rights of an upload. owner: label that a new name will belong to, None: no owner. admin: may push to any
    name of the tenant. exempt: limits of what the tenant stores do not hold for it."""

    owner: str | None
    admin: bool = False
    tenant: str = DEFAULT
    exempt: bool = False


NOBODY: Final = Uploader(None, admin=True)
"""Uploader for the gateway itself and for every caller of an open gateway: everything is allowed and nothing is owned."""


def digest_of_key(key: str) -> bytes:
    """Return the SHA-256 of a key's UTF-8 bytes. Text that is not valid UTF-8 (a lone surrogate) has a digest too,
    though it cannot be a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def new_secret() -> str:
    """Return the text of a random key."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def new_key(name: str, roles: Iterable[Role], owner: str | None = None, tenant: str = DEFAULT) -> tuple[str, Key]:
    """Generate a random key: its text, to be shown once, and the Key to store.

    Raises ValueError: bad name or label, no role, or one that no tenant's key may have.
    """
    key = new_secret()
    return key, _checked(Key(name, frozenset(roles), digest_of_key(key), owner, tenant))


def key_for_all(key: str, number: int) -> Key:
    """Return the Key, with every role, of a text that the operator chose. Raises ValueError if it is too short."""
    if len(key) < MIN_KEY_CHARS:
        raise ValueError(f"a key needs {MIN_KEY_CHARS} characters or more; `python -m app keys new` makes good ones")
    return Key(f"environment-{number}", frozenset(Role), digest_of_key(key))


def parse_keys(text: str) -> tuple[Key, ...]:
    """Parse a keys file: one `name role[,role] sha256:<hex> [owner=label] [tenant=label]` per line. Empty lines and lines
    that begin with # are ignored.

    Raises ValueError naming the line for anything else, and for a name or a key that occurs twice.
    """
    found: dict[str, Key] = {}
    digests: set[bytes] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key = _parse(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if key.name in found or key.digest in digests:
            raise ValueError(f"line {number}: {key.name} or its key stands there twice")
        found[key.name] = key
        digests.add(key.digest)
        if len(found) > MAX_KEYS:
            raise ValueError(f"more than {MAX_KEYS} keys")
    return tuple(found.values())


def _parse(line: str) -> Key:
    words = line.split()
    given = dict(label.partition("=")[::2] for label in words[3:])
    digest = _DIGEST.fullmatch(words[2]) if len(words) > 2 else None
    if not digest or len(given) < len(words[3:]) or not given.keys() <= set(_LABELS):
        raise ValueError("must read: name role[,role] sha256:<64 hex digits> [owner=label] [tenant=label]")
    known = {role.value for role in Role}
    roles = words[1].split(",")
    if unknown := [role for role in roles if role not in known]:
        raise ValueError(f"no such role: {unknown[0][:40]!r}; there are {', '.join(sorted(known))}")
    owner, tenant = given.get("owner"), given.get("tenant", DEFAULT)
    return _checked(Key(words[0], frozenset(map(Role, roles)), bytes.fromhex(digest[1]), owner, tenant))


def check_owner(label: str) -> None:
    """Raise ValueError if `label` is not a valid owner's label."""
    if not _NAME.fullmatch(label):
        raise ValueError("an owner's label is 1 to 63 of A-Z a-z 0-9 . _ - and begins with a letter or digit")


def _checked(key: Key) -> Key:
    if not _NAME.fullmatch(key.name):
        raise ValueError("a key's name is 1 to 63 of A-Z a-z 0-9 . _ - and begins with a letter or digit")
    if key.name.startswith(BEARERS):
        raise ValueError(f"a key's name cannot begin with {BEARERS}: so are bearers of tokens called")
    if key.owner is not None:
        check_owner(key.owner)
    check_tenant(key.tenant)
    if not key.roles:
        raise ValueError("a key needs a role")
    if key.tenant != DEFAULT and (theirs := key.roles & OPERATOR_ROLES):
        raise ValueError(f"a tenant's key cannot have the role {min(theirs)}: it concerns every tenant")
    return key
