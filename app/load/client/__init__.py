"""Client of one engine: vLLM's HTTP API as this gateway uses it."""
