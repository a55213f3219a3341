"""Requests to addresses that callers chose: to which address a connection is made, and how long one may take."""

import asyncio
import datetime as dt
import ipaddress
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.domain.outside import Address, Outside
from app.notify import post
from app.notify.post import Posted, Poster, addresses_of
from tests.support.receiver import Receiver, receiving

LOOPBACK = ipaddress.ip_address("127.0.0.1")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def names(*found: str) -> Callable[[str, int], Awaitable[tuple[Address, ...]]]:
    """A resolver that knows one name."""

    async def resolve(_: str, port: int) -> tuple[Address, ...]:
        return tuple(map(ipaddress.ip_address, found))

    return resolve


async def send(outside: Outside, url: str, *found: str, **more: Any) -> Posted:
    poster = Poster(outside, names(*found), **more)
    try:
        return await poster.post(url, {"x": "y"}, b"{}")
    finally:
        await poster.close()


@pytest.mark.hostile("U27")
async def test_a_name_that_leads_to_a_private_address_is_not_called(receiver: Receiver) -> None:
    url = f"http://hooks.example.com:{receiver.port}/"
    posted = await send(Outside.of([f"http://hooks.example.com:{receiver.port}"]), url, "127.0.0.1", "10.0.0.1")
    assert posted.status is None
    assert "private" in posted.problem
    assert not receiver.got


async def test_a_private_address_of_a_named_network_is_called_by_the_name(receiver: Receiver) -> None:
    origin = f"http://hooks.example.com:{receiver.port}"
    posted = await send(Outside.of([origin, "127.0.0.0/8"]), f"{origin}/in", "10.0.0.1", "127.0.0.1")
    assert posted == Posted(200)
    assert posted.accepted
    assert receiver.got[0].headers["host"] == f"hooks.example.com:{receiver.port}"


async def test_a_url_that_left_the_list_is_not_called(receiver: Receiver) -> None:
    posted = await send(Outside.of(["https://example.com", "127.0.0.0/8"]), f"{receiver.origin}/", "127.0.0.1")
    assert posted.status is None
    assert "operator" in posted.problem
    assert not receiver.got


async def test_proxies_of_the_environment_are_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.origin)
        monkeypatch.setenv("ALL_PROXY", proxy.origin)
        assert (await send(Outside.of([receiver.origin]), receiver.origin, "127.0.0.1")).accepted
        assert not proxy.got


@pytest.mark.hostile("U27")
async def test_no_cookie_is_kept_for_another_receiver_at_the_same_address() -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"{}"))
        writer.write(b"HTTP/1.1 204 No Content\r\nset-cookie: seen=1\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        origins = [f"http://{name}.example.com:{port}" for name in ("a", "b")]
        poster = Poster(Outside.of([*origins, "127.0.0.0/8"]), names("127.0.0.1"))
        for origin in origins:
            assert (await poster.post(f"{origin}/", {}, b"{}")).accepted
        await poster.close()
    assert len(heads) == 2
    assert b"seen" not in heads[1]


@pytest.mark.hostile("U27")
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_no_redirect_is_followed(receiver: Receiver, status: int) -> None:
    with receiving() as other:
        receiver.statuses, receiver.location = [status], other.origin
        posted = await send(Outside.of([receiver.origin, other.origin]), receiver.origin, "127.0.0.1")
        assert posted == Posted(status)
        assert not posted.accepted
        assert not other.got


async def test_a_receiver_that_does_not_answer_is_left(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "ANSWER_S", 0.2)
    receiver.hold.clear()
    posted = await send(Outside.of([receiver.origin]), receiver.origin, "127.0.0.1")
    assert posted.status is None
    assert "no answer" in posted.problem


async def test_an_endless_answer_is_not_read() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n")
        try:
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
        except ConnectionError:
            ended.set()
        finally:
            writer.close()

    ended = asyncio.Event()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert (await send(Outside.of([origin]), origin, "127.0.0.1")).accepted
        await asyncio.wait_for(ended.wait(), 60)


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000]
)
async def test_an_answer_that_is_not_http_is_a_problem_and_no_error(said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(said)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        posted = await send(Outside.of([origin]), origin, "127.0.0.1")
        assert posted.status is None
        assert posted.problem


async def test_a_name_without_an_address_and_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: str, port: int) -> tuple[Address, ...]:
        raise OSError(-2, "Name or service not known")

    async def hang(_: str, port: int) -> tuple[Address, ...]:
        await asyncio.Event().wait()
        return ()

    monkeypatch.setattr(post, "WHOLE_S", 0.2)
    for resolve, why in ((fail, "not resolved"), (hang, "no answer within")):
        poster = Poster(Outside.of(["https://example.com"]), resolve)
        posted = await poster.post("https://example.com/", {}, b"")
        assert posted.status is None
        assert why in posted.problem
        await poster.close()


def test_names_are_resolved_to_addresses() -> None:
    assert LOOPBACK in addresses_of("localhost", 80)
    assert addresses_of("127.0.0.1", 80) == (LOOPBACK,)


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    """A server's context whose certificate is for this name; it is its own authority: folder/cert.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


@pytest.mark.parametrize(("of", "accepted"), [("hooks.example.com", True), ("other.example.com", False)])
async def test_the_certificate_must_be_the_names(tmp_path: Path, of: str, accepted: bool) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    context = certificate(tmp_path, of)
    verify = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        origin = f"https://hooks.example.com:{server.sockets[0].getsockname()[1]}"
        outside = Outside.of([origin, "127.0.0.1/32"])
        posted = await send(outside, f"{origin}/", "127.0.0.1", verify=verify)
        assert posted.accepted is accepted
        assert accepted or "certificate" in posted.problem
