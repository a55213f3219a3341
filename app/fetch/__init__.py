"""Fetching: an adapter's two files from a hub or a bucket that the operator allowed, at one commit or ETag.

    source's name → pin ── commit, ETags ──► open(file) ── bytes ──► the quarantine (upload)

Connections go to checked addresses of listed servers only (client.py). What arrives is not read here: it is sealed like an
upload, and validate reads it.
"""
