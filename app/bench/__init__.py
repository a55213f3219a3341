"""Benchmarks a user can run: python -m app bench …

screening/  time and memory of screening at the size of a real model, beside published algorithms
safety/     harm and skill left after screening, method beside method
relay/      time and processor that this gateway adds to an engine's answers, beside other relays
capacity/   adapters, engines and cores, on paper
engine/     decoding, hot loading and a soak with the real engine
progress    the callable that all of them report to
"""
