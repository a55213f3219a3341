"""Embedded engine: a vLLM server that this gateway starts, watches and ends."""
