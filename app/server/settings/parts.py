"""Comma-separated values of settings."""


def parts(value: str) -> list[str]:
    """Values between commas, without the empty ones."""
    return [part.strip() for part in value.split(",") if part.strip()]


def comma_separated(value: object) -> object:
    """A string as its values, anything else as it is."""
    return (parts(value) or ()) if isinstance(value, str) else value
