import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import BAD_CONFIG, BAD_SAFETENSORS, Refused
from app.validate.strict_json import MAX_INT_DIGITS, parse

CAP = 1 << 20


def read(data: bytes, cap: int = CAP) -> object:
    return parse(data, max_bytes=cap, code=BAD_CONFIG, what="it")


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=20,
)


@given(plain, st.booleans())
def test_plain_json_is_read_as_json_is(value: object, escaped: bool) -> None:
    assert read(json.dumps(value, ensure_ascii=escaped).encode()) == value


WRONG = {
    "empty": b"",
    "spaces": b"   ",
    "bom": b"\xef\xbb\xbf{}",
    "utf16": "{}".encode("utf-16"),
    "latin1": b'{"a": "\xe9"}',
    "overlong_utf8": b'{"a": "\xc0\xaf"}',
    "raw_surrogate": b'{"a": "\xed\xa0\x80"}',
    "lone_surrogate": b'{"a": "\\ud800"}',
    "lone_surrogate_key": b'{"\\udfff": 1}',
    "lone_surrogate_deep": b'{"a": [[{"b": "\\ud800x"}]]}',
    "key_twice": b'{"r": 1, "r": 2}',
    "key_twice_escaped": b'{"r": 1, "\\u0072": 2}',
    "key_twice_inside": b'{"a": [{"b": 1, "c": 2, "b": 3}]}',
    "nan": b'{"a": NaN}',
    "infinity": b'{"a": Infinity}',
    "minus_infinity": b"[-Infinity]",
    "too_big_a_float": b"1e999",
    "too_long_a_float": b"0." + b"1" * 1000,
    "an_exponent_bomb": b"1e" + b"9" * 1000,
    "an_int_of_19_digits": b"1" * 19,
    "an_int_of_5000_digits": b"1" * 5000,
    "a_negative_one": b"-" + b"1" * 5000,
    "minus_zero": b"-0",
    "leading_zero": b"01",
    "hex": b"0x10",
    "single_quotes": b"{'a': 1}",
    "trailing_comma": b"[1,]",
    "comment": b"{} // x",
    "trailing_nul": b"{}\0",
    "two_values": b"{}{}",
    "control_character": b'"\x01"',
    "deep_list": b"[" * 100_000 + b"]" * 100_000,
    "deep_object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "unclosed_depth": b"[" * 500_000,
    "python_words": b"[None, True]",
}


@pytest.mark.parametrize("data", WRONG.values(), ids=list(WRONG))
@pytest.mark.hostile("S13", "C03")
def test_everything_else_is_refused_with_the_callers_code(data: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read(data)
    assert caught.value.code is BAD_CONFIG
    assert caught.value.message.startswith("it: ")


def test_a_surrogate_pair_is_one_character() -> None:
    assert read(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


def test_numbers_at_the_edge() -> None:
    assert read(b"9" * MAX_INT_DIGITS) == 10**MAX_INT_DIGITS - 1
    assert read(b"1.7976931348623157e308") == math.nextafter(math.inf, 0)


def test_the_cap_comes_before_the_parse() -> None:
    with pytest.raises(Refused) as caught:
        parse(b"[" * 11, max_bytes=10, code=BAD_SAFETENSORS, what="header")
    assert caught.value.message == "header: 11 bytes, the cap is 10"
    assert read(b"[1,2,3,45]", 10) == [1, 2, 3, 45]


@given(st.binary(max_size=200))
def test_noise_is_a_value_or_a_refusal(data: bytes) -> None:
    try:
        value = read(data)
    except Refused as error:
        assert error.code is BAD_CONFIG
    else:
        assert read(json.dumps(value).encode()) == value
