"""Audit file: entries of the audit log as JSON lines, for a log shipper."""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from logging.handlers import WatchedFileHandler
from pathlib import Path

from app.domain.audit_entry import AuditEntry
from app.domain.errors import STORE_FAILED, Unavailable
from app.observe.log import event


class _File(WatchedFileHandler):
    """Handler that opens its file anew after it was rotated, and tells the gateway's log what it cannot write."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; also opening the file anew may fail."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name of logging's method
        """Log that a line is missing in the file; the catalogue has it."""
        event("audit_file_failed", logging.ERROR, path=self.baseFilename)


class AuditFile:
    """File to which the entries of acts at this gateway are appended. It may be renamed: then a new one is begun."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises Unavailable STORE_FAILED."""
        try:
            self._file = _File(path, encoding="utf-8")
        except OSError as error:
            raise Unavailable(STORE_FAILED, f"GATEWAY_AUDIT_FILE {path}: {error.strerror}") from error

    def write(self, entries: Iterable[AuditEntry]) -> None:
        """Append entries. Blocking; does not raise."""
        for entry in entries:
            fields = {"number": entry.number, **asdict(entry.act), "previous": entry.previous, "hash": entry.hash}
            self._file.handle(logging.makeLogRecord({"msg": json.dumps(fields, default=str)}))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
