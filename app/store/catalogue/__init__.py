"""Catalogue: names, versions and their states, in SQL."""
