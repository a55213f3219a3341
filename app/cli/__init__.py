"""Command line: python -m app …, one file a command."""
