"""load: HTTP client of the engine, and the reconciler that keeps the engine's adapters equal to the catalogue's."""
