"""Audit of the store: stored data, read again and compared with the catalogue."""
