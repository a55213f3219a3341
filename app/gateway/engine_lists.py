"""Adapter lists of the engines as an audit reads them: several engines' lists as one, and two looks as one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from app.domain.engine_address import dns_name
from app.load.client.engine import HttpEngine
from app.load.fleet.dns import addresses
from app.store.audit.audit import Audit
from app.store.audit.engines import IN_ENGINE, Card

PATIENCE_S: Final = 2.0
"""Seconds between two looks: longer than any step of a gateway at work takes to become visible everywhere."""


def in_both(first: Audit, second: Audit) -> Audit:
    """Second look, with those findings only that the first had too: a gateway at work was not caught between steps."""
    return replace(second, findings=tuple(found for found in second.findings if found in first.findings))


async def engine_list(url: str, api_key: str | None = None) -> Mapping[str, Card]:
    """What the engine at `url` holds: its names and what each reads. Raises Unavailable ENGINE_UNAVAILABLE."""
    engine = HttpEngine(url, api_key=api_key)
    try:
        return {name: Card(**card) for name, card in (await engine.cards()).items()}
    finally:
        await engine.close()


async def engines_at(urls: Sequence[str]) -> tuple[str, ...]:
    """URLs of single engines, for URLs that may name several by DNS. Raises Unavailable ENGINE_UNAVAILABLE."""
    names = [(url, dns_name(url)) for url in urls]
    return tuple([at for url, name in names for at in (await addresses(name) if name else (url,))])


async def engine_lists(urls: Sequence[str], api_key: str | None = None, *, apart: bool = False) -> Mapping[str, Card]:
    """What several engines hold, as one list: under its own name what all of them hold alike, under a name of its own
    whatever only some do, or do otherwise. apart: each names paths of its own, so nothing is alike but the model. Raises
    Unavailable ENGINE_UNAVAILABLE when one of them does not say.
    """
    first, *others = [await engine_list(url, api_key) for url in await engines_at(urls)]
    if not others:
        return first
    alike = {name: card for name, card in first.items() if all(name in one for one in others)}
    together = {name: card for name, card in alike.items() if not apart or card.parent is None}
    for number, one in enumerate((first, *others), 1):
        odd = {name: card for name, card in one.items() if together.get(name) != card and _is_adapter(name, card)}
        together |= {f"{name}{IN_ENGINE}{number}": card for name, card in odd.items()}
    return together


def _is_adapter(name: str, card: Card) -> bool:
    """The engine's own model, which each may keep elsewhere, is none."""
    return "@" in name or card.parent is not None
