"""Setting in force, as it is shown to administrators."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SettingInForce:
    """Setting of this gateway. value: as text, and never a secret. is_default: nobody set another value."""

    name: str
    value: str
    is_default: bool
    meaning: str
