"""Every accepted case, as it is written, is read by vLLM's own loader: the served modules' names and the same update."""

import ast
from pathlib import Path
from typing import Any

import pytest
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

from app.domain.digest import digest_of
from app.domain.lora import Adapter, Received
from app.domain.policy import Policy
from app.domain.verdict import METRIC_VERSION, Decision, ModuleVerdict, Outcome, Reason, Verdict
from app.prune.canonical import canonicalise
from app.prune.canonical_check import check_form
from app.screen.balance import balance_all
from tests.adapters.cases import Case
from tests.adapters.models import MODELS, served
from tests.adapters.test_cases import ACCEPTED, read
from tests.support.vllm_models import attribute, registry
from tests.support.vllm_models import mapper as class_mapper

ARCHITECTURES: dict[str, str] = {
    "llama": "LlamaForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma4": "Gemma4ForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "nemotron_h": "NemotronHForCausalLM",
    "chatglm": "ChatGLMModel",
    "opt": "OPTForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "phimoe": "PhiMoEForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "phi": "PhiForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
}
"""Architecture of each of the cases' models. vLLM has no class of its own for Phi and GPT-NeoX."""

RECEIVED = Received(digest_of(b"config"), digest_of(b"weights"), 6, 7)


def expected_of(model: str) -> set[str]:
    """Last names of the modules on which the class takes factors: linear ones, and heads where it says so."""
    heads = attribute(registry().get(ARCHITECTURES[model], ""), "embedding_modules") or "{}"
    return {name.rsplit(".", 1)[-1] for name in MODELS[model]} - {"lm_head"} | set(ast.literal_eval(heads))


def keeping(adapter: Adapter) -> Verdict:
    """A verdict that keeps every module."""
    modules = tuple(
        ModuleVerdict(one.name, one.rank, one.scaling, {}, None, None, 1.0, 1.0, Decision.KEEP, Reason.BELOW_TAU)
        for one in adapter.modules
    )
    some = digest_of(b"")
    return Verdict(some, METRIC_VERSION, Policy(), some, Outcome.CLEAN, "kept", modules)


@pytest.mark.parametrize("case", ACCEPTED, ids=[f"{case.name}: {case.what}" for case in ACCEPTED])
def test_the_engine_reads_what_is_written(tmp_path: Path, case: Case) -> None:
    adapter, target = balance_all(read(case)), served(case.model)
    verdict = keeping(adapter)
    artefact = canonicalise(adapter, verdict, RECEIVED, target)
    check_form(artefact.config, artefact.weights, verdict.served, target)
    (tmp_path / "adapter_config.json").write_bytes(artefact.config)
    (tmp_path / "adapter_model.safetensors").write_bytes(artefact.weights)
    mapper = class_mapper(registry().get(ARCHITECTURES[case.model], ""))
    mapper = None if mapper is None else mapper.get_rename_mapper()
    loaded = LoRAModel.from_local_checkpoint(
        str(tmp_path),
        expected_of(case.model),
        PEFTHelper.from_local_dir(str(tmp_path), None),
        lora_model_id=1,
        device="cpu",
        weights_mapper=mapper,
    )
    found: dict[str, Any] = dict(loaded.loras)
    for module in adapter.modules:
        name = (
            module.name if mapper is None else (mapper.map_name(f"{module.name}.weight") or "").removesuffix(".weight")
        )
        theirs = found.pop(name)
        delta = theirs.lora_b.double() @ theirs.lora_a.double() * theirs.scaling
        assert float((delta - module.b.double() @ module.a.double()).abs().max()) <= 1e-6
    assert not found


def test_every_model_of_the_cases_has_a_class() -> None:
    assert ARCHITECTURES.keys() == MODELS.keys()
