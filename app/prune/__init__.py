"""Pruning: Adapter + Verdict → canonical bytes, without the modules or directions that the verdict removes."""
