"""Embedded engine: a vLLM server that this gateway starts, supervises and stops."""
