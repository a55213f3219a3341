"""Load that one checked request puts on the engine, and the caps on the products of its parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from app.domain.errors import INVALID_REQUEST, Refused
from app.serve.fields.chat import MAX_ALL_TOKENS, MAX_BEAM_TOKENS, MAX_BEAMS, MAX_SEQUENCES
from app.serve.format_cost import cost_of

Kind = Literal["chat", "completions", "responses", "embeddings", "messages", "count_tokens", "tokenize", "detokenize"]

TOKENIZING: Final[frozenset[Kind]] = frozenset({"count_tokens", "tokenize", "detokenize"})
"""Kinds that need the engine's tokenizer only: no cached prompts are used, and answers name no model."""

_FORMAT_WITHIN: Final[Mapping[Kind, str]] = {"responses": "text", "messages": "output_config"}
"""Fields that hold the form of an answer, where it is not `response_format`."""

TOKENS_UNSAID: Final = 1024
"""Tokens assumed for a sequence if the request does not limit them: an answer of some length."""

_TOKENS: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class Load:
    """Load that a request puts on the engine.

    sequences: prompts × n.
    tokens: tokens that all sequences together may write.
    schemas: cost of the schemas that are compiled for it.
    """

    sequences: int = 1
    tokens: int = TOKENS_UNSAID
    schemas: int = 0


def load_of(kind: Kind, fields: Mapping[str, Any]) -> Load:
    """Return the load. Raises Refused INVALID_REQUEST if the product of its parts is over a cap, SCHEMA_TOO_COSTLY."""
    prompts = fields.get("prompt") if kind == "completions" else fields.get("input") if kind == "embeddings" else None
    listed = isinstance(prompts, list) and not isinstance(prompts[0], int)
    count, answers = len(prompts) if listed and isinstance(prompts, list) else 1, fields.get("n", 1)
    sequences = count * answers
    if sequences > MAX_SEQUENCES:
        raise Refused(INVALID_REQUEST, f"{count} prompts × n {answers}: the cap is {MAX_SEQUENCES}", param="n")
    if kind == "embeddings" or kind in TOKENIZING:
        return Load(sequences, 0)
    asked = next((name for name in _TOKENS if name in fields), None)
    tokens = sequences * (TOKENS_UNSAID if asked is None else fields[asked])
    if tokens > MAX_ALL_TOKENS:
        raise Refused(
            INVALID_REQUEST, f"{tokens} tokens in {sequences} sequences: the cap is {MAX_ALL_TOKENS}", param=asked
        )
    if fields.get("use_beam_search"):
        _check_beams(answers, None if asked is None else fields[asked])
    return Load(sequences, tokens, cost_of(fields, within=_FORMAT_WITHIN.get(kind)))


def _check_beams(beams: int, tokens: int | None) -> None:
    """Check the size of a beam search. Raises Refused INVALID_REQUEST."""
    if beams > MAX_BEAMS or tokens is None or tokens > MAX_BEAM_TOKENS:
        message = f"use_beam_search: needs n of at most {MAX_BEAMS}, and max_tokens of at most {MAX_BEAM_TOKENS}"
        raise Refused(INVALID_REQUEST, message, param="use_beam_search")
