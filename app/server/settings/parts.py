"""Comma-separated values of settings."""


def parts(value: str) -> list[str]:
    """Return the values between commas, without the empty ones."""
    return [part.strip() for part in value.split(",") if part.strip()]


def comma_separated(value: object) -> object:
    """Return the comma-separated values of a string; anything else unchanged."""
    return (parts(value) or ()) if isinstance(value, str) else value
