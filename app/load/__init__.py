"""load: makes the engine hold what the catalogue says, and keeps checking."""
