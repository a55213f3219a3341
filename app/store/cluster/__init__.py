"""Cluster: several gateways on one catalogue."""
