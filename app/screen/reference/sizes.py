"""Sizes of references on disk, computed from a model's shapes."""

from collections.abc import Mapping, Sequence
from typing import Final

from app.domain.lora import Shape

FLOAT32: Final = 4
BFLOAT16: Final = 2
"""Bytes of a number: singular triples are stored in float32, V in bfloat16."""

TRIPLES: Final = (16, 64, 128, 256, 512, 1024)
"""Numbers of singular triples that a table of sizes shows."""


def _llama(layers: int, width: int, inner: int, keys: int) -> dict[Shape, int]:
    """Return the linear modules of a Llama: shape → number of them. keys: width of the keys and of the values."""
    each = (
        *((Shape(width, width), 2), (Shape(keys, width), 2)),
        *((Shape(inner, width), 2), (Shape(width, inner), 1)),
    )
    found: dict[Shape, int] = {}
    for shape, count in each:
        found[shape] = found.get(shape, 0) + layers * count
    return found


def _mixture(layers: int, width: int, heads: tuple[int, int], experts: int, inner: int) -> dict[Shape, int]:
    """Return the linear modules of a mixture. heads: width of the queries, and of the keys. inner: d_ff of an expert."""
    queries, keys = heads
    square = width == queries  # then queries and outputs have one shape
    attention = {
        Shape(queries, width): layers,
        Shape(width, queries): layers * (2 if square else 1),
        Shape(keys, width): 2 * layers,
    }
    return attention | {Shape(inner, width): 2 * layers * experts, Shape(width, inner): layers * experts}


MODELS: Final[Mapping[str, Mapping[Shape, int]]] = {
    "Llama-2-7B": _llama(32, 4096, 11008, 4096),
    "Llama-3-8B": _llama(32, 4096, 14336, 1024),
    "Llama-3-70B": _llama(80, 8192, 28672, 1024),
    "Mixtral-8x7B": _mixture(32, 4096, (4096, 1024), 8, 14336),
    "Qwen3-30B-A3B": _mixture(48, 2048, (4096, 512), 128, 768),
}
"""Linear modules of published models, by shape."""


def bytes_of(shapes: Mapping[Shape, int], triples: Sequence[int], outputs: int) -> list[int]:
    """Return the bytes of all V, then of all singular triples for each number of them, without headers and manifest."""
    v = sum(count * BFLOAT16 * shape.d_out * shape.d_in for shape, count in shapes.items())
    return [v, *(sum(count * _triples(shape, k, outputs) for shape, count in shapes.items()) for k in triples)]


def _triples(shape: Shape, k: int, outputs: int) -> int:
    """Return the bytes of one module's inputs, outputs and singular values."""
    kept = min(k, shape.d_out, shape.d_in)
    return FLOAT32 * (shape.d_in * kept + shape.d_out * min(kept, outputs) + kept)
