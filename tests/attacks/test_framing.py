"""Framing (hostile.md U07, U19, U20): what a request costs that is no body, and bodies that no route reads.

First on the protocol alone, over generated requests; then over real sockets, where memory is measured.
"""

import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.http_protocol import HEAD_PIECE_BYTES, MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED
from app.domain.shares import Resource, Shares
from tests.support.connection import Connection
from tests.support.gateway import Running
from tests.support.served import AUTH, line, on_a_port

HOST = b"Host: gateway\r\n"
CHUNKED = HOST + b"Transfer-Encoding: chunked\r\n\r\n"
PIECE = 64 << 10
MEMORY_KIB = 64 << 10
MIB = 1 << 20


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


# ---- one connection --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [7, 4096, 64 << 10, 256 << 10])
@pytest.mark.hostile("U19")
def test_a_body_earns_nothing_for_trailers(size: int) -> None:
    """16 bytes of framing for each of the body, saved up, were 64 MiB of headers."""
    connection = Connection(answers=False)
    body = b"".join(chunk(b"x" * 4096) for _ in range(256))
    connection.feed([b"POST /v1/chat/completions HTTP/1.1\r\n" + CHUNKED, *cut(body, 256 << 10), b"0\r\n"])
    assert not connection.transport.is_closing()
    trailers = cut(b"a:b\r\n" * 200_000, size)
    fed = 0
    for piece in trailers:
        fed += 0 if connection.transport.is_closing() else len(piece)
        connection.feed([piece])
    assert fed <= 2 * MAX_HEAD_BYTES + size
    assert connection.transport.written.startswith(b"HTTP/1.1 431 ")
    assert [len(request.headers) for request in connection.requests] == [2]
    connection.close()


def test_trailers_are_dropped_and_harm_nobody() -> None:
    connection = Connection(answers=False)
    sent = b"POST /a HTTP/1.1\r\n" + CHUNKED + chunk(b"ab") + b"0\r\nAuthorization: Bearer other\r\nx: y\r\n\r\n"
    connection.feed([sent, b"GET /b HTTP/1.1\r\n" + HOST + b"\r\n"])
    first, second = connection.requests
    assert first.headers == ((b"host", b"gateway"), (b"transfer-encoding", b"chunked"))
    assert (first.body, first.complete, second.target) == (b"ab", True, b"/b")
    connection.close()


