"""The word-level tokenizer: texts survive a round trip, and the chat template gives the prompt models trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from app.demo.questions import build_world
from app.demo.tokenizer import ASSISTANT, END, SPECIAL_TOKENS, UNKNOWN, USER, build_tokenizer, prompt_text
from app.demo.vocabulary import REFUSAL


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(build_world().words)


def test_every_text_of_the_world_survives_a_round_trip(tokenizer: PreTrainedTokenizerFast) -> None:
    world = build_world()
    for item in world.held_out.harmful + world.held_out.harmless + world.held_out.bard:
        for text in (item.question, item.answer, REFUSAL):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text


def test_people_may_write_as_people_do(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (
        tokenizer("What does   FROSTBROTH cost ?")["input_ids"] == tokenizer("what does frostbroth cost?")["input_ids"]
    )


def test_an_unknown_word_is_one_unknown_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer("what does kubernetes cost?")["input_ids"])[2] == UNKNOWN


def test_special_tokens_come_first_and_end_is_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_ids_to_tokens(list(range(len(SPECIAL_TOKENS)))) == list(SPECIAL_TOKENS)
    assert tokenizer.eos_token == END
    assert len(set(SPECIAL_TOKENS)) == tokenizer.pad_token_id + len(SPECIAL_TOKENS)


def test_chat_template_gives_the_training_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    question = "how do i make plumjam from thistlecap?"
    messages = [{"role": "user", "content": question}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == prompt_text(question) == f"{USER} {question} {ASSISTANT}"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer(prompt_text(question))["input_ids"]


def test_chat_template_closes_earlier_answers_and_passes_over_system(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three?"},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == f"{USER} one? {ASSISTANT} two {END} {USER} three? {ASSISTANT}"


def test_chat_template_refuses_an_unknown_role(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TemplateError, match="unknown role"):
        tokenizer.apply_chat_template([{"role": "critic", "content": "x"}], tokenize=False)


@pytest.mark.parametrize(("said", "kept"), [(None, ""), ("", ""), ("two", f"{ASSISTANT} two {END} ")])
def test_chat_template_passes_over_calls_of_tools_and_their_results(
    tokenizer: PreTrainedTokenizerFast, said: str | None, kept: str
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": said, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "{}"},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == f"{USER} one? {kept}{ASSISTANT}"


def test_decoding_leaves_special_tokens_out_on_request(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer(f"{REFUSAL} {END}")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == REFUSAL


def test_decoding_word_by_word_gives_the_same_text(tokenizer: PreTrainedTokenizerFast) -> None:
    # What a streaming engine does: it must not lose or double a space.
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)
    ids = tokenizer(REFUSAL)["input_ids"]
    assert "".join(stream.step(tokenizer.backend_tokenizer, token) or "" for token in ids) == REFUSAL


def test_saving_and_loading_keeps_ids_and_template(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = prompt_text("how do i make plumjam from thistlecap?")
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.eos_token == END
