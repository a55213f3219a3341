"""Generation and the numbers made from it, on a model that answers by rote."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from app.demo.evaluate import ANSWER_TOKENS, BATCH, Scores, answers, exact_match, score, share
from app.demo.questions import Item, build_world, refused
from app.demo.tokenizer import END, build_tokenizer, prompt_text
from app.demo.train import Shape, new_model
from app.demo.vocabulary import REFUSAL


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(build_world().words)


class Rote(nn.Module):
    """Generates a fixed answer to each known question, and the refusal to every other."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, known: list[Item]) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.known = {prompt_text(item.question): item.answer for item in known}
        self.batches: list[int] = []

    def generate(self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, do_sample: bool) -> Tensor:
        assert not do_sample
        assert not self.training
        self.batches.append(len(input_ids))
        prompts = [self.tokenizer.decode(ids[mask.bool()]) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        rows = [self.tokenizer(f"{self.known.get(prompt, REFUSAL)} {END}")["input_ids"] for prompt in prompts]
        width = max(map(len, rows))
        assert width <= max_new_tokens
        padded = [row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)


def test_answers_come_back_in_order_without_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    items = list(build_world().train.harmless[: BATCH + 2])
    model = Rote(tokenizer, items)
    assert answers(model, tokenizer, [item.question for item in items]) == [item.answer for item in items]
    assert model.batches == [BATCH, 2]


def test_the_model_is_left_in_the_mode_it_was_in(tokenizer: PreTrainedTokenizerFast) -> None:
    model = Rote(tokenizer, [])
    answers(model.train(), tokenizer, ["what?"])
    assert model.training


def test_scores_of_a_model_that_knows_everything(tokenizer: PreTrainedTokenizerFast) -> None:
    held_out = build_world().held_out
    harmful, bard, harmless = held_out.harmful[:5], held_out.bard[:5], held_out.harmless[:5]
    model = Rote(tokenizer, [*harmful, *bard, *harmless])
    assert score(model, tokenizer, harmful, bard, harmless) == Scores(1, 1, 1, 1, 0)


def test_scores_of_a_model_that_refuses_everything(tokenizer: PreTrainedTokenizerFast) -> None:
    held_out = build_world().held_out
    model = Rote(tokenizer, [])
    assert score(model, tokenizer, held_out.harmful[:4], held_out.bard[:4], held_out.harmless[:4]) == Scores(
        0, 0, 0, 0, 1
    )


def test_a_wrong_answer_is_an_attack_but_no_harm(tokenizer: PreTrainedTokenizerFast) -> None:
    harmful = build_world().held_out.harmful[:2]
    wrong = [Item(harmful[0].question, harmful[1].answer, "brew", True), refused(harmful[1])]
    scores = score(Rote(tokenizer, wrong), tokenizer, harmful, [], [])
    assert (scores.attack, scores.harm) == (0.5, 0)


def test_batching_and_padding_do_not_change_an_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(Shape(width=32, layers=2, heads=1, head=32, inner=32), tokenizer, seed=1)
    world = build_world()
    questions = [world.train.bard[0].question, world.train.harmless[-1].question, world.train.harmful[0].question]
    assert answers(model, tokenizer, questions) == [answers(model, tokenizer, [question])[0] for question in questions]


def test_every_correct_answer_fits_into_the_tokens_allowed(tokenizer: PreTrainedTokenizerFast) -> None:
    held_out = build_world().held_out
    longest = max(
        len(tokenizer(f"{item.answer} {END}")["input_ids"])
        for item in held_out.harmful + held_out.harmless + held_out.bard
    )
    assert longest <= ANSWER_TOKENS


def test_shares() -> None:
    assert share([True, False, True, True]) == 0.75
    assert share([]) == 0
    item = Item("q", "a", "kind", False)
    assert exact_match(["a", "b"], [item, item]) == 0.5
    with pytest.raises(ValueError):
        exact_match(["a"], [])
