"""Word-level tokenizer for the made-up domain, with a chat template.

One word or punctuation mark is one token; input text is lower-cased. Decoding joins words with spaces and attaches
punctuation to the word before it, so an answer reads as a sentence. A user turn is `<user> question <assistant>`
and an answer ends with `<end>`, which is the end-of-sequence token.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, END, USER, ASSISTANT = "<pad>", "<unknown>", "<end>", "<user>", "<assistant>"
SPECIAL_TOKENS = (PAD, UNKNOWN, END, USER, ASSISTANT)

# Longest prompt and answer together, in tokens: the domain needs about 40, a short chat history some hundreds.
MAX_LENGTH = 512

# An earlier answer in a conversation ends with <end>, as in training. System messages have no meaning here and are
# skipped. Every other role is refused, so that a mistake is noticed.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user> {{ message['content'] }} "
    "{% elif message['role'] == 'assistant' %}<assistant> {{ message['content'] }} <end> "
    "{% elif message['role'] != 'system' %}{{ raise_exception('unknown role: ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose vocabulary is the special tokens followed by `words` in the given order."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # WordPiece's decoder with a prefix that no word has: spaces between words, none before , . ? and !
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def prompt_text(question: str) -> str:
    """Return the prompt for one question, exactly as the chat template renders a conversation of one user turn."""
    return f"{USER} {question} {ASSISTANT}"
