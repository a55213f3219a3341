"""Settings of one gateway, immutable; each is `GATEWAY_<FIELD>` in the environment or the flag of the same name."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.domain.engine_address import dns_name
from app.domain.policy import Policy
from app.domain.rungs import Rung, rung_from, with_floor
from app.server.settings.access import AccessSettings
from app.server.settings.canaries import NO_FLOOR, CanarySettings
from app.server.settings.engine import EngineSettings
from app.server.settings.imports import ImportSettings
from app.server.settings.policy import PolicySettings
from app.server.settings.sign_on import SignOnSettings
from app.server.settings.signing import SigningSettings
from app.server.settings.storage import ServedModelSettings, StorageSettings
from app.server.settings.webhooks import WebhookSettings


class LogSettings(BaseSettings):
    """Settings of logs and traces."""

    otlp_endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="OpenTelemetry collector that receives traces (OTLP over HTTP, `http://host:4318`); needs the extra "
        "`otel`",
    )
    log: Literal["json", "console"] = Field("console", description="Log format: json, or console for logfmt")
    log_requests: bool = Field(
        True,
        description="Log a line for each inference request: adapter, version, status, seconds, tokens, key; no text",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged: debug, info, warning or error"
    )


class Settings(
    LogSettings,
    EngineSettings,
    PolicySettings,
    CanarySettings,
    SignOnSettings,
    AccessSettings,
    WebhookSettings,
    SigningSettings,
    ImportSettings,
    StorageSettings,
    ServedModelSettings,
):
    """All settings of one gateway. Their descriptions make up the table in docs/settings.md."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", frozen=True, extra="forbid", hide_input_in_errors=True)

    @property
    def policy(self) -> Policy:
        """Screening policy that these settings define, with the ladder's floor."""
        policy = super().policy
        return policy if self.ladder_floor is None else with_floor(policy, self._floor)

    @property
    def open_door(self) -> bool:
        """True if every caller is admitted: asked for, and neither keys nor issuers are set."""
        return self.open and not self.keys and not self.oidc_issuers

    @property
    def _floor(self) -> Rung | None:
        return None if self.ladder_floor in (None, NO_FLOOR) else rung_from(self.ladder_floor)

    @model_validator(mode="after")
    def _guarded_or_open(self) -> "Settings":
        self.check_sign_on()
        self.check_imports()
        if not self.api_keys and self.api_keys_file is None and not self.oidc_issuers and not self.open:
            raise ValueError(
                "set GATEWAY_API_KEYS (or --api-keys), GATEWAY_API_KEYS_FILE or GATEWAY_OIDC_ISSUERS, "
                "or ask for an unguarded gateway with GATEWAY_OPEN=true (--open)"
            )
        front = self.requests_url
        if front is not None and (not self.engine_url or "," in front or dns_name(front)):
            raise ValueError("requests_url is one URL, in front of the engines of engine_url")
        if self.engine_resolves and not self.engine_url:
            raise ValueError("engine_resolves is for the engines of engine_url: an embedded one has no plugin")
        if self.engine_resolves and self.canaries:
            raise ValueError(
                "canaries need engines that the gateway fills: engine_resolves is not supported with them yet"
            )
        if self.ladder_floor == NO_FLOOR and not self.canaries:
            raise ValueError("ladder_floor 0 needs canaries: without them nothing would be corrected")
        if self.webhook_targets and self.webhook_secret is None:
            raise ValueError(
                "webhook_targets needs webhook_secret: 32 characters or more, from which secrets are derived"
            )
        _ = self.policy  # raises for settings that contradict each other
        if self.max_cpu_loras < self.max_loras:
            raise ValueError("max_cpu_loras must be at least max_loras")
        return self
