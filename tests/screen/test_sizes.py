"""Computed sizes of references, against files that the builder wrote."""

from pathlib import Path

import pytest

from app.domain.lora import Shape
from app.screen.reference.build import BuildOptions
from app.screen.reference.sizes import MODELS, bytes_of
from tests.support.references import TINY, tiny_reference

HEADER = 400
"""Most bytes of a safetensors header of three tensors."""


@pytest.mark.parametrize("compact", [False, True])
def test_they_are_what_a_built_reference_takes(tmp_path: Path, compact: bool) -> None:
    opened = tiny_reference(tmp_path, options=BuildOptions(top_k=8, outputs=3, compact=compact))
    shapes = dict.fromkeys(set(TINY.values()), 0)
    for shape in opened.modules.values():
        shapes[shape] += 1
    v, triples = bytes_of(shapes, [8], 3)
    infos = [opened.info(name) for name in opened.modules]
    assert 0 < sum(one.triples.bytes for one in infos if one.triples) - triples < HEADER * len(infos)
    assert compact or 0 < sum(one.v.bytes for one in infos if one.v) - v < HEADER * len(infos)
    opened.close()


def test_the_models_have_the_parameters_they_are_named_after() -> None:
    """Without embeddings, in billions of weights, by their published configurations; the last two are mixtures."""
    found = [sum(count * shape.d_out * shape.d_in for shape, count in model.items()) for model in MODELS.values()]
    assert [round(one / 1e9, 1) for one in found] == [6.5, 7.0, 68.5, 46.4, 29.9]
    assert MODELS["Llama-2-7B"][Shape(4096, 4096)] == 4 * 32
