"""An OpenID Connect issuer in this process whose keys, answers and faults a test chooses: a simulator.

real_issuer.py is one that is not ours. This one signs anything with any key, checks
PKCE (RFC 7636), and can be away, slow, endless or false.
"""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE: Final = "gateway"
CLIENT: Final = "console"

Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def new_key(algorithm: str) -> Private:
    """A key for an algorithm."""
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate() if algorithm == "EdDSA" else rsa.generate_private_key(65537, 2048)


RSA_KEY, OTHER_RSA_KEY = new_key("RS256"), new_key("RS256")
"""Made once: they take long."""


def public(key: Private, kid: str | None, **more: Any) -> dict[str, Any]:
    """The key's entry in a key set."""
    kinds = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    kind: Any = next((made for base, made in kinds.items() if isinstance(key, base)), OKPAlgorithm)
    fields: dict[str, Any] = json.loads(kind.to_jwk(key.public_key()))
    fields.pop("key_ops", None)
    return {**fields, **({} if kid is None else {"kid": kid}), "use": "sig", **more}


@dataclass
class Faults:
    """Faults. away: connections are closed without an answer. held: answers wait for it. slow_s: seconds before each byte.
    size: bytes added to each answer. redirect: address that each request is sent to. status: of each answer. metadata:
    members in place of the right ones. body: instead of the key set. compressed: the key set says that it is.
    """

    away: bool = False
    held: threading.Event | None = None
    slow_s: float = 0.0
    size: int = 0
    redirect: str | None = None
    status: int = 200
    metadata: dict[str, Any] = field(default_factory=dict)
    body: bytes | None = None
    compressed: bool = False


class SimulatedIssuer:
    """The issuer. keys: key id → private key of the key set. claims: of everybody who signs in. codes: code → its request.
    asked: paths of all requests so far."""

    def __init__(self) -> None:
        self.keys: dict[str | None, Private] = {"rsa": RSA_KEY, "ec": new_key("ES256"), "ed": new_key("EdDSA")}
        self.faults = Faults()
        self.claims: dict[str, Any] = {"sub": "alice", "roles": ["upload", "chat"]}
        self.codes: dict[str, dict[str, str]] = {}
        self.asked: list[str] = []
        self.forms: list[dict[str, str]] = []
        self.authorization: str | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"issuer": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def token(
        self, kid: str | None = "rsa", key: Any = None, algorithm: str | None = None, headers: Any = None, **claims: Any
    ) -> str:
        """A token: right, but for what is given. A claim that is None is left out."""
        now = int(time.time())
        right = {"iss": self.url, "aud": AUDIENCE, "iat": now, "exp": now + 300, **self.claims}
        signing = self.keys[kid] if key is None else key
        names = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256"}
        name = algorithm or next((made for base, made in names.items() if isinstance(signing, base)), "EdDSA")
        said = {name: value for name, value in {**right, **claims}.items() if value is not None}
        return jwt.encode(said, signing, name, {**({} if kid is None else {"kid": kid}), **(headers or {})})

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a GET."""
        if path == "/.well-known/openid-configuration":
            right = {
                "issuer": self.url,
                "jwks_uri": f"{self.url}/jwks",
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
            }
            return 200, {}, json.dumps({**right, **self.faults.metadata}).encode()
        if path == "/jwks":
            keys = [public(key, kid) for kid, key in self.keys.items()]
            headers = {"Content-Encoding": "gzip"} if self.faults.compressed else {}
            return 200, headers, self.faults.body or json.dumps({"keys": keys}).encode()
        if path == "/authorize":
            code = f"code-{len(self.codes)}"
            self.codes[code] = query
            back = urlencode({"code": code, "state": query["state"], "iss": self.url})
            return 303, {"Location": f"{query['redirect_uri']}?{back}"}, b""
        return 404, {}, b"{}"

    def exchange(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Status and answer for a code: once, to the same client and address, with PKCE's verifier."""
        self.forms.append(form)
        begun = self.codes.pop(form.get("code", ""), None)
        verifier = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(verifier).rstrip(b"=").decode()
        if begun is None or begun["redirect_uri"] != form["redirect_uri"] or begun["code_challenge"] != challenge:
            return 400, {"error": "invalid_grant"}
        return 200, {"id_token": self.token(aud=CLIENT, nonce=begun["nonce"]), "token_type": "Bearer"}


class Handler(BaseHTTPRequestHandler):
    """Requests to one issuer."""

    issuer: SimulatedIssuer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.issuer.asked.append(parts.path)
        self._send(*self.issuer.answer(parts.path, dict(parse_qsl(parts.query))))

    def do_POST(self) -> None:
        form = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.issuer.asked.append(self.path)
        self.issuer.authorization = self.headers["Authorization"]
        status, answer = self.issuer.exchange(dict(parse_qsl(form)))
        self._send(status, {}, json.dumps(answer).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        faults = self.issuer.faults
        if faults.held is not None:
            faults.held.wait()
        if faults.away:
            self.close_connection = True
            return
        if faults.redirect is not None:
            status, headers = 302, {"Location": faults.redirect}
        self.send_response(status if faults.status == 200 else faults.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + faults.size))
        self.end_headers()
        self._write(body + b" " * faults.size)

    def _write(self, body: bytes) -> None:
        try:
            size = 1 if self.issuer.faults.slow_s else max(1, len(body))
            for at in range(0, len(body), size):
                time.sleep(self.issuer.faults.slow_s)
                self.wfile.write(body[at : at + size])
        except OSError:
            pass  # the gateway had enough

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def issuer() -> Iterator[SimulatedIssuer]:
    """An issuer with one key of each algorithm."""
    made = SimulatedIssuer()
    yield made
    made.close()
