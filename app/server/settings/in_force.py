"""Settings in force as text for people, without secrets."""

import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final

from pydantic import SecretStr

from app.domain.setting_in_force import SettingInForce
from app.server.settings import Settings

HIDDEN: Final = "set, not shown"
NONE: Final = "–"

_CREDENTIALS: Final = re.compile(r"(?<=://)[^/@\s]*@|\?[^\s,]*")
"""Parts of a URL that may hold a password: user and password, and the query."""

DERIVED: Final[Mapping[str, Callable[[Settings], Any]]] = {
    "served_model_name": lambda settings: settings.served_name,
    "tau": lambda settings: settings.policy.tau,
    "action": lambda settings: settings.policy.action,
}
"""Settings whose default depends on others: the value in force."""


def settings_in_force(settings: Settings) -> tuple[SettingInForce, ...]:
    """Return every setting, in the order of docs/settings.md."""
    found = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        shown = DERIVED[name](settings) if value is None and name in DERIVED else value
        default = not field.is_required() and value == field.default
        found.append(SettingInForce(f"GATEWAY_{name.upper()}", _text(shown), default, field.description or ""))
    return tuple(found)


def _text(value: Any) -> str:
    if value is None or value == () or value == frozenset():
        return NONE
    if isinstance(value, SecretStr) or (isinstance(value, tuple) and any(isinstance(one, SecretStr) for one in value)):
        return HIDDEN
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, frozenset):
        return ", ".join(sorted(value))
    if isinstance(value, tuple):
        value = ", ".join(map(str, value))
    return _CREDENTIALS.sub("…", str(value)) if "://" in str(value) else str(value)
