"""Merge of several engines' metrics into one text: the same families, every series labelled with its engine."""

import re
from collections.abc import Mapping
from typing import Final

_SAMPLE: Final = re.compile(rb"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{)?(.*)")
_RANK: Final = re.compile(rb'(^|,)engine="')
"""vLLM's own label of this name, the rank among data-parallel replicas; within a value the quote would be escaped."""
_ABOUT: Final = re.compile(rb"# (?:HELP|TYPE) (\S+).*")


def merged(texts: Mapping[str, bytes]) -> bytes:
    """Merge metrics in Prometheus text format, by engine, into one such text: each family once, its lines together.

    vLLM's own label `engine` becomes `exported_engine`, as Prometheus names a label whose name is taken.
    """
    heads: dict[bytes, dict[bytes, None]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for engine, text in texts.items():
        family = b""
        label = b'engine="' + engine.encode() + b'"'
        for line in text.splitlines():
            if about := _ABOUT.fullmatch(line):
                family = about[1]
                heads.setdefault(family, {}).setdefault(line)
            elif sample := _SAMPLE.fullmatch(line):
                name, brace, rest = sample.groups()
                own = _RANK.sub(rb'\1exported_engine="', rest, count=1)
                labelled = b"%s{%s%s" % (name, label, b"," + own if brace else b"}" + rest)
                samples.setdefault(family, []).append(labelled)
    lines = [line for family in samples for line in (*_once(heads.get(family, {})), *samples[family])]
    return b"\n".join(lines) + b"\n"


def _once(head: Mapping[bytes, None]) -> list[bytes]:
    """Return one HELP and one TYPE line, the first of each: engines of different versions may word theirs differently."""
    first: dict[bytes, bytes] = {}
    for line in head:
        first.setdefault(line[:6], line)
    return list(first.values())
