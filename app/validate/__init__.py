"""Validation: the only package that parses untrusted content; sealed files become an Adapter or a refusal.

    config bytes → strict_json → config ───────────────┐
    weights file → safetensors_header → tensor_names ──┴→ adapter (pairs, shapes, ranks, scaling, cast, finite) → Adapter

Nothing here imports code that an upload names, follows a path or id it contains, or evaluates a pattern from it.
"""
