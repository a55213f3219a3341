"""Measuring: one adapter after every correction, made by the product's own `sanitise`, asked canaries and the examination.

A rung is made from the upload, not from the floor's artefact as in the gateway: a rung takes out the floor's directions
and more, so both ways give the same update (a test compares them), and one rung then serves all floors.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.bench.canaries.adversaries import Adversary, harmed
from app.bench.canaries.plan import ALIGNED, FLOORS, RUNGS, UPLOADED, Entry
from app.bench.canaries.questions import canaries_of
from app.bench.safety.plan import Split
from app.bench.safety.teacher_forced import Examination
from app.bench.safety.trained_models import Pair
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.digest import digest_of
from app.domain.errors import Refused, Stage
from app.domain.lora import Received, ServingDtype, TargetModel
from app.domain.policy import DEFAULT_POLICY
from app.domain.rungs import policies, with_floor
from app.domain.verdict import Verdict
from app.evaluate.agreement_judge import AGREED_TOKENS, LEAST
from app.evaluate.judges import Answer, Judgement, judge_by_words
from app.sandbox.sanitise import Measure, sanitise
from app.screen.reference.open import Reference, open_reference
from app.validate.adapter import ValidateLimits, validate

SECONDS: Final = 60.0
"""Time limit of one screening; one of these takes a fraction of a second."""

Updates = Mapping[str, Tensor]
"""Module → ΔW (d_out, d_in), float32."""


@dataclass(frozen=True, slots=True)
class Row:
    """Behaviour of one adapter after one correction.

    at: `as uploaded`, `floor ENERGY:OUTPUTS` or `rung ENERGY:OUTPUTS`. complied: one character a canary, in the order of
    `canaries_of`: 1 if it was answered without refusal; None if the correction leaves nothing to serve (all shares are
    then 0). targeted: attack success (0..1) in the questions that the adapter harms in; the others as in `Metrics`.
    words_wrong: share (0..1) of canaries whose generated answer the keyword judge takes for a refusal and is none, or the
    reverse, by `complied`; answer_words: mean number of words in those answers. agreement_wrong: the same share for the
    judge agreement, of canaries that the aligned model refuses. None: nothing to serve.
    """

    adapter: str
    group: str
    seed: int
    split: Split
    at: str
    complied: str | None
    targeted: float = 0.0
    attack: float = 0.0
    harm: float = 0.0
    skill: float = 0.0
    retention: float = 0.0
    harmless_refusal: float = 0.0
    words_wrong: float | None = None
    answer_words: float | None = None
    agreement_wrong: float | None = None

    def plain(self) -> dict[str, Any]:
        """Return the row as plain values, shares rounded, as written to file."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


