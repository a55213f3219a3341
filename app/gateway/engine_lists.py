"""Adapter lists of the engines, for an audit: combines the lists of several engines, and the findings of two audits."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from app.domain.engine_address import dns_name
from app.load.client.engine import HttpEngine
from app.load.fleet.dns import addresses
from app.store.audit.audit import Audit
from app.store.audit.engines import IN_ENGINE, Card

PATIENCE_S: Final = 2.0
"""Seconds between two audits of a running gateway: longer than any of its steps takes to become visible everywhere."""


def in_both(first: Audit, second: Audit) -> Audit:
    """Return the second audit with only those findings that the first had too.

    A finding of only one of them may be a running gateway seen between two steps.
    """
    return replace(second, findings=tuple(found for found in second.findings if found in first.findings))


async def engine_list(url: str, api_key: str | None = None) -> Mapping[str, Card]:
    """Return the list of the engine at `url`: name → card with the path it reads. Raises Unavailable ENGINE_UNAVAILABLE."""
    engine = HttpEngine(url, api_key=api_key)
    try:
        return {name: Card(**card) for name, card in (await engine.cards()).items()}
    finally:
        await engine.close()


async def engines_at(urls: Sequence[str]) -> tuple[str, ...]:
    """Return the URLs of single engines for URLs of which some may be DNS names of several engines.

    Raises Unavailable ENGINE_UNAVAILABLE if a lookup fails.
    """
    names = [(url, dns_name(url)) for url in urls]
    return tuple([at for url, name in names for at in (await addresses(name) if name else (url,))])


async def engine_lists(urls: Sequence[str], api_key: str | None = None, *, apart: bool = False) -> Mapping[str, Card]:
    """Return the lists of several engines as one list.

    A name that all engines list stays, with the first engine's card. An adapter that only some list, or list with another
    card, is added for each of those engines under `<name> in engine <number>`. apart: each engine lists paths of its own,
    so that only the model's card can be common to all. Raises Unavailable ENGINE_UNAVAILABLE if an engine does not answer.
    """
    first, *others = [await engine_list(url, api_key) for url in await engines_at(urls)]
    if not others:
        return first
    alike = {name: card for name, card in first.items() if all(name in one for one in others)}
    combined = {name: card for name, card in alike.items() if not apart or card.parent is None}
    for number, one in enumerate((first, *others), 1):
        odd = {name: card for name, card in one.items() if combined.get(name) != card and _is_adapter(name, card)}
        combined |= {f"{name}{IN_ENGINE}{number}": card for name, card in odd.items()}
    return combined


def _is_adapter(name: str, card: Card) -> bool:
    """Return whether an entry is an adapter, not the engine's own model, whose path may differ between engines."""
    return "@" in name or card.parent is not None
