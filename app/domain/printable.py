"""Printable text: what strangers wrote, made fit for logs and answers."""

from typing import Final

MESSAGE_LIMIT: Final = 400
"""Most characters of a message in a log line or a response, so that hostile input cannot fill either."""


def printable(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """Return `text` without control characters and no longer than `limit`, fit for logs and responses."""
    if len(text) <= limit and text.isprintable():
        return text
    clean = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