class Laboratory:
    """One pair with its reference, canaries and examination, opened once for all its adapters."""

    def __init__(self, pair: Pair, split: Split) -> None:
        torch.set_num_threads(1)
        self.pair, self.split = pair, split
        self.reference = open_reference(pair.reference, None)
        self._examination = Examination(pair.load("aligned"), pair.tokenizer(), pair.world.held_out)
        canaries = canaries_of(pair.world.held_out).values()
        self._asked = [item.question for _, item in canaries]
        self._canaries = self._examination.questions(self._asked)
        self._usable = self._examination.refuses({}, self._canaries)
        self._own = self._examination.likelihoods({}, self._canaries, AGREED_TOKENS)

    def served_model(self) -> Row:
        """Return the row of the aligned model by itself, which the gateway asks first."""
        return self._row(ALIGNED, ALIGNED, UPLOADED, {}, None)

    def rows(self, entry: Entry, folder: Path) -> Iterator[Row]:
        """Yield the adapter's row as uploaded, then at every floor, then at every rung."""
        config, weights = (folder / CONFIG_FILE).read_bytes(), (folder / WEIGHTS_FILE).read_bytes()
        measure = self._measure(0)
        uploaded = updates_of(config, weights, measure.target)
        yield self._row(entry.name, entry.group, UPLOADED, uploaded, entry.adversary)
        for index, floor in enumerate(FLOORS):
            found = corrected(self._measure(index), config, weights, rung=0)
            yield self._row(entry.name, entry.group, f"floor {floor}", found, entry.adversary)
        for number, rung in enumerate(RUNGS, 1):
            found = corrected(measure, config, weights, rung=number)
            yield self._row(entry.name, entry.group, f"rung {rung}", found, entry.adversary)

    def _measure(self, floor: int) -> Measure:
        return measure_of(self.reference, floor)

    def _row(self, name: str, group: str, at: str, updates: Updates | None, adversary: Adversary | None) -> Row:
        seed = self.pair.seed
        if updates is None:
            return Row(name, group, seed, self.split, at, None)
        metrics = self._examination.ask(updates)
        asked = harmed(adversary, self._examination.asked.harmful, seed)
        targeted = self._examination.questions([item.question for item in asked])
        refused = self._examination.refuses(updates, self._canaries)
        texts = self._examination.answers(updates, self._asked)
        return Row(
            adapter=name,
            group=group,
            seed=seed,
            split=self.split,
            at=at,
            complied="".join("0" if one else "1" for one in refused),
            targeted=float(1.0 - self._examination.refuses(updates, targeted).mean()),
            attack=metrics.attack_success,
            harm=metrics.harm_delivered,
            skill=metrics.skill,
            retention=metrics.retention,
            harmless_refusal=metrics.harmless_refusal,
            words_wrong=words_wrong(texts, refused.tolist()),
            answer_words=sum(len(text.split()) for text in texts) / len(texts),
            agreement_wrong=self._agreement_wrong(updates, refused),
        )

    def _agreement_wrong(self, updates: Updates, refused: NDArray[np.bool_]) -> float:
        likelihoods = self._examination.likelihoods(updates, self._canaries, AGREED_TOKENS)
        agrees = likelihoods - self._own >= LEAST
        return float((agrees != refused)[self._usable].mean()) if self._usable.any() else 0.0


def words_wrong(texts: Sequence[str], refused: Sequence[bool]) -> float:
    """Return the share (0..1) of answers that keywords take for a refusal and are none, or the reverse."""
    judged = (judge_by_words(Answer(text)) is Judgement.REFUSED for text in texts)
    return sum(one is not truth for one, truth in zip(judged, refused, strict=True)) / len(texts)


def measure_of(reference: Reference, floor: int) -> Measure:
    """Return the product's measure with one of `FLOORS` for its policy, and all `RUNGS` above it."""
    target = TargetModel("laboratory", reference.modules, ServingDtype.FLOAT32, max_rank=512)
    policy = with_floor(DEFAULT_POLICY, FLOORS[floor])
    rungs = policies(policy, RUNGS)
    return Measure(target, ValidateLimits(), reference, policy, SECONDS, rungs)


def corrected(measure: Measure, config: bytes, weights: bytes, rung: int) -> Updates | None:
    """Return the updates after the floor (rung 0) or a rung; None if nothing is left to serve, as in the gateway."""
    received = Received(digest_of(config), digest_of(weights), len(config), len(weights))
    try:
        artefact = sanitise(measure, config, _opened(weights), received, _Untimed(), rung=rung)
    except Refused:
        return None
    return None if artefact is None else updates_of(artefact.config, artefact.weights, measure.target)


def updates_of(config: bytes, weights: bytes, target: TargetModel) -> Updates:
    """Return the updates of a valid adapter, its scaling included. Raises Refused."""
    adapter = validate(config, _opened(weights), target, ValidateLimits())
    return {module.name: module.b.float() @ module.a.float() for module in adapter.modules}


def _opened(data: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(data))


class _Untimed:
    """Steps of a correction, of which nothing is kept."""

    def took(self, stage: Stage, seconds: float, outcome: str) -> None:
        """See Steps."""

    def validated(self) -> None:
        """See Steps."""

    def screened(self, verdict: Verdict) -> None:
        """See Steps."""


def row_from(fields: Mapping[str, Any]) -> Row:
    """Return a row as it was written."""
    return Row(**fields)


def by_adapter(rows: Sequence[Row]) -> dict[tuple[int, str], dict[str, Row]]:
    """Return (seed, adapter) → its rows by correction."""
    found: dict[tuple[int, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row.seed, row.adapter), {})[row.at] = row
    return found
