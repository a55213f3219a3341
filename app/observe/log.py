"""Logging: one line per event, as JSON or as logfmt. Never a prompt, a key or a secret."""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Final

from app.domain.printable import printable
from app.observe.request_id import KEY_NAME, REQUEST_ID

LOGGER: Final = "gateway"
SERVER: Final = "uvicorn"
"""Name of the HTTP server's logger. Its records have no fields: they are logged as events named `server`."""

FIELDS: Final = "fields"
"""Attribute of a log record that carries the event's structured fields."""

_BARE: Final = re.compile(r"[^\s\"=]+")
"""Value that logfmt needs no quotes for."""


def event(name: str, level: int = logging.INFO, **fields: object) -> None:
    """Log one event with its fields, the request's id and its key's name, if there is a request:
    `event("stage", stage="screen", adapter="a", seconds=0.2)`."""
    fields.setdefault("request", REQUEST_ID.get())
    fields.setdefault("key", KEY_NAME.get())
    logging.getLogger(LOGGER).log(level, name, extra={FIELDS: {k: v for k, v in fields.items() if v is not None}})


class JsonLines(logging.Formatter):
    """Formatter: one JSON object per line, UTC time first."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line = _fields_of(record, datetime.fromtimestamp(record.created, UTC))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Logfmt(logging.Formatter):
    """Formatter: `time=… level=… event=… key=value …`, in local time with its offset from UTC."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, followed by the traceback if it has an exception."""
        fields = _fields_of(record, datetime.fromtimestamp(record.created).astimezone())
        line = " ".join(f"{key}={_quoted(str(value))}" for key, value in fields.items())
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _fields_of(record: logging.LogRecord, at: datetime) -> dict[str, object]:
    head = {"time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"), "level": record.levelname.lower()}
    fields = getattr(record, FIELDS, None)
    if fields is None and record.name != LOGGER:
        return {**head, "event": "server", "message": record.getMessage()}
    return {**head, "event": record.getMessage(), **(fields or {})}


def _quoted(value: str) -> str:
    """Return a value for logfmt: in double quotes if it is empty or has spaces, quotes or equals signs."""
    shown = printable(value)
    return shown if _BARE.fullmatch(shown) else json.dumps(shown, ensure_ascii=False)


def configure(style: str, level: str) -> None:
    """Send the gateway's events, and what the HTTP server has to say, to standard error. style: json or console."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else Logfmt())
    for name, lowest in ((LOGGER, level.upper()), (SERVER, "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(lowest)
        logger.propagate = False
