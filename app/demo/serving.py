"""Settings that serve the demo: its model, its reference, its policy, without keys, on loopback."""

from typing import Any

from app.demo.assets import ALIGNED, REFERENCE


def serve_settings() -> dict[str, Any]:
    """Return values for `Settings`; flags given with `--demo` take precedence."""
    return {
        "model": str(ALIGNED),
        "served_model_name": "demo",
        "reference": REFERENCE,
        "open": True,
        # The gateway's defaults, except for two bounds that identify the adapter that learnt only harm: measured on this
        # very pair (docs/evaluation.md, "The demo in numbers"), on which they do not affect the two others.
        "reject_tau": 1.7,
        # The gateway's rungs, as far as the demo's reference holds them: 16 triples are 0.82 of ‖V‖² in its widest module.
        "rungs": "0.5:4,0.5:8,0.5:16,0.7:16,0.8:16",
        "max_pruned_share": 0.5,
        "dtype": "float32",  # a tiny model on a CPU: exact beats fast, and answers equal transformers' to the letter
        "max_model_len": 512,
        "max_lora_rank": 16,
        "max_loras": 4,
        "max_cpu_loras": 16,
        # For tools that a request demands; of its own accord the model calls none. With this parser vLLM 0.32 holds
        # arguments to a tool's schema whether or not the tool is strict.
        "tool_call_parser": "pythonic",
    }
