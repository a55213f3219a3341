"""Benchmark of screening: time and memory at the size of a real model."""
