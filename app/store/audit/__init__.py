"""Audit of the store: what is kept, re-read and compared with what the catalogue says."""
