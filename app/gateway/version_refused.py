"""Refusal of an upload that left a version, with its report, in the catalogue."""

from app.domain.errors import GatewayError, Refused
from app.store.catalogue.tables import VersionRow


class VersionRefused(Refused):
    """Refusal with the version it left in the catalogue."""

    def __init__(self, error: GatewayError, row: VersionRow) -> None:
        super().__init__(error.code, error.message, param=error.param, remedy=error.remedy, details=error.details)
        self.row = row
