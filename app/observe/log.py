"""Logging: one line per event, as JSON or as plain text. Never a prompt, a key or a secret."""

import json
import logging
import sys
import time
from typing import Final

from app.domain.errors import printable
from app.observe.request_id import REQUEST_ID

LOGGER: Final = "gateway"
FIELDS: Final = "fields"
"""Attribute of a log record that carries the event's structured fields."""


def event(name: str, level: int = logging.INFO, **fields: object) -> None:
    """Log one event with its fields and the request id: `event("stage", stage="screen", adapter="a", seconds=0.2)`."""
    fields.setdefault("request", REQUEST_ID.get())
    logging.getLogger(LOGGER).log(level, name, extra={FIELDS: {k: v for k, v in fields.items() if v is not None}})


class JsonLines(logging.Formatter):
    """Formatter: one JSON object per line, UTC time first."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {"time": stamp, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Console(logging.Formatter):
    """Formatter: `12:00:00 event key=value …`, in local time."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, followed by the traceback if it has an exception."""
        fields = " ".join(f"{key}={printable(str(value))}" for key, value in getattr(record, FIELDS, {}).items())
        line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(style: str, level: str) -> None:
    """Send the gateway's events to standard error. `style`: json or console."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else Console())
    logger = logging.getLogger(LOGGER)
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
