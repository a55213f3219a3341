"""Details of /ready about a model with towers."""

from types import SimpleNamespace
from typing import Any

import pytest

from app.domain.lora import Shape
from app.domain.policy import Policy, Towers
from app.gateway.readiness import details_of

DECODER, TOWER = "language_model.model.layers.0.mlp.up_proj", "vision_tower.encoder.layers.0.mlp.fc1"


def told(towers: Towers, *modules: str) -> dict[str, str]:
    components: Any = SimpleNamespace(
        reference=SimpleNamespace(modules=dict.fromkeys(modules, Shape(4, 4))),
        reconciler=SimpleNamespace(each=()),
        rules=SimpleNamespace(note="not looked at", operators=SimpleNamespace(policy=Policy(towers=towers))),
    )
    return details_of(components)()


@pytest.mark.parametrize(
    ("towers", "words"),
    [(Towers.CUT, "cut out"), (Towers.REJECT, "rejected"), (Towers.SERVE, "--enable-tower-connector-lora")],
)
def test_it_says_if_a_lora_on_towers_is_served(towers: Towers, words: str) -> None:
    assert words in told(towers, DECODER, TOWER)["towers"]
    assert "towers" not in told(towers, DECODER)
