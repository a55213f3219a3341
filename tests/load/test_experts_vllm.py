"""Contract with a real vLLM that serves a mixture: it loads the artefacts of adapters on experts, and no layer with gaps.

Loading only: the CPU build has no kernel for experts with LoRA; the first request ends it, even one for the bare model.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file

from app.domain.errors import LOAD_FAILED, GatewayError
from app.load.client.engine import HttpEngine
from tests.adapters.test_experts import NOTHING, measured, written
from tests.support import tiny_model
from tests.support.engine import LiveEngine, live_engine
from tests.support.mixtures import MIXTURES, SIZES, by_expert, changed, reference_from, save_adapter

pytestmark = [pytest.mark.long, pytest.mark.engine]

WIDER: dict[str, Any] = {"head_dim": 32, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
"""Sizes that vLLM's CPU attention takes."""


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe"])
def mixture(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LiveEngine, Path, Path]]:
    """An engine that serves the aligned model, that adapter's artefact, and the same with a matrix missing."""
    root = tmp_path_factory.mktemp(request.param)
    tokenizer = tiny_model._tokenizer()
    sizes = {**SIZES, **WIDER, "vocab_size": len(tokenizer), "max_position_embeddings": tiny_model.MAX_LENGTH}
    config = getattr(transformers, MIXTURES[request.param][0])(**sizes)
    base, aligned = changed(config)
    by_expert(base, root / "base")
    tokenizer.save_pretrained(by_expert(aligned, root / "aligned"))
    reference = reference_from(root)
    save_adapter(aligned, root / "adapter", target_modules=["q_proj"])
    artefact, _ = measured(root / "adapter", reference, NOTHING)
    reference.close()
    assert artefact is not None
    whole, gap = written(artefact, root / "whole"), written(artefact, root / "gap")
    tensors = load_file(gap / "adapter_model.safetensors")
    last = max(name for name in tensors if ".experts." in name).removesuffix(".lora_B.weight")
    save_file(
        {name: t for name, t in tensors.items() if not name.startswith(f"{last}.")}, gap / "adapter_model.safetensors"
    )
    with live_engine(root, root / "aligned", lambda seed: whole, served_name="mixture", tool_call_parser=None) as live:
        yield live, whole, gap


async def test_the_engine_loads_every_expert_of_a_layer_or_refuses(mixture: tuple[LiveEngine, Path, Path]) -> None:
    live, whole, gap = mixture
    client = HttpEngine(live.url)
    try:
        with pytest.raises(GatewayError) as caught:
            await client.load("gap@000000000000", gap)
        assert caught.value.code is LOAD_FAILED
        await client.load("whole@000000000000", whole)
        assert await client.models() == {"mixture", "whole@000000000000"}
    finally:
        await client.close()
