"""The only room that reads untrusted bytes: sealed files become an Adapter, or the rule they broke.

    config bytes → strict_json → config ─┐
    weights file → container → names ────┴→ adapter (pairs, shapes, ranks, scaling, cast, finite) → Adapter

Nothing here imports what an upload names, follows a path or id it contains, or evaluates a pattern of its.
"""
