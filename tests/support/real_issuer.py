"""An OpenID Connect issuer that is not ours, on this machine: oidc-provider-mock, on Authlib and Flask."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def real_issuer() -> Iterator[str]:
    """Its address. Alice works for acme and bob for globex, both in the group ml; erin has no group that counts."""
    import oidc_provider_mock  # costs what Flask costs
    from oidc_provider_mock import User

    people = (
        User(sub="alice@acme.example", claims={"tenant": "acme", "groups": ["ml", "everybody"]}),
        User(sub="bob", claims={"tenant": "globex", "groups": ["ml"]}),
        User(sub="erin", claims={"tenant": "acme", "groups": ["everybody"]}),
    )
    with oidc_provider_mock.run_server_in_thread(require_nonce=True, user_claims=people) as server:
        yield f"http://localhost:{server.server_port}"
