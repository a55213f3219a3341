"""Benchmarks that need the real engine: decoding, hot loading, a soak test."""
