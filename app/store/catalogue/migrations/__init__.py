"""Migrations of the catalogue's tables: one alembic revision for each schema version, for both databases."""
