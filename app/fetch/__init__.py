"""Fetching: an adapter's two files from a hub or a bucket that the operator allowed, at one commit or ETag.

    source's name → pin ── commit, ETags ──► open(file) ── bytes ──► the quarantine (upload)

Connections go to checked addresses of listed servers only (client.py). The bytes are not read here: they are sealed
like an upload's, and validate reads them.
"""
