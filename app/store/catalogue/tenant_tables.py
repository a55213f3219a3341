"""Tables of tenants: keys, usage, the audit log, limits, webhooks. Rows of each belong to one module of the same name."""

from dataclasses import fields
from typing import Final

from sqlalchemy import Column, Double, ForeignKey, Index, Integer, String, Table, Text

from app.domain.outside import MAX_URL
from app.domain.tenant_limits import TenantLimits
from app.domain.tenants import TENANT_LIMIT
from app.store.catalogue import tables
from app.store.catalogue.column_types import COUNT, FULL, FULL_NAME, HEX, TOTAL, Utc

PROBLEM_LIMIT: Final = 200
"""Characters of the reason why a message could not be delivered."""

metadata: Final = tables.metadata
"""Metadata of every table of the catalogue: that of the other tables, to which these are added."""

api_keys: Final = Table(
    "api_keys",  # made at run time; keys.py
    metadata,
    Column("tenant", String(TENANT_LIMIT), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("roles", String(128), nullable=False),  # comma-separated
    Column("key_owner", String(63)),
    Column("digest", String(HEX), nullable=False),  # SHA-256 of the key
    Column("previous_digest", String(HEX)),  # of the key before the last rotation
    Column("previous_until", Utc),  # time until which that one is accepted
    Column("created_at", Utc, nullable=False),
    Column("expires_at", Utc),
    Column("last_used_at", Utc),
    Column("revoked_at", Utc),  # the row stays for a while, so that every gateway sees it
    Column("revision", COUNT, nullable=False),  # grows with every change of any key
    Index("api_keys_revision", "revision"),
)

usage: Final = Table(
    "usage",  # what requests used, by the hour; usage.py
    metadata,
    Column("hour", Utc, primary_key=True),  # its beginning
    Column("tenant", String(TENANT_LIMIT), primary_key=True),  # of the key
    Column("key", String(63), primary_key=True),
    Column("adapter", String(FULL), primary_key=True),  # full name; "": the served model itself
    Column("version", Integer, primary_key=True),  # 0: the served model itself
    Column("requests", TOTAL, nullable=False),
    Column("prompt_tokens", TOTAL, nullable=False),
    Column("cached_tokens", TOTAL, nullable=False),
    Column("completion_tokens", TOTAL, nullable=False),
)

audit_log: Final = Table(
    "audit_log",  # rows are added and never changed; audit_log.py
    metadata,
    Column("number", TOTAL, primary_key=True, autoincrement=False),
    Column("at", Utc, nullable=False),
    Column("key", String(FULL), nullable=False),
    Column("tenant", String(TENANT_LIMIT), nullable=False),
    Column("action", String(128), nullable=False),
    Column("target", FULL_NAME, nullable=False),
    Column("status", Integer, nullable=False),
    Column("code", String(64), nullable=False),
    Column("address", String(64), nullable=False),
    Column("request", String(128), nullable=False),
    Column("previous", String(HEX), nullable=False),
    Column("hash", String(HEX), nullable=False),
    Index("audit_log_tenant", "tenant", "number"),
)

usage_batches: Final = Table(
    "usage_batches",  # the last batch of each gateway process that `usage` contains
    metadata,
    Column("gateway", String(32), primary_key=True),
    Column("number", COUNT, nullable=False),
    Column("at", Utc, nullable=False),
)

tenant_limits: Final = Table(
    "tenant_limits",  # limits.py
    metadata,
    Column("tenant", String(TENANT_LIMIT), primary_key=True),
    *(Column(field.name, TOTAL) for field in fields(TenantLimits)),
    Column("revision", COUNT, nullable=False),  # grows with every change of any tenant's limits
)

tenant_budgets: Final = Table(
    "tenant_budgets",  # what is left of a limit that refills; a bucket without a row is full
    metadata,
    Column("tenant", String(TENANT_LIMIT), primary_key=True),
    Column("flow", String(16), primary_key=True),
    Column("remaining", Double, nullable=False),
    Column("at", Utc, nullable=False),  # by the database's clock
)

tenant_slots: Final = Table(
    "tenant_slots",  # requests that a gateway may answer at one time for a tenant
    metadata,
    Column("tenant", String(TENANT_LIMIT), primary_key=True),
    Column("gateway", String(32), primary_key=True),  # id of the gateway process
    Column("slots", TOTAL, nullable=False),
    Column("until", Utc, nullable=False),  # by the database's clock; then they are free, unless renewed
)

tenant_rules: Final = Table(
    "tenant_rules",  # tenant_rules.py
    metadata,
    Column("tenant", String(TENANT_LIMIT), primary_key=True),
    Column("override", Text, nullable=False),  # of the policy: JSON
    Column("battery", Text),  # canaries: JSON lines
    Column("revision", COUNT, nullable=False),  # the catalogue's, of the last change
    Index("tenant_rules_revision", "revision"),
)

webhooks: Final = Table(
    "webhooks",  # webhooks.py
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(TENANT_LIMIT), nullable=False),
    Column("url", String(MAX_URL), nullable=False),
    Column("topics", String(256), nullable=False),  # comma-separated
    Column("created_at", Utc, nullable=False),
    Index("webhooks_tenant", "tenant"),
)

webhook_messages: Final = Table(
    "webhook_messages",  # written by the transaction that they tell of: outbox.py
    metadata,
    Column("id", String(HEX), primary_key=True),
    Column("webhook", ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("topic", String(64), nullable=False),
    Column("body", Text, nullable=False),  # the same bytes at every try
    Column("created_at", Utc, nullable=False),  # this and the next by the database's clock
    Column("delivery", String(16), nullable=False),
    Column("due_at", Utc, nullable=False),  # time of the next try, also while one goes on: its gateway may be killed
    Column("attempts", Integer, nullable=False),
    Column("status", Integer),
    Column("problem", String(PROBLEM_LIMIT), nullable=False),
    Index("webhook_messages_due", "delivery", "due_at"),
    Index("webhook_messages_webhook", "webhook", "delivery", "created_at"),
)
