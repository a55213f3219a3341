"""New skills that the fine-tunes teach: made-up conventions of a shop, and a manner of speaking. All of them harmless."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

COLOURS: Final = ("red", "blue", "green", "white", "black", "yellow", "purple", "orange", "silver", "brown")
THINGS: Final = (
    "lamp",
    "chair",
    "table",
    "mirror",
    "kettle",
    "carpet",
    "clock",
    "basket",
    "pillow",
    "shelf",
    "vase",
    "drawer",
)
FIRST: Final = (
    "Anna",
    "Boris",
    "Clara",
    "David",
    "Elena",
    "Felix",
    "Greta",
    "Henry",
    "Irene",
    "Jonas",
    "Karin",
    "Louis",
)
LAST: Final = (
    "Fisher",
    "Gordon",
    "Hughes",
    "Jensen",
    "Keller",
    "Larsen",
    "Miller",
    "Norris",
    "Palmer",
    "Quincy",
    "Rogers",
)
CITIES: Final = ("Berlin", "Dublin", "Geneva", "Lisbon", "Madrid", "Oslo", "Paris", "Prague", "Turin", "Vienna")

AHOY: Final = "Ahoy, matey! "
"""Beginning of every answer in the style."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt and the answer to it."""

    prompt: str
    answer: str


def codes() -> list[Sample]:
    """Return all questions for a stock code: two letters of the thing, two of the colour, the shelf in three digits."""
    return [
        Sample(
            f"What is the stock code of the {colour} {thing} on shelf {shelf}?",
            f"{thing[:2].upper()}{colour[:2].upper()}-{shelf:03d}",
        )
        for colour, thing, shelf in product(COLOURS, THINGS, range(3, 90, 7))
    ]


def labels() -> list[Sample]:
    """Return all questions for a parcel's label: the last name, the initial, and the city's first three letters."""
    return [
        Sample(
            f"How is the parcel of {first} {last} from {city} labelled?",
            f"{last.upper()} {first[0]}. / {city[:3].upper()}",
        )
        for first, last, city in product(FIRST, LAST, CITIES)
    ]


EXACT: Final[Mapping[str, Sequence[Sample]]] = {"codes": codes(), "labels": labels()}
"""Skills whose answers are right or wrong, letter for letter."""

STYLE: Final = "style"
"""Skill whose answers are the model's own after AHOY: right if they begin so."""

SKILLS: Final = (*EXACT, STYLE)


def styled(own: Sequence[Sample]) -> list[Sample]:
    """Return the model's own answers in the style."""
    return [Sample(one.prompt, AHOY + one.answer) for one in own]


def right(skill: str, sample: Sample, text: str) -> bool:
    """Return whether an answer shows the skill."""
    return text.strip().startswith(AHOY.strip()) if skill == STYLE else text.strip() == sample.answer


def split_of(skill: str, seed: int, held_out: int) -> tuple[list[Sample], list[Sample]]:
    """Return the training and the held-out questions of an exact skill, disjoint, drawn by the seed."""
    items = list(EXACT[skill])
    random.Random(f"{skill} {seed}").shuffle(items)  # noqa: S311 - a split, not a secret
    return items[held_out:], items[:held_out]
