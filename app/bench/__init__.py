"""Benchmarks that a user can run: python -m app bench …

screening/  time and memory of screening at the size of a real model, compared with published algorithms
safety/     harm and skill remaining after screening, one method compared with another
relay/      time and processor that this gateway adds to an engine's answers, compared with other relays
capacity/   adapters, engines and cores, calculated
engine/     decoding, hot loading and a soak test with the real engine
progress    the progress callback of all of them
"""
