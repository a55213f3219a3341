"""Single sign-on of one gateway: its issuers, what their tokens stand for, and the console's sign-in."""

import asyncio
from collections.abc import Sequence

from app.access.code_flow import CodeFlow
from app.access.identity import IdentityRules
from app.access.issuer import Issuer
from app.access.issuer_client import IssuerClient
from app.access.tokens import Tokens
from app.domain.api_keys import Key


class SignOn:
    """Single sign-on. Used on the event loop. code_flow: the console's sign-in; None without one."""

    def __init__(
        self,
        issuers: Sequence[Issuer],
        tokens: Tokens,
        rules: IdentityRules,
        code_flow: CodeFlow | None,
        client: IssuerClient,
    ) -> None:
        self._issuers, self._tokens, self._rules, self._client = issuers, tokens, rules, client
        self.code_flow = code_flow

    async def admit(self, token: str) -> Key:
        """Return the key of a token's bearer. Raises Refused UNAUTHORIZED or FORBIDDEN, Unavailable ISSUER_AWAY."""
        issuer, claims = await self._tokens.verified(token)
        return self._rules.key(issuer.url, issuer.tenant, claims)

    def start(self) -> None:
        """Start fetching the issuers' keys. Needs a running loop."""
        for issuer in self._issuers:
            issuer.start()

    async def stop(self) -> None:
        """Stop fetching, and close every connection."""
        await asyncio.gather(*(issuer.stop() for issuer in self._issuers))
        await self._client.close()
