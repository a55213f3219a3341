"""Adapter + Verdict → the one canonical byte form, without what the verdict cut out."""
