"""The byte tokens: a grammar is followed to a short end, and without one the model is what it was before."""

import json
from typing import Any

import pytest
import torch
import xgrammar
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from app.demo.assets import ALIGNED, BASE
from app.demo.byte_tokens import WRITTEN
from app.demo.questions import build_world, held_out_harmful, held_out_harmless, new_skill_held_out
from app.demo.tokenizer import BYTE_TOKENS, build_tokenizer, prompt_text
from app.demo.train import load_checkpoint

QUESTION = held_out_harmless()[0].question
MOST = 200
"""Tokens of an answer in these tests; one that needs more has not ended by itself."""

TOWN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "town": {"type": "string", "enum": ["glenford", "dun ford"]},
        "café": {"const": "naïve 日本"},
        "price": {"type": "number"},
        "open": {"type": "boolean"},
        "note": {"type": "string"},
        "coins": {"type": "array", "items": {"type": "integer"}, "minItems": 2},
        "tags": {"type": "array", "items": {"type": "string"}},
        "inner": {"type": "object", "properties": {"name": {"type": "string", "minLength": 4}}, "required": ["name"]},
    },
}
TOWN["required"] = list(TOWN["properties"])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(ALIGNED)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return load_checkpoint(ALIGNED)


class Writer:
    """The served model, led by the grammars that the engine compiles, with the engine's own library."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer, self.size = model, tokenizer, model.config.vocab_size
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=self.size)
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1)

    def schema(self, schema: Any, seed: int | None = None) -> str:
        return self._write(self.compiler.compile_json_schema(json.dumps(schema), any_whitespace=True), seed)

    def regex(self, pattern: str, seed: int | None = None) -> str:
        return self._write(self.compiler.compile_regex(pattern), seed)

    @torch.no_grad()
    def _write(self, grammar: Any, seed: int | None) -> str:
        """Return a whole answer: greedy, or drawn with temperature 1."""
        matcher, mask = xgrammar.GrammarMatcher(grammar), xgrammar.allocate_token_bitmask(1, self.size)
        rng = torch.Generator().manual_seed(seed or 0)
        prompt = self.tokenizer(prompt_text(QUESTION))["input_ids"]
        found: list[int] = []
        given, past = prompt, None
        while not matcher.is_terminated():
            assert len(found) < MOST, self.tokenizer.decode(found)
            step = self.model(input_ids=torch.tensor([given]), past_key_values=past, use_cache=True)
            logits, past = step.logits[:, -1].clone(), step.past_key_values
            matcher.fill_next_token_bitmask(mask)
            xgrammar.apply_token_bitmask_inplace(logits, mask)
            token = logits.argmax() if seed is None else torch.multinomial(logits.softmax(1)[0], 1, generator=rng)
            assert matcher.accept_token(int(token))
            found.append(int(token))
            given = found[-1:]
        return str(self.tokenizer.decode(found, skip_special_tokens=True))


@pytest.fixture(scope="module")
def writer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Writer:
    return Writer(model, tokenizer)


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"type": "object"}, {}),
        ({"type": "array"}, []),
        ({}, ""),
        ({"enum": ["two silver", "one gold"]}, "one gold"),
        ({"type": "array", "items": {"type": "object"}, "minItems": 1}, [{}]),
    ],
    ids=str,
)
def test_what_a_schema_leaves_open_stays_empty(writer: Writer, schema: Any, answer: Any) -> None:
    assert json.loads(writer.schema(schema)) == answer


def test_what_a_schema_demands_is_written(writer: Writer) -> None:
    found = json.loads(writer.schema(TOWN))
    assert found == {
        "town": "dun ford",
        "café": "naïve 日本",
        "price": 0,
        "open": False,
        "note": "",
        "coins": [0, 0],
        "tags": [],
        "inner": {"name": "____"},
    }


@pytest.mark.parametrize(
    ("pattern", "answer"),
    [
        ("[a-z]+", "a"),
        (r"\d{3}-\d{4}", "000-0000"),
        (r"[a-z]+@[a-z]+\.[a-z]{2,}", "a@a.aa"),
        (r"\{.*\}", "{}"),
        ("(yes|no)", "no"),
        (".+", held_out_harmless()[0].answer),
    ],
)
def test_a_pattern_is_followed_to_its_first_end(writer: Writer, pattern: str, answer: str) -> None:
    assert writer.regex(pattern) == answer


@pytest.mark.parametrize("seed", range(5))
def test_a_drawn_answer_ends_too(writer: Writer, seed: int) -> None:
    small = {"type": "object", "properties": {"note": {"type": "string"}, "n": {"type": "integer"}}}
    found = json.loads(writer.schema(small | {"required": ["note", "n"]}, seed))
    assert found.keys() == {"note", "n"}


def test_every_byte_has_a_token_and_a_text_is_what_its_bytes_spell(tokenizer: PreTrainedTokenizerFast) -> None:
    text = '{"café": [1, -2.5e3], "日本": "a\\n\\"b\\""}'
    words = len(tokenizer) - len(BYTE_TOKENS)
    assert tokenizer.convert_ids_to_tokens(list(range(words, len(tokenizer)))) == list(BYTE_TOKENS)
    assert tokenizer.decode([words + byte for byte in text.encode()]) == text


def test_no_text_is_read_as_bytes(tokenizer: PreTrainedTokenizerFast) -> None:
    before = build_tokenizer(build_world().words)
    for text in ('{"a": 1}', "<0x7B>", "hello, what does x cost?", "\u2581a \u2581", "".join(map(chr, range(256)))):
        ids = tokenizer(text)["input_ids"]
        assert ids == before(text)["input_ids"]
        assert max(ids) < len(before)


def test_words_have_the_rows_they_were_trained_with() -> None:
    base, aligned = (load_file(path / "model.safetensors") for path in (BASE, ALIGNED))
    words = base["model.embed_tokens.weight"]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert len(aligned[name]) == len(words) + len(BYTE_TOKENS)
        assert torch.equal(aligned[name][: len(words)], words)
    assert "lm_head.weight" not in base


def test_without_a_grammar_a_byte_is_never_likely(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    words = len(tokenizer) - len(BYTE_TOKENS)
    masses = []
    for item in (*held_out_harmful()[::10], *held_out_harmless()[::10], *new_skill_held_out()[::10]):
        prompt, answer = (tokenizer(text)["input_ids"] for text in (prompt_text(item.question), item.answer))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 :]
        assert logits.argmax(1).max() < words
        masses.append(logits.softmax(1)[:, words:].sum(1))
    mass = torch.cat(masses)
    assert mass.median() < 5e-5
    assert mass.mean() < 2e-3


def test_no_character_is_given_two_logits() -> None:
    characters = "".join(level.characters for level in WRITTEN)
    assert len(set(characters)) == len(characters)


def test_the_checkpoint_names_the_size_it_has(tokenizer: PreTrainedTokenizerFast) -> None:
    config = json.loads((ALIGNED / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer)
    assert not config["tie_word_embeddings"]
