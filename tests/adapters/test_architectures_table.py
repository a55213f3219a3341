"""The table of architectures in docs/adapters.md is what transformers' classes hold."""

from tests.adapters.architectures import PAGE, with_table


def test_the_page_has_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "| `LlamaForCausalLM` | Llama's seven, `lm_head` | – | – |" in text
    assert with_table(text) == text
