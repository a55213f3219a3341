"""Reference: the difference of the aligned checkpoint from its base, built once and opened at start."""
