"""Settings of webhooks."""

from typing import Annotated, Final

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

from app.domain.outside import Outside
from app.server.settings.parts import comma_separated

MIN_SECRET: Final = 32
"""Fewest characters of the master secret: 128 bits in hex."""


class WebhookSettings(BaseSettings):
    """Settings of webhooks."""

    webhook_targets: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins that tenants' webhooks may have, comma-separated, such as https://*.example.com; and networks "
        "that their names may lead to though they are not public, such as 10.1.0.0/16; default: no webhooks",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="Secret of 32 characters or more from which each webhook's own is derived, the same for all gateways "
        "of a catalogue; needed with webhook_targets",
    )

    _split_targets = field_validator("webhook_targets", mode="before")(comma_separated)

    @field_validator("webhook_targets")
    @classmethod
    def _are_targets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        _ = Outside.of(value)
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _is_long(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < MIN_SECRET:
            raise ValueError(f"has fewer than {MIN_SECRET} characters; make one with: openssl rand -hex 32")
        return value

    @property
    def webhook_master(self) -> bytes:
        """Secret from which every webhook's is derived; b"" if webhooks are off."""
        secret = self.webhook_secret
        return secret.get_secret_value().encode() if secret is not None and self.webhook_targets else b""
