"""Errors between a name and an adapter.

    Trouble            an HTTP status for whoever asked the engine; never "there is no such model"
    ├─ Away            503: the gateway or the store does not answer, or does not answer yet
    ├─ Full            507: the cache is full of what this engine may still read, or the disk is
    └─ Damaged         502: what was fetched is not what its digest promises

A name that the gateway does not know is no trouble: the resolver answers None, and vLLM 404.
"""

from __future__ import annotations


class Trouble(Exception):
    """Why an adapter that may exist is not served now."""

    status = 500


class Away(Trouble):
    """Ask again later."""

    status = 503


class Full(Trouble):
    """No room on this machine."""

    status = 507


class Damaged(Trouble):
    """Other bytes than promised."""

    status = 502
