"""Capacity planning: memory and processor time for a number of adapters."""
