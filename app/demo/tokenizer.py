"""Word-level tokenizer for the made-up domain, with a chat template.

One word or punctuation mark is one token; input text is lower-cased. A word's token begins with the space before it, so
an answer reads as a sentence, and a token's text is the same wherever it is decoded. A user turn is
`<user> question <assistant>` and an answer ends with `<end>`, which is the end-of-sequence token.

The shipped tokenizer also has a token for every byte (`byte_tokens.py`). They are written only, where a grammar asks for
JSON or any other text that is not made of the domain's words; no input is read as them.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, END, USER, ASSISTANT = "<pad>", "<unknown>", "<end>", "<user>", "<assistant>"
SPECIAL_TOKENS = (PAD, UNKNOWN, END, USER, ASSISTANT)

# Names of the byte tokens, by which decoders and engines know them, byte 0 first.
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))

# Stands for the space at the start of a word's token, as in SentencePiece: engines read it so.
SPACE = "\u2581"

# Longest prompt and answer together, in tokens: the domain needs about 40, a short chat history some hundreds.
MAX_LENGTH = 512

# An earlier answer in a conversation ends with <end>, as in training. System messages, calls of tools and tools' results
# have no meaning here and are skipped: after them the model answers the last question. Every other role is refused, so
# that a mistake is noticed.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user> {{ message['content'] }} "
    "{% elif message['role'] == 'assistant' %}"
    "{% if message['content'] or not message['tool_calls'] %}<assistant> {{ message['content'] }} <end> {% endif %}"
    "{% elif message['role'] not in ('system', 'tool') %}{{ raise_exception('unknown role: ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_tokenizer(words: Sequence[str], *, byte_tokens: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose vocabulary is the special tokens followed by `words` in the given order.

    byte_tokens: whether BYTE_TOKENS come after them. They leave every other token's id, and every text's tokens, as they
    are.
    """
    tokens = (*SPECIAL_TOKENS, *map(_token_of, words), *(BYTE_TOKENS if byte_tokens else ()))
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    # A mark before each word; one that a text brings along is an unknown character.
    mark_words = normalizers.Replace(Regex(r"\b(?=\w)"), SPACE)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(SPACE, "\ufffd"), mark_words]
    )
    words_and_marks = Regex(rf"{SPACE}\w+|[^\w\s{SPACE}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(words_and_marks, behavior="removed", invert=True)
    spaces = (decoders.Replace(SPACE, " "), decoders.Replace(Regex("^<(?=[a-z])"), " <"))  # the latter: special tokens
    first_space = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([*spaces, decoders.ByteFallback(), decoders.Fuse(), first_space])
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


def _token_of(word: str) -> str:
    """Return the token of a word, or of a punctuation mark, which stands close to the word before it."""
    return f"{SPACE}{word}" if word.isalnum() else word


def prompt_text(question: str) -> str:
    """Return the prompt for one question, exactly as the chat template renders a conversation of one user turn."""
    return f"{USER} {question} {ASSISTANT}"