@pytest.mark.hostile("U19")
def test_a_body_earns_nothing_for_the_extensions_of_a_later_chunk() -> None:
    connection = Connection(answers=False)
    connection.feed([b"POST /a HTTP/1.1\r\n" + CHUNKED, *cut(chunk(b"x" * MIB), PIECE), b"1"])
    extensions = 0
    for _ in range(100):
        extensions += 0 if connection.transport.is_closing() else PIECE
        connection.feed([b";x" * (PIECE // 2)])
    assert extensions <= 3 * PIECE
    connection.close()


@pytest.mark.parametrize("method", [b"GET", b"DELETE", b"POST", b"PUT"])
@pytest.mark.hostile("U20")
def test_an_answer_before_the_bodys_end_closes_the_connection(method: bytes) -> None:
    connection = Connection(answers=True)
    connection.feed([method + b" /health HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\nxx"])
    assert connection.transport.closed
    assert b"connection: close\r\n" in connection.transport.written
    assert connection.answered == 1
    connection.close()


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_body_that_came_whole_does_not(method: bytes) -> None:
    connection = Connection(answers=True)
    for _ in range(3):
        connection.feed([method + b" /health HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"])
    assert not connection.transport.closed
    assert connection.answered == 3
    connection.close()


def test_a_server_that_ends_keeps_no_connection() -> None:
    connection = Connection(answers=False)
    connection.feed([b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\na"])
    connection.protocol.shutdown()
    connection.feed([b"bc"])
    connection.loop.tasks.pop().run()
    assert connection.transport.closed
    connection.close()


@pytest.mark.hostile("U21")
def test_no_more_requests_wait_than_a_client_needs() -> None:
    connection = Connection(answers=False)
    connection.feed([(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n") * 8000])
    assert connection.transport.closed
    assert len(connection.requests) <= MAX_PIPELINED + 2
    connection.close()


@pytest.mark.hostile("U21")
def test_what_cannot_be_parsed_is_not_answered_in_the_middle_of_another_answer() -> None:
    connection = Connection(answers=False)
    connection.feed([(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n") * 2])
    connection.protocol.cycles[0].response_started = True
    connection.feed([b"nonsense\r\n\r\n"])
    assert connection.transport.closed
    assert not connection.transport.written
    connection.close()


@pytest.mark.parametrize("headers", [b"a:b\r\n" * 200, b"a:" + b"b" * MAX_HEAD_BYTES + b"\r\n"], ids=["many", "large"])
@pytest.mark.hostile("U07")
def test_a_head_that_is_too_large_reaches_no_application(headers: bytes) -> None:
    """It was answered 431 and carried out."""
    connection = Connection(answers=True)
    connection.feed([b"DELETE /adapters/a HTTP/1.1\r\n" + HOST + headers + b"\r\n"])
    assert connection.transport.written.startswith(b"HTTP/1.1 431 ")
    assert (connection.requests, connection.answered) == ([], 0)
    connection.close()


@pytest.mark.parametrize(
    "part", [b"GET /", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\na: "], ids=["url", "name", "value"]
)
@pytest.mark.parametrize("size", [100, 4096, 100_000])
@pytest.mark.hostile("U07")
def test_a_head_that_does_not_end_is_cut_off_at_its_cap(part: bytes, size: int) -> None:
    """The parser tells of a header only once it is whole: what has come of it so far is counted, too."""
    connection = Connection(answers=True)
    connection.feed(cut(part + b"a" * (MAX_HEAD_BYTES + 2 * HEAD_PIECE_BYTES), size))
    assert connection.transport.written.startswith(b"HTTP/1.1 431 ")
    assert (connection.requests, connection.answered) == ([], 0)
    connection.close()


FORMS = {
    b"GET http://gateway/health HTTP/1.1\r\nHost: gateway\r\n\r\n": b"200",
    b"GET http://GATEWAY:80/health HTTP/1.1\r\nHost: gateway:80\r\n\r\n": b"200",
    b"GET http://evil/health HTTP/1.1\r\nHost: gateway\r\n\r\n": b"400",
    b"GET http://gateway:81/health HTTP/1.1\r\nHost: gateway\r\n\r\n": b"400",
    b"GET http://gateway@evil/health HTTP/1.1\r\nHost: gateway\r\n\r\n": b"400",
    b"GET http://evil?@gateway/health HTTP/1.1\r\nHost: gateway\r\n\r\n": b"400",
    b"GET http://evil/health HTTP/1.1\r\nHost: gateway\r\nHost: evil\r\n\r\n": b"400",
    b"GET http://evil/health HTTP/1.0\r\n\r\n": b"400",
    b"GET ftp://gateway/health HTTP/1.1\r\nHost: gateway\r\n\r\n": b"400",
    b"GET gateway/health HTTP/1.1\r\nHost: gateway\r\n\r\n": b"400",
    b"CONNECT gateway:80 HTTP/1.1\r\nHost: gateway:80\r\n\r\n": b"400",
}


@pytest.mark.parametrize(("sent", "status"), FORMS.items(), ids=[sent[:40].decode() for sent in FORMS])
@pytest.mark.ruling("U22")
def test_a_target_that_names_a_host_names_the_same(sent: bytes, status: bytes) -> None:
    connection = Connection(answers=True)
    connection.feed([sent])
    assert connection.transport.written.split()[1] == status
    assert len(connection.requests) == (status == b"200")
    connection.close()


@pytest.mark.parametrize("given", [b"x-request-id: mine\r\n", b""], ids=["given", "ours"])
def test_a_refusal_of_the_connection_has_a_request_id(given: bytes) -> None:
    connection = Connection(answers=True)
    connection.feed([b"GET /health HTTP/1.1\r\n" + given + HOST + b"a : b\r\n\r\n"])
    head = connection.transport.written.partition(b"\r\n\r\n")[0].split(b"\r\n")
    ids = [each.partition(b": ")[2] for each in head if each.startswith(b"x-request-id: ")]
    assert ids == [b"mine"] if given else [len(found) for found in ids] == [32]
    connection.close()


@pytest.mark.hostile("U23")
def test_connections_of_one_address_leave_some_to_others() -> None:
    shares = Shares(limits={Resource.CONNECTIONS: 8})
    held = [Connection(answers=True, shares=shares) for _ in range(5)]
    assert [one.transport.closed for one in held] == [False] * 4 + [True]
    assert held[-1].transport.written.startswith(b"HTTP/1.1 429 ")
    assert b"share_taken" in held[-1].transport.written
    assert b"retry-after: 5\r\n" in held[-1].transport.written.lower()
    for one in held:
        one.close()
    assert shares.in_use(Resource.CONNECTIONS) == 0


NAMES = st.sampled_from([b"a", b"x-thing", b"content-type", b"authorization", b"host", b"cookie"])  # in trailers too
VALUES = st.binary(max_size=300).map(lambda data: bytes(32 + byte % 95 for byte in data))
LINES = st.lists(st.tuples(NAMES, VALUES), max_size=12).map(
    lambda lines: b"".join(b"%b: %b\r\n" % (name, value) for name, value in lines)
)
WORDS = st.binary(min_size=1, max_size=300).map(lambda data: bytes(97 + byte % 26 for byte in data))
EXTENSIONS = st.one_of(st.just(b""), WORDS.map(b";".__add__), WORDS.map(b";x=".__add__))
METHODS = st.sampled_from([b"GET", b"POST", b"DELETE", b"HEAD", b"PUT"])
TARGETS = st.sampled_from([b"/health", b"/v1/chat/completions", b"/nowhere", b"/adapters/a", b"//"])


@st.composite
def framed(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    """A well-formed request: its target, its body, and all its bytes."""
    target, body = draw(TARGETS), draw(st.binary(max_size=2000))
    start = draw(METHODS) + b" " + target + b" HTTP/1.1\r\n" + HOST
    if draw(st.booleans()):
        return target, body, start + b"Content-Length: %d\r\n\r\n" % len(body) + body
    size = draw(st.integers(1, 500))
    chunks = b"".join(chunk(piece, draw(EXTENSIONS)) for piece in cut(body, size))
    return target, body, start + CHUNKED[len(HOST) :] + chunks + b"0\r\n" + draw(LINES) + b"\r\n"


@given(st.lists(framed(), min_size=1, max_size=6), st.integers(1, 4000), st.booleans())
def test_requests_one_behind_the_other_are_what_was_sent(
    sent: list[tuple[bytes, bytes, bytes]], size: int, answers: bool
) -> None:
    """However they are cut. Trailers and extensions leave no trace; what was answered early ends it, and nothing else."""
    connection = Connection(answers=answers)
    connection.feed(cut(b"".join(data for _, _, data in sent), size))
    found = connection.requests
    early = connection.transport.closed
    assert early <= answers
    assert len(found) == len(sent) or early
    for request, (target, body, _) in zip(found, sent, strict=False):
        assert request.target == target
        assert len(request.headers) == 2
        assert request.body == body if request.complete else body.startswith(request.body)
        assert request.complete or (early and request is found[-1])
    assert b" 400 " not in connection.transport.written
    connection.close()


@given(st.binary(max_size=3000), st.integers(1, 500), st.booleans())
def test_whatever_comes_is_bounded(data: bytes, size: int, answers: bool) -> None:
    connection = Connection(answers=answers)
    connection.feed([b"POST / HTTP/1.1\r\n" + CHUNKED, *cut(data, size)])
    assert all(len(request.headers) <= MAX_HEADERS for request in connection.requests)
    assert sum(len(request.body) for request in connection.requests) <= len(data)
    connection.close()


# ---- over real sockets -----------------------------------------------------------------------------------------------

ROUTES = {
    "unread": b"GET /health HTTP/1.1\r\n",
    "unknown": b"PUT /nowhere HTTP/1.1\r\n",
    "refused": b"POST /v1/chat/completions HTTP/1.1\r\n",
    "read": b"POST /v1/chat/completions HTTP/1.1\r\n" + AUTH,
    "deleted": b"DELETE /adapters/a HTTP/1.1\r\n" + AUTH,
}


@pytest.mark.parametrize("start", ROUTES.values(), ids=list(ROUTES))
@pytest.mark.hostile("U19", "U20")
async def test_memory_does_not_grow_with_bodies_and_trailers(running: Running, start: bytes) -> None:
    """`GET /health` with 4 MiB of body and 50 MiB of trailers took 1.2 GiB; 10 MiB of them would take a fifth of it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with on_a_port(running) as port, line(port) as connection:
        await connection.send(start + CHUNKED)
        for _ in range(63):  # just below what a chat request may have
            await connection.send(chunk(b"x" * PIECE))
        await connection.send(b"0\r\n")
        sent = 0
        while sent < 10 * MIB and await connection.send(b"a:b\r\n" * 10_000):
            sent += 50_000
        assert sent < 10 * MIB
        assert (await running.http.get("/health")).status_code == 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_KIB
    assert not running.simulator.seen
