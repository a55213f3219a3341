"""Wiring of single sign-on, according to the settings."""

from app.access.code_flow import CodeFlow, Registration
from app.access.identity import IdentityRules
from app.access.issuer import Issuer
from app.access.issuer_client import IssuerClient
from app.access.sign_on import SignOn
from app.access.tokens import Tokens
from app.server.settings import Settings


def sign_on_of(settings: Settings) -> SignOn | None:
    """Return single sign-on; None without issuers. Fetches nothing before it is started or asked."""
    if not settings.oidc_issuers:
        return None
    client = IssuerClient()
    issuers = [Issuer(url, tenant, client) for tenant, url in settings.issuers]
    console = {issuers[0].url: (settings.oidc_client_id,)} if settings.oidc_client_id else {}
    tokens = Tokens(issuers, settings.oidc_audiences, settings.oidc_leeway_seconds, console)
    rules = IdentityRules(settings.oidc_tenant_claim, settings.oidc_roles_claim, settings.claimed_roles)
    code_flow = None
    if settings.oidc_client_id and settings.oidc_redirect_url:
        secret = settings.oidc_client_secret
        registration = Registration(
            client_id=settings.oidc_client_id,
            secret=secret.get_secret_value() if secret else None,
            redirect_url=settings.oidc_redirect_url,
            scopes=settings.oidc_scopes,
        )
        code_flow = CodeFlow(issuers[0], tokens, client, registration)
    return SignOn(issuers, tokens, rules, code_flow, client)
