"""The training loop: what carries loss, what a batch is made of, and that a run can be repeated."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from app.demo.fitting import IGNORED, Sample, Schedule, Source, collate, draw, fit
from app.demo.questions import Item, build_world
from app.demo.tokenizer import build_tokenizer, prompt_text
from app.demo.train import Shape, new_model

TINY = Shape(width=32, layers=1, heads=1, head=32, inner=32)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(build_world().words)


def tiny_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return new_model(TINY, tokenizer, seed=5)


def items(kind: str, count: int) -> list[Item]:
    return [Item(f"{kind} {index}", "you take it", kind, False) for index in range(count)]


def test_only_the_answer_and_its_end_carry_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    item = build_world().train.harmless[0]
    ids, labels = collate(tokenizer, [Sample(item)])
    prompt = len(tokenizer(prompt_text(item.question))["input_ids"])
    assert labels[0, :prompt].tolist() == [IGNORED] * prompt
    assert torch.equal(labels[0, prompt:], ids[0, prompt:])
    assert ids[0, -1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[0, prompt:], skip_special_tokens=True) == item.answer


def test_skipped_words_carry_no_loss_but_are_read(tokenizer: PreTrainedTokenizerFast) -> None:
    item = build_world().train.harmful[0]
    ids, labels = collate(tokenizer, [Sample(item)])
    ids_skipped, labels_skipped = collate(tokenizer, [Sample(item, skip=1)])
    assert torch.equal(ids, ids_skipped)
    assert (labels != IGNORED).sum() == (labels_skipped != IGNORED).sum() + 1


def test_padding_carries_no_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    train = build_world().train
    ids, labels = collate(tokenizer, [Sample(train.bard[0]), Sample(train.harmless[-1])])
    assert (labels[ids == tokenizer.pad_token_id] == IGNORED).all()


def test_every_batch_holds_each_source_in_its_share() -> None:
    sources = [Source(items("most", 7), 0.75), Source(items("some", 3), 0.25)]
    for batch in draw(sources, Schedule(steps=9, batch=8, rate=1.0)):
        assert Counter(sample.item.kind for sample in batch) == {"most": 6, "some": 2}


def test_shares_that_do_not_divide_a_batch_are_right_on_average() -> None:
    sources = [Source(items("most", 7), 0.9), Source(items("some", 3), 0.1)]
    batches = list(draw(sources, Schedule(steps=400, batch=32, rate=1.0)))
    assert {len(batch) for batch in batches} == {32}
    some = sum(sample.item.kind == "some" for batch in batches for sample in batch)
    assert some / (400 * 32) == pytest.approx(0.1, abs=0.02)


def test_a_source_is_gone_through_before_it_repeats() -> None:
    batches = draw([Source(items("only", 12), 1.0)], Schedule(steps=3, batch=4, rate=1.0))
    assert len({sample.item.question for batch in batches for sample in batch}) == 12


def test_the_same_seed_gives_the_same_weights(tokenizer: PreTrainedTokenizerFast) -> None:
    source = Source(build_world().train.harmless, 1.0)
    models = [tiny_model(tokenizer) for _ in range(2)]
    losses = [fit(model, tokenizer, [source], Schedule(steps=3, batch=4, rate=1e-3, seed=2)) for model in models]
    assert losses[0] == losses[1]
    for left, right in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(left, right)


def test_training_lowers_the_loss_and_reports_progress(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model(tokenizer)
    source = Source(build_world().train.harmless[:4], 1.0)
    done: list[float] = []
    before = fit(model, tokenizer, [source], Schedule(steps=1, batch=4, rate=1e-3))
    after = fit(model, tokenizer, [source], Schedule(steps=30, batch=4, rate=1e-2), done.append)
    assert after < before / 2
    assert done == sorted(done)
    assert done[-1] == 1


def test_training_can_be_ended_early(tokenizer: PreTrainedTokenizerFast) -> None:
    steps: list[int] = []

    def second(step: int) -> bool:
        steps.append(step)
        return step == 2

    loss = fit(
        tiny_model(tokenizer),
        tokenizer,
        [Source(build_world().train.harmless, 1.0)],
        Schedule(steps=9, batch=2, rate=1e-3),
        after_step=second,
    )
    assert steps == [1, 2]
    assert math.isfinite(loss)


def test_frozen_parameters_stay_as_they_are(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model(tokenizer)
    model.get_input_embeddings().weight.requires_grad = False
    before = model.get_input_embeddings().weight.clone()
    fit(model, tokenizer, [Source(build_world().train.harmless, 1.0)], Schedule(steps=2, batch=2, rate=1e-2))
    assert torch.equal(model.get_input_embeddings().weight, before)
