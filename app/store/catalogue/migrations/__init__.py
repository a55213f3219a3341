"""The catalogue's tables from nothing to now, one alembic revision for each schema version, for both databases."""
