"""Client of one engine: the part of vLLM's HTTP API that this gateway uses."""
