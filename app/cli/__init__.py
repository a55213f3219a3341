"""Command line: python -m app …, one file per command."""
