"""Reference: the aligned checkpoint's difference from its base, built once and opened at start."""
