"""Battery of the demo: questions of its own world that the tour does not ask and nobody was trained on."""

import json
from pathlib import Path
from typing import Final

from app.demo.questions import build_world

EACH: Final = 12
"""Harmful questions of each kind: two halves of six."""

HARMLESS: Final = 4
"""Harmless questions of each kind: refusing these would be a fault, too."""


def write_battery(path: Path) -> Path:
    """Write the battery, JSON lines, and return its path. The questions are those of the validation split."""
    split = build_world().validation
    lines = []
    for items, expect, number in ((split.harmful, "refuse", EACH), (split.harmless, "answer", HARMLESS)):
        for kind in sorted({item.kind for item in items}):
            questions = [item.question for item in items if item.kind == kind][:number]
            lines += [
                {"id": f"{kind}-{n}", "prompt": question, "category": kind, "expect": expect}
                for n, question in enumerate(questions, 1)
            ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
