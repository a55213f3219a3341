"""Benchmark of the relay: a gateway in front of a stand-in engine, compared with other proxies."""
