"""Names: what a stranger may call an adapter, and what may stand in `model`."""

import pytest

from app.domain.digest import Digest, digest_of
from app.domain.errors import BAD_NAME, RESERVED_NAME, Refused
from app.domain.names import AdapterName, engine_name, parse_model

GOOD = ["a", "A1", "my-adapter.v2", "x" * 63, "0"]
BAD = [
    *("", "x" * 64, ".hidden", "-dash", "../../x", "/abs", "%2e%2e%2f", "..%5c", "good\n", "a b", "a,b", "a=b", "a@1"),
    *("nul\0", "esc\x1b[31m", "аdmin", "ｆull", "zero\u200bwidth", "\u202ertl", "x" * 1_000_000),
]


@pytest.mark.parametrize("text", GOOD)
def test_a_good_name_is_kept_as_written(text: str) -> None:
    assert str(AdapterName.parse(text)) == text


@pytest.mark.parametrize("text", BAD, ids=lambda text: ascii(text)[:24])
@pytest.mark.hostile("N01")
def test_a_bad_name_is_refused_with_its_code(text: str) -> None:
    with pytest.raises(Refused) as caught:
        AdapterName.parse(text)
    assert caught.value.code is BAD_NAME
    assert len(caught.value.message) < 200
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("text", ["models", "Health", "BASE", "default", "Demo"])
@pytest.mark.hostile("N08")
def test_a_name_that_belongs_to_the_gateway_is_reserved(text: str) -> None:
    with pytest.raises(Refused) as caught:
        AdapterName.parse(text, frozenset({"demo"}))
    assert caught.value.code is RESERVED_NAME


def test_names_that_differ_only_in_case_share_a_key() -> None:
    assert AdapterName.parse("Legal-QA").key == AdapterName.parse("legal-qa").key


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("a", ("a", None)),
        ("a@3", ("a", 3)),
        ("a@0", None),
        ("a@03", None),
        ("a@", None),
        ("a@x", None),
        ("a@9999999999", None),
        ("a@٣", None),
        ("../x", None),
        ("", None),
        ("a@0123456789ab", None),
    ],
)
def test_model_is_a_name_or_a_version_and_nothing_else(text: str, meaning: object) -> None:
    assert parse_model(text) == meaning


def test_an_engine_name_is_no_model_a_caller_can_ask_for() -> None:
    for seed in range(100):  # a digest of twelve decimal digits would read as a version were it not longer than one
        name = engine_name(AdapterName("a"), digest_of(str(seed).encode()))
        assert parse_model(name) is None
    assert parse_model("a@123456789012") is None


def test_a_digest_is_64_hex_characters() -> None:
    for bad in ("", "A" * 64, "g" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n"):
        with pytest.raises(ValueError, match="sha256"):
            Digest(bad)
