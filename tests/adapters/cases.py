"""Adapters as people have them, as data: values and names out of public files and bug reports, weights made in the test."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.adapters.models import ATTENTION, GDN, LLAMA

PEFT: Final = "base_model.model."
OLD, NEW, PLAIN = "language_model.model.", "model.language_model.", "model."
UNSLOTH: Final = {
    "base_model_class": "LlamaForCausalLM",
    "parent_library": "transformers.models.llama.modeling_llama",
    "unsloth_fixed": True,
}
LAYER_1: Final = r".*\.layers\.1\..*(q_proj|k_proj|v_proj|o_proj)$"
REGEX: Final = r".*language_model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$"
MLX_CONFIG: Final = {"fine_tune_type": "lora", "num_layers": 16, "lora_parameters": {"rank": 16, "scale": 20.0}}
VISION: Final = r"(?:.*?(?:vision|image|visual).*?(?:self_attn|mlp).*?(?:q_proj|k_proj|fc1)$)|(?:.*?language.*)"


@dataclass(frozen=True)
class Case:
    """One adapter. A refusal's code and words are expected, or acceptance if there is no code.

    kinds: ends of the adapted modules' names, None for all. config: changed fields; whole: the configuration instead.
    rename: replacements in the tensors' names, in order. ranks: part of a name → its rank. extra: more tensors, by shape.
    """

    name: str
    model: str
    what: str
    config: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] | None = None
    rename: tuple[tuple[str, str], ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    whole: Mapping[str, Any] | str | None = None
    weights: bytes | None = None
    dtype: str = "float32"
    empty: bool = False
    code: str | None = None
    words: tuple[str, ...] = ()


def _fields(name: str, what: str, **config: Any) -> Case:
    return Case(name, "llama", what, config, LLAMA)


def _off(name: str, what: str, *words: str, **config: Any) -> Case:
    return Case(name, "llama", what, config, LLAMA, code="unsupported_config", words=words)


def _spelled(name: str, model: str, what: str, ours: str, theirs: str, **more: Any) -> Case:
    return Case(name, model, what, rename=((PEFT + ours, PEFT + theirs),), **{"kinds": LLAMA, **more})


def _tool(name: str, what: str, *words: str, code: str = "bad_tensor_name", **more: Any) -> Case:
    return Case(name, "llama", what, kinds=LLAMA, code=code, words=words, **more)


def _wrapped(name: str, wrapper: str, at: str) -> Case:
    return _tool(
        name, f"the wrapper {wrapper} in the names", wrapper, "save_pretrained", rename=((at, at + wrapper + "."),)
    )


CONFIGURATIONS: Final = (
    _fields("R10", "axolotl on OpenLLaMA: fan_in_fan_out null", fan_in_fan_out=None),
    _fields("R17", "Unsloth 2026: auto_mapping with unsloth_fixed", auto_mapping=UNSLOTH),
    _fields("R46", "Gemma 3 270M: modules_to_save []", modules_to_save=[]),
    _fields("F21", "target_modules a regular expression", target_modules=r".*\.(q|v)_proj"),
    _fields("F21b", "exclude_modules one, too", target_modules="all-linear", exclude_modules=r".*(vision|audio).*"),
    _fields("F26", "modules_to_save []", modules_to_save=[]),
    _fields("F28", "fan_in_fan_out null", fan_in_fan_out=None),
    _fields("F30", "auto_mapping of a class that PEFT found itself", auto_mapping={**UNSLOTH, "unsloth_fixed": False}),
    _fields("F32", "task_type SEQ_2_SEQ_LM", task_type="SEQ_2_SEQ_LM"),
    _fields("F35", "init eva, eva_config filled", init_lora_weights="eva", eva_config={"rho": 2.0, "tau": 0.99}),
    _fields("F35b", "init orthogonal", init_lora_weights="orthogonal"),
    _fields("F35c", "init lora_ga", init_lora_weights="lora_ga", lora_ga_config={"direction": "ArB2r"}),
    _fields(
        "F48",
        "swift's tuners",
        lora_dtype=None,
        lorap_lr_ratio=16.0,
        lorap_emb_lr=1e-6,
        swift_type="LORA",
        model_key_mapping=None,
    ),
    _fields("F49", "unsloth_version", unsloth_version="2026.9"),
    _fields("F60", "lora_dropout null", lora_dropout=None),
    _fields("F67", "use_dora null", use_dora=None),
    _fields("F67b", "use_rslora and inference_mode null", use_rslora=None, inference_mode=None),
    _fields("F69", "megatron_core of another spelling", megatron_core="megatron.core.tensor_parallel"),
    _fields("F70", "a newer PEFT's field, off", use_something_new=False, another_new={}, third_new=""),
    _fields("F71", "runtime_config and metadata", runtime_config={"ephemeral_gpu_offload": False}, metadata={"a": 1}),
    _fields("F72", "rsLoRA", use_rslora=True, lora_alpha=4),
    _off(
        "R49",
        "DoRA beside auto_mapping and a regular expression",
        "use_dora",
        "DoRA",
        use_dora=True,
        auto_mapping=UNSLOTH,
    ),
    _off("F80", "PiSSA", "pissa", "path_initial_model_for_weight_conversion", init_lora_weights="pissa_niter_16"),
    _off("F81", "OLoRA", "olora", init_lora_weights="olora"),
    _off("F82", "LoftQ", "loftq", init_lora_weights="loftq", loftq_config={"loftq_bits": 4}),
    _off("F83", "biases", "bias", 'bias="none"', bias="lora_only"),
    _off("F84", "a head saved whole", "modules_to_save", "merge", modules_to_save=["embed_tokens", "lm_head"]),
    _off("F85", "fan_in_fan_out", "fan_in_fan_out", "Conv1D", fan_in_fan_out=True),
    _off("F86", "an activated LoRA", "alora_invocation_tokens", alora_invocation_tokens=[1, 2]),
    _off("F87", "layers replicated", "layer_replication", layer_replication=[[0, 2], [1, 2]]),
    _off("F88", "experts' parameters", "target_parameters", target_parameters=["mlp.experts.gate_up_proj"]),
    _off("F89", "a newer PEFT's field, on", "use_something_new", use_something_new=True),
    _off("F90", "an unknown text", "some_mode", some_mode="fancy"),
    _off("F91", "tokens trained", "trainable_token_indices", trainable_token_indices=[1, 2]),
    Case(
        "R98",
        "llama",
        "MLX of 2024",
        whole={"lora_layers": -1, "use_dora": False},
        code="bad_config",
        words=("MLX", "scale"),
    ),
    Case("R99", "llama", "MLX of 2026", whole=MLX_CONFIG, code="bad_config", words=("MLX", "transposed")),
    Case(
        "R101",
        "llama",
        "one field only",
        whole={"base_model": "org/m"},
        code="bad_config",
        words=("peft_type", "r is missing"),
    ),
    Case(
        "R104", "llama", "a model's config.json", whole={"model_type": "llama"}, code="bad_config", words=("a model's",)
    ),
    Case(
        "R102",
        "llama",
        "a git-lfs pointer as configuration",
        whole="version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 1049\n",
        code="bad_config",
        words=("git lfs pull",),
    ),
)

PATTERNS: Final = (
    Case("F10", "llama", "rank by last name", {"rank_pattern": {"q_proj": 8}}, LLAMA, ranks={"q_proj": 8}),
    Case(
        "F11",
        "llama",
        "rank by suffix",
        {"rank_pattern": {"layers.0.self_attn.q_proj": 8}},
        LLAMA,
        ranks={"layers.0.self_attn.q_proj": 8},
    ),
    Case("F14", "llama", "alpha by last name", {"alpha_pattern": {"q_proj": 32}}, LLAMA),
    Case("F14b", "llama", "alpha by suffix", {"alpha_pattern": {"self_attn.q_proj": 32, "proj": 99}}, LLAMA),
    Case(
        "F14c", "llama", "two keys: the first counts", {"alpha_pattern": {"1.self_attn.q_proj": 2, "q_proj": 32}}, LLAMA
    ),
    Case("F14d", "llama", "two keys the other way", {"alpha_pattern": {"q_proj": 32, "1.self_attn.q_proj": 2}}, LLAMA),
    Case("F15", "llama", "alpha of a module that is not there", {"alpha_pattern": {"model.layers.9.q_proj": 1}}, LLAMA),
    Case("F16", "llama", "as PEFT 0.21 writes for experts", {"alpha_pattern": {r".*\.gate_up_proj": 32}}, LLAMA),
    Case("F16b", "llama", "the same form on a module", {"alpha_pattern": {r".*\.up_proj": 32}}, LLAMA),
    Case(
        "R103",
        "llama",
        "axolotl: rank and alpha by one expression",
        {"r": 8, "lora_alpha": 16, "rank_pattern": {LAYER_1: 32}, "alpha_pattern": {LAYER_1: 128}},
        LLAMA,
        ranks={f"layers.1.{kind}": 32 for kind in ATTENTION} | {"layers": 8},
    ),
    Case(
        "R103b",
        "llama",
        "alpha alone by an expression",
        {"alpha_pattern": {LAYER_1: 128}},
        LLAMA,
        code="unsupported_config",
        words=("alpha_pattern", "128", "full names"),
    ),
    Case(
        "F12",
        "llama",
        "rank by an expression",
        {"rank_pattern": {"(?:.*)q_proj": 8}},
        LLAMA,
        ranks={"q_proj": 8},
    ),
    Case(
        "F13",
        "llama",
        "a rank that no key allows",
        {"rank_pattern": {"q_proj": 8}},
        LLAMA,
        ranks={"v_proj": 8},
        code="wrong_shape",
        words=("v_proj", "rank 8", "says 4"),
    ),
)

MODULES: Final = (
    Case("R11", "llama", "Llama 2: lm_head in target_modules"),
    Case("R12", "llama", "Llama 3: the same", {"lora_alpha": 64, "target_modules": ["lm_head", "q_proj"]}),
    Case(
        "R13",
        "gemma3",
        "lm_head where vLLM loads none, as in Mistral",
        kinds=("layers.0.mlp.up_proj",),
        rename=(("language_model.model.layers.0.mlp.up_proj", "lm_head"),),
        code="unknown_module",
        words=("lm_head", "vLLM", "without lm_head"),
    ),
    Case("N19", "llama", "LoRA on lm_head", kinds=("lm_head",)),
    _spelled("R50", "gemma3", "MedGemma: the tower's q, k, v too", OLD, NEW, kinds=(*LLAMA, "k_proj", "v_proj")),
    _spelled("P07", "gemma3", "today's names, language model only", OLD, NEW),
    _spelled("P07b", "gemma3", "the hub's names", OLD, OLD),
    _spelled("P07c", "mistral3", "trained on the text part", OLD, PLAIN),
    Case(
        "P07d",
        "gemma3",
        "the tower by today's names",
        rename=(("vision_tower.", "model.vision_tower."), (OLD, NEW)),
    ),
    Case("R51", "gemma4", "a regular expression of language_model", {"target_modules": REGEX}, LLAMA),
    Case("R52", "gemma4", "Unsloth: auto_mapping", {"auto_mapping": UNSLOTH}, LLAMA),
    Case("R54", "gemma4", "Unsloth: names per layer", {"auto_mapping": UNSLOTH, "target_modules": VISION}),
    _spelled("R59", "qwen2_5_vl", "names before transformers 4.52, with the tower", PLAIN, PLAIN, kinds=None),
    _spelled("R60", "qwen2_5_vl", "names since 4.52", PLAIN, NEW, kinds=ATTENTION),
    _spelled("P12", "qwen2_5_vl", "names since 4.52, all linears", PLAIN, NEW),
    _spelled("R62", "llava", "names since 4.52, base null", OLD, NEW, config={"base_model_name_or_path": None}),
    Case("R64", "idefics3", "SmolVLM: vision and connector besides"),
    Case("R65", "idefics3", "SmolVLM: four names", kinds=ATTENTION),
    Case("R66", "qwen3_5", "all linears of the language model", kinds=(*LLAMA, *GDN)),
    _spelled("R67", "qwen3_5", "by the text part's names", NEW, PLAIN, kinds=(*LLAMA, *GDN)),
    Case("R70", "qwen3_5", "vision too, SEQ_2_SEQ_LM", {"task_type": "SEQ_2_SEQ_LM"}),
    _spelled("R71", "nemotron_h", "model. for backbone.", "backbone.", PLAIN, kinds=None),
    Case("R75", "phi", "names of a GPT-NeoX: only dense matches", kinds=("self_attn.dense",)),
    Case("P22", "phi", "the usual list for Phi"),
    Case("R80", "chatglm", "GLM-4 9B, LLaMA-Factory"),
    Case("R81", "chatglm", "GLM-4 9B", {"lora_alpha": 32}),
    Case("R86", "gpt_neox", "GPT-NeoX 3.6B", kinds=("query_key_value",)),
    Case("P18", "granitemoehybrid", "shared_mlp.input_linear"),
    Case("P19", "opt", "fc1, fc2 besides"),
    Case("M02", "phimoe", "the router by transformers' name", rename=(("block_sparse_moe.gate", "mlp.router"),)),
    Case("M03", "phimoe", "the router by the hub's name"),
    Case("M01", "mixtral", "attention, with the alpha that PEFT writes", {"alpha_pattern": {r".*\.gate_up_proj": 16}}),
    Case(
        "R26",
        "llama",
        "llm2vec: names without model.",
        {"task_type": None, "auto_mapping": UNSLOTH},
        LLAMA,
        ((PEFT + "model.", PEFT),),
        code="unknown_module",
        words=("model.layers.0.mlp.down_proj", "AutoModelForCausalLM"),
    ),
    Case(
        "R72",
        "phi3",
        "split names on a fused base",
        kinds=("self_attn.qkv_proj", "self_attn.o_proj"),
        rename=(("qkv_proj", "q_proj"),),
        code="unknown_module",
        words=("q_proj", "gate_up_proj", "qkv_proj"),
    ),
    Case(
        "R76",
        "phi",
        "Phi-1.5's remote code",
        kinds=("self_attn.dense",),
        rename=(("model.layers.0.self_attn.dense", "layers.0.mixer.Wqkv"),),
        code="unknown_module",
        words=("Wqkv", "dense", "fc1"),
    ),
    *(
        Case(
            name,
            "llama",
            what,
            kinds=("self_attn.q_proj",),
            rename=((PEFT + "model.layers.", PEFT + theirs), ("self_attn.q_proj", kind)),
            code="unknown_module",
            words=(kind.rsplit(".", 1)[-1], "q_proj", "the reference"),
        )
        for name, what, theirs, kind in (
            ("R82", "ChatGLM 6B", "transformer.layers.", "attention.query_key_value"),
            ("R83", "FinGPT's ChatGLM 6B", "transformer.layers.", "attention.query_key_value"),
            ("R85", "Baichuan2", "model.layers.", "self_attn.W_pack"),
            ("R90", "CodeGen", "transformer.h.", "attn.qkv_proj"),
            ("N48", "experts by module name", "model.layers.", "mlp.experts.3.w1"),
        )
    ),
)

FILES: Final = (
    Case("N07", "llama", "float64", kinds=LLAMA, dtype="float64"),
    Case("N08", "llama", "bfloat16", kinds=LLAMA, dtype="bfloat16"),
    Case("N11", "llama", "no prefix: transformers' own save", kinds=LLAMA, rename=((PEFT, ""),)),
    _tool(
        "N12", "trained on AutoModel", "AutoModelForCausalLM", code="unknown_module", rename=((PEFT + "model.", PEFT),)
    ),
    _wrapped("N15", "_orig_mod", PEFT),
    _wrapped("N16", "_fsdp_wrapped_module", "mlp."),
    _wrapped("N17", "module", PEFT),
    _wrapped("N18", "_checkpoint_wrapped_module", "layers.0."),
    _tool("N20", "an adapter's name inside", "save_pretrained", rename=(("lora_A.", "lora_A.default."),)),
    _tool("N21", "LoRA on embed_tokens", "embed_tokens", extra={f"{PEFT}model.embed_tokens.lora_embedding_A": (4, 16)}),
    _tool("N22", "embeddings saved whole", "vocabulary", extra={f"{PEFT}model.embed_tokens.weight": (40, 16)}),
    Case(
        "N23",
        "llama",
        "lm_head adapted, and its own weight beside",
        extra={f"{PEFT}lm_head.base_layer.weight": (16, 16)},
    ),
    _tool(
        "N23b",
        "the head's own weight alone",
        "save_embedding_layers=False",
        extra={f"{PEFT}lm_head.base_layer.weight": (16, 16)},
    ),
    Case(
        "N23c",
        "llama",
        "lm_head adapted, of an enlarged vocabulary",
        extra={f"{PEFT}lm_head.base_layer.weight": (40, 16)},
        code="wrong_shape",
        words=("40×16", "16×16", "vocabulary"),
    ),
    _tool(
        "N23d",
        "the embeddings' own weight beside",
        "save_embedding_layers=False",
        extra={f"{PEFT}model.embed_tokens.base_layer.weight": (16, 16)},
    ),
    Case(
        "N23e",
        "llama",
        "the head's own weight by another spelling",
        rename=((PEFT + "lm_head", PEFT + "language_model.lm_head"),),
        extra={f"{PEFT}language_model.lm_head.base_layer.weight": (16, 16)},
    ),
    _tool(
        "N24", "DoRA's magnitudes", "DoRA", extra={f"{PEFT}model.layers.0.mlp.up_proj.lora_magnitude_vector": (1, 16)}
    ),
    _tool(
        "N26",
        "kohya",
        "kohya",
        rename=((PEFT + "model.layers.", "lora_te_model_layers_"), ("lora_A", "lora_down"), ("lora_B", "lora_up")),
        extra={"lora_te_x.alpha": ()},
    ),
    _tool("N27", "ZeRO-3: shapes [0]", "ZeRO-3", "zero_to_fp32", code="wrong_shape", empty=True),
    _tool("N28", "ZeRO-3: no tensors", "ZeRO-3", code="empty_adapter", weights=b"\x20" + bytes(7) + b"{}" + b" " * 30),
    Case("N30", "llama", "lora_B all zero", kinds=LLAMA, ranks={"zero": 0}),
    _tool(
        "N37", "MLX", "MLX", "transposed", rename=((PEFT, ""), ("lora_A.weight", "lora_a"), ("lora_B.weight", "lora_b"))
    ),
    _tool("N38", "torchtune", "torchtune", rename=((PEFT + "model.", ""), ("lora_A", "lora_a"), ("lora_B", "lora_b"))),
    _tool(
        "N39",
        "Megatron",
        "Megatron",
        "hf-peft",
        rename=(
            (PEFT + "model.", "decoder."),
            ("lora_A.weight", "adapter.linear_in.weight"),
            ("lora_B.weight", "adapter.linear_out.weight"),
        ),
    ),
    _tool(
        "N40",
        "mistral-finetune",
        "mistral-finetune",
        rename=((PEFT + "model.", ""), ("self_attn.q_proj", "attention.wq"), ("mlp.down_proj", "feed_forward.w2")),
    ),
    _tool("N41", "bitsandbytes", "bitsandbytes", extra={"model.layers.0.mlp.up_proj.weight.absmax": (4, 4)}),
    _tool("N42", "torch.save", "safe_serialization", code="bad_safetensors", weights=b"PK\x03\x04" + bytes(60)),
    _tool(
        "N43",
        "git-lfs",
        "git lfs pull",
        code="bad_safetensors",
        weights=b"version https://git-lfs.github.com/spec/v1\n",
    ),
    _tool(
        "P02",
        "NeMo Automodel: experts in three dimensions",
        "NeMo",
        "as PEFT writes them",
        extra={f"{PEFT}model.layers.0.mlp.experts.lora_gate_and_up_A": (4, 32, 4)},
    ),
    _tool(
        "N44",
        "two names of one module",
        "two names",
        extra={
            f"{PEFT}{NEW}layers.0.mlp.up_proj.lora_{side}.weight": (4, 16)[:: 1 if side == "A" else -1] for side in "AB"
        },
    ),
)

CASES: Final = (*CONFIGURATIONS, *PATTERNS, *MODULES, *FILES)
