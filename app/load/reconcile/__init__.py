"""Reconciliation: keeps one engine's adapters equal to the desired state."""
