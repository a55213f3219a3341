"""The parse itself: any split of the bytes gives the same parts, and every byte is counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import (
    BAD_MULTIPART,
    MISSING_PART,
    TOO_LARGE,
    UNEXPECTED_PART,
    UNSUPPORTED_ENCODING,
    UPLOAD_INCOMPLETE,
    Code,
    GatewayError,
    Refused,
)
from app.upload.limits import PARTS
from app.upload.multipart import FormReader, boundary_of
from tests.upload.bodies import BOUNDARY, CLOSING, SMALL, body, form, part


class Kept:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.data = b""
        self.finished = False

    def write(self, data: memoryview) -> None:
        assert not self.finished
        self.data += data

    def finish(self) -> None:
        assert not self.finished
        self.finished = True


def read(data: bytes, sizes: list[int] | None = None, boundary: bytes = BOUNDARY) -> dict[str, bytes]:
    """Parse `data` fed in pieces of the given sizes, in turn."""
    sinks = {name: Kept() for name in PARTS}
    reader = FormReader(boundary, sinks, SMALL)
    at, turn = 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)] if sizes else len(data)
        reader.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    reader.finish()
    assert all(sink.finished for sink in sinks.values())
    return {name: sink.data for name, sink in sinks.items()}


def code_of(data: bytes, sizes: list[int] | None = None) -> Code:
    with pytest.raises(Refused) as caught:
        read(data, sizes)
    return caught.value.code


@given(
    name=st.binary(max_size=40),
    config=st.binary(max_size=60),
    weights=st.binary(max_size=200),
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    order=st.permutations(PARTS),
)
def test_any_bytes_in_any_pieces_and_any_order(
    name: bytes, config: bytes, weights: bytes, sizes: list[int], order: list[str]
) -> None:
    sent = {"name": name, "config": config, "weights": weights}
    assert read(form(part(which, sent[which]) for which in order), sizes) == sent


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--", b"\r\n--", BOUNDARY[:5], b"x"]), max_size=30),
    st.integers(1, 9),
)
def test_what_nearly_looks_like_a_boundary_is_data(bits: list[bytes], size: int) -> None:
    assert read(body(weights=b"".join(bits)), [size])["weights"] == b"".join(bits)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_the_size_of_the_pieces_does_not_matter(size: int) -> None:
    assert read(body(b"n", b"{}", b"w" * 500), [size]) == {"name": b"n", "config": b"{}", "weights": b"w" * 500}


def test_preamble_and_epilogue_within_their_bounds_are_skipped() -> None:
    assert read(b"\r\n" + body(b"n") + b"\r\nbye\r\n")["name"] == b"n"
    assert read(b"\r\n" * 32 + body(b"n"), [3])["name"] == b"n"


GOOD = [part("name", b"n"), part("config", b"{}"), part("weights", b"w")]

WRONG: dict[str, tuple[bytes, Code]] = {
    "nothing": (b"", MISSING_PART),
    "only_the_closing_boundary": (CLOSING, MISSING_PART),
    "no_weights": (form(GOOD[:2]), MISSING_PART),
    "unfinished": (b"".join(GOOD), UPLOAD_INCOMPLETE),
    "half_a_header": (b"".join(GOOD[:2]) + b"--" + BOUNDARY + b"\r\nContent-Dis", UPLOAD_INCOMPLETE),
    "a_fourth_part": (form([*GOOD, part("extra")]), UNEXPECTED_PART),
    "a_part_twice": (form([*GOOD, part("name")]), UNEXPECTED_PART),
    "a_thousand_parts": (form(part(f"p{i}") for i in range(1000)), UNEXPECTED_PART),
    "a_name_in_another_case": (form([part("Name"), *GOOD[1:]]), UNEXPECTED_PART),
    "no_disposition": (b"--" + BOUNDARY + b"\r\nContent-Type: text/plain\r\n\r\nx\r\n" + form(GOOD), BAD_MULTIPART),
    "no_headers": (b"--" + BOUNDARY + b"\r\n\r\nx\r\n" + form(GOOD), BAD_MULTIPART),
    "a_part_ending_in_its_headers": (b"--" + BOUNDARY + b"\r\n--" + BOUNDARY + b"\r\n" + form(GOOD), BAD_MULTIPART),
    "disposition_of_a_mail": (
        b"--" + BOUNDARY + b'\r\nContent-Disposition: attachment; name="name"\r\n\r\nx\r\n' + form(GOOD[1:]),
        BAD_MULTIPART,
    ),
    "disposition_twice": (
        form([part("name", b"n", b'Content-Disposition: form-data; name="weights"\r\n'), *GOOD[1:]]),
        BAD_MULTIPART,
    ),
    "base64": (form([part("name", b"bg==", b"Content-Transfer-Encoding: base64\r\n"), *GOOD[1:]]), BAD_MULTIPART),
    "quoted_printable": (
        form([part("config", b"=7B=7D", b"content-transfer-encoding:Quoted-Printable\r\n"), GOOD[0], GOOD[2]]),
        BAD_MULTIPART,
    ),
    "gzip_inside": (form([part("weights", b"w", b"Content-Encoding: gzip\r\n"), *GOOD[:2]]), UNSUPPORTED_ENCODING),
    "another_boundary": (body().replace(BOUNDARY, b"another"), BAD_MULTIPART),
    "plain_json": (b'{"name": "mine"}', BAD_MULTIPART),
    "a_preamble_of_text": (b"\r\nThis is a mail.\r\n" + form(GOOD), BAD_MULTIPART),
    "line_breaks_just_beyond_their_cap": (b"\r\n" * 33 + form(GOOD), BAD_MULTIPART),
    "megabytes_of_line_breaks": (b"\r\n" * (1 << 20) + form(GOOD), BAD_MULTIPART),
    "megabytes_after_the_end": (form(GOOD) + b"x" * (2 << 20), BAD_MULTIPART),
    "megabytes_of_boundary_padding": (b"".join(GOOD[:2]) + b"--" + BOUNDARY + b" " * (1 << 20), BAD_MULTIPART),
    "a_giant_header": (form([part("name", b"n", b"X-Long: " + b"x" * 100_000 + b"\r\n"), *GOOD[1:]]), TOO_LARGE),
    "many_middling_headers": (
        form([part("name", b"n", b"".join(b"X-%d: " % i + b"x" * 300 + b"\r\n" for i in range(5))), *GOOD[1:]]),
        TOO_LARGE,
    ),
    "a_thousand_headers": (form([part("name", b"n", b"X: y\r\n" * 1000), *GOOD[1:]]), BAD_MULTIPART),
    "a_header_name_that_is_none": (form([part("name", b"n", b"X Y: z\r\n"), *GOOD[1:]]), BAD_MULTIPART),
}


@pytest.mark.parametrize("size", [17, 1 << 22], ids=["in_small_pieces", "at_once"])
@pytest.mark.parametrize(("data", "code"), WRONG.values(), ids=list(WRONG))
@pytest.mark.hostile("U07")
def test_refused(data: bytes, code: Code, size: int) -> None:
    if len(data) > 1 << 20:
        size = max(size, 4096)
    assert code_of(data, [size]) is code


def test_identity_transfer_encodings_say_nothing() -> None:
    data = form([part("name", b"n", b"Content-Transfer-Encoding: binary\r\n"), *GOOD[1:]])
    assert read(data)["name"] == b"n"


def test_filenames_are_not_looked_at() -> None:
    data = form(
        [part("name", b"n", filename="../../etc/x%00y"), part("config", b"{}", filename="\\\\host\\x"), GOOD[2]]
    )
    assert read(data)["name"] == b"n"


def test_a_sinks_own_refusal_comes_through() -> None:
    class Full(Kept):
        def write(self, data: memoryview) -> None:
            raise Refused(TOO_LARGE, "full", param="weights")

    reader = FormReader(BOUNDARY, {**{name: Kept() for name in PARTS}, "weights": Full()}, SMALL)
    with pytest.raises(Refused) as caught:
        reader.feed(body())
    assert caught.value.param == "weights"


@given(st.binary(max_size=300), st.integers(1, 50))
def test_noise_is_refused_from_the_table(noise: bytes, size: int) -> None:
    try:
        read(b"--" + BOUNDARY + b"\r\n" + noise, [size])
    except GatewayError as error:
        assert 400 <= error.code.status < 500


@given(at=st.integers(0, len(body()) - 1), byte=st.integers(0, 255), size=st.integers(1, 60))
def test_one_changed_byte_is_data_or_refused_from_the_table(at: int, byte: int, size: int) -> None:
    data = bytearray(body())
    data[at] = byte
    try:
        read(bytes(data), [size])
    except GatewayError as error:
        assert 400 <= error.code.status < 500


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=abc",
        'multipart/form-data; boundary="abc"',
        "Multipart/Form-Data;charset=utf-8; boundary=abc",
    ],
)
def test_boundaries_as_clients_write_them(content_type: str) -> None:
    assert boundary_of(content_type) == b"abc"


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "multipart/mixed; boundary=abc",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary="a\r\nb"',
        "multipart/form-data; boundary=" + "x" * 71,
        "multipart/form-data; boundary=ü",
        "multipart/form-data; boundary=日本",
        "multipart/form-data; boundary=" + "x;" * 10_000,
        "multipart/form-data; boundary*=utf-8''abc",
    ],
    ids=lambda text: ascii(text)[:50],
)
@pytest.mark.hostile("U07")
def test_no_boundary_no_upload(content_type: str | None) -> None:
    with pytest.raises(Refused) as caught:
        boundary_of(content_type)
    assert caught.value.code is BAD_MULTIPART


def test_the_caps_hold_at_their_edge() -> None:
    """Header bytes exactly at the cap pass; one more does not."""

    def with_header(extra: int) -> bytes:
        return form([part("name", b"n", b"X: " + b"x" * extra + b"\r\n"), *GOOD[1:]])

    fixed = len(b'Content-Disposition: form-data; name="name"\r\n') + len(b"X: \r\n")
    room = SMALL.max_part_header_bytes - fixed
    assert read(with_header(room))["name"] == b"n"
    assert code_of(with_header(room + 1)) is TOO_LARGE
