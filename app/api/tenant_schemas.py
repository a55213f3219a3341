"""Response models about tenants: keys, limits, rules, usage and the audit log."""

from app.api.schemas import Time, View


class StoredApiKey(View):
    """One key made at run time. last_used_at: to a minute. previous_until: time until which the key before a rotation is
    accepted as well."""

    tenant: str
    name: str
    roles: list[str]
    owner: str | None
    created_at: Time
    expires_at: Time | None
    last_used_at: Time | None
    previous_until: Time | None


class NewApiKey(StoredApiKey):
    """A key that was just made or rotated. key: the key itself, shown this once and stored nowhere."""

    key: str


class ApiKeys(View):
    """Keys of one tenant that were made at run time, by name."""

    keys: list[StoredApiKey]


class Tenant(View):
    """One tenant. keys: made at run time and not revoked."""

    tenant: str
    adapters: int
    keys: int


class Tenants(View):
    """Tenants that have an adapter or a key, by label; `default` is always among them."""

    tenants: list[Tenant]


class Limits(View):
    """Limits of a tenant over all gateways; null: unlimited. bytes: of its stored uploads."""

    adapters: int | None
    versions: int | None
    bytes: int | None
    uploads_per_day: int | None
    screenings_per_day: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None


class StockHeld(View):
    """Stock of a tenant: adapters, their versions that are stored or being screened, and the bytes of those uploads."""

    adapters: int
    versions: int
    bytes: int


class TenantLimitsShown(View):
    """Limits of a tenant, and the stock that counts for them."""

    tenant: str
    limits: Limits
    stored: StockHeld


class PolicyValues(View):
    """Values of a policy that a tenant may have of its own; null: the operator's, and in force: no bound."""

    tau: float | None
    project_outputs: int | None
    max_removed_share: float | None
    max_pruned: int | None
    max_pruned_share: float | None
    reject_tau: float | None
    max_update_ratio: float | None
    unscorable: str | None
    max_block_score: float | None
    max_adapter_score: float | None


class TenantPolicyShown(View):
    """Policy of a tenant: its own values, and, in force, the stricter of these and the operator's."""

    tenant: str
    policy: PolicyValues
    in_force: PolicyValues


class TenantCanaries(View):
    """Canaries of a tenant beside the operator's. categories: those that must be refused, counted. digest: null without
    any."""

    tenant: str
    canaries: int
    digest: str | None
    categories: dict[str, int]


class UsageLine(View):
    """Usage of one key, adapter and version in one hour. hour: its beginning, UTC. adapter, version: null for the served
    model itself; another tenant's adapter, which the operator asked, is `tenant/name`."""

    hour: Time
    tenant: str
    key: str
    adapter: str | None
    version: int | None
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class UsagePage(View):
    """Usage by the hour, oldest first. next: value of `after` for the following page, null on the last one."""

    usage: list[UsageLine]
    next: str | None


class AuditedAct(View):
    """One entry of the audit log. key: the caller's, with its tenant unless that is `default`. tenant: in which it acted.
    target: the adapter or key. status: of the answer, 499 if the client left. code: of the refusal. previous, hash: the
    chain."""

    number: int
    at: Time
    key: str
    tenant: str
    action: str
    target: str
    status: int
    code: str
    address: str
    request: str
    previous: str
    hash: str


class AuditPage(View):
    """Entries of the audit log, oldest first. next: value of `after` for the following page, null on the last one."""

    entries: list[AuditedAct]
    next: int | None
