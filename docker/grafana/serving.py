"""The Serving dashboard."""

from typing import Final

from panels import RATE, A, J, Json, Query, Row, dashboard, job, quantiles, rate, stat, timeseries, variable

ADAPTER: Final = variable(
    "adapter", "Adapter", 'label_values(gateway_requests_total{job=~"$job"}, adapter)', multi=True
)

BY_PART: Final = "adapter, version, part"
PART: Final = "{{adapter}}@{{version}} {{part}}"


def serving() -> Json:
    """Dashboard of chat, adapter by adapter."""
    failed = f'sum(rate(gateway_requests_total{{{A}, status=~"5.."}}{RATE}))'
    every = f"sum(rate(gateway_requests_total{{{A}}}{RATE}))"
    glance = Row(
        "At a glance",
        [
            stat("Engine", "1 while it answers", f"min(gateway_engine_up{{{J}}})"),
            stat("Versions loaded", "In the engine", f"sum(gateway_engine_adapters{{{J}}})"),
            stat(
                "Versions missing",
                "Stored, and not in the engine",
                f"sum(gateway_engine_adapters_desired{{{J}}} - gateway_engine_adapters{{{J}}})",
            ),
            stat("Requests a second", "Of the chosen adapters", every, "reqps"),
            stat("Failing", "Share of requests answered 5xx", f"({failed} or vector(0)) / {every}", "percentunit"),
            stat(
                "Tokens a second",
                "Written by the chosen adapters",
                f'sum(rate(gateway_tokens_total{{{A}, kind="completion"}}{RATE}))',
            ),
        ],
    )
    latency = Row(
        "Latency by adapter",
        [
            timeseries(
                "Time to first token",
                "Streamed requests",
                quantiles("gateway_time_to_first_token_seconds", A, "adapter", "{{adapter}}"),
                "s",
            ),
            timeseries(
                "Inter-token latency",
                "Streamed requests",
                quantiles("gateway_inter_token_latency_seconds", A, "adapter", "{{adapter}}"),
                "s",
            ),
            timeseries(
                "Request duration",
                "Body read to last byte",
                quantiles("gateway_request_duration_seconds", A, "adapter", "{{adapter}}"),
                "s",
            ),
        ],
    )
    traffic = Row(
        "Traffic by adapter",
        [
            timeseries(
                "Requests",
                "A second",
                [Query(rate("gateway_requests_total", "adapter", A), "{{adapter}}")],
                "reqps",
                stacked=True,
            ),
            timeseries(
                "Prompt tokens",
                "A second",
                [Query(rate("gateway_tokens_total", "adapter", f'{A}, kind="prompt"'), "{{adapter}}")],
                stacked=True,
            ),
            timeseries(
                "Completion tokens",
                "A second",
                [Query(rate("gateway_tokens_total", "adapter", f'{A}, kind="completion"'), "{{adapter}}")],
                stacked=True,
            ),
            timeseries(
                "Requests by status",
                "499: the client left",
                [Query(rate("gateway_requests_total", "status", A), "{{status}}")],
                "reqps",
                stacked=True,
                width=12,
            ),
            timeseries(
                "Errors",
                "By adapter and code",
                [Query(rate("gateway_request_errors_total", "adapter, code", A), "{{adapter}}: {{code}}")],
                "reqps",
                stacked=True,
                width=12,
            ),
        ],
    )
    tenants = Row(
        "Tenants",
        [
            timeseries(
                "Requests by tenant",
                "A second, of the tenant's keys",
                [Query(rate("gateway_tenant_requests_total", "tenant", J), "{{tenant}}")],
                "reqps",
                stacked=True,
            ),
            timeseries(
                "Tokens by tenant",
                "A second, prompt and completion",
                [Query(rate("gateway_tenant_tokens_total", "tenant", f'{J}, kind!="cached"'), "{{tenant}}")],
                stacked=True,
            ),
            timeseries(
                "Refused by a tenant's limit",
                "A second, by limit",
                [Query(rate("gateway_tenant_limited_total", "tenant, limit", J), "{{tenant}}: {{limit}}")],
                "reqps",
                stacked=True,
            ),
            timeseries(
                "Messages to webhooks",
                "Tries an hour, by result",
                [Query(f"sum by (result) (increase(gateway_webhook_messages_total{{{J}}}[1h]))", "{{result}}")],
                stacked=True,
            ),
        ],
    )
    answered = rate("gateway_rollout_requests_total", BY_PART, A)
    broken = rate("gateway_rollout_requests_total", BY_PART, f'{A}, result="failed"')
    rollouts = Row(
        "Roll-outs",
        [
            timeseries(
                "Share of conversations",
                "Per cent that each version gets",
                [Query(f"max by (adapter, version) (gateway_rollout_weight{{{A}}})", "{{adapter}}@{{version}}")],
                "percent",
            ),
            timeseries(
                "Requests by version",
                "A second; a shadow's are copies",
                [Query(answered, PART)],
                "reqps",
            ),
            timeseries(
                "Failed by version",
                "Share of its requests",
                [
                    Query(f"({broken} or 0 * {answered}) / {answered}", PART),
                ],
                "percentunit",
            ),
            timeseries(
                "Duration by version",
                "Body read to last byte",
                quantiles("gateway_rollout_request_duration_seconds", A, BY_PART, PART),
                "s",
            ),
            timeseries(
                "First token by version",
                "Streamed requests",
                quantiles("gateway_rollout_time_to_first_token_seconds", A, BY_PART, PART),
                "s",
            ),
            timeseries(
                "Tokens by version",
                "A second, written",
                [Query(rate("gateway_rollout_completion_tokens_total", BY_PART, A), PART)],
            ),
            timeseries(
                "Copies dropped and roll-outs ended",
                "Within the rate interval",
                [
                    Query(
                        f"sum by (reason) (increase(gateway_rollout_shadows_dropped_total{{{J}}}{RATE}))", "{{reason}}"
                    ),
                    Query(f"sum by (how) (increase(gateway_rollouts_ended_total{{{J}}}{RATE}))", "{{how}}"),
                ],
            ),
        ],
    )
    engine = Row(
        "Residency and overhead",
        [
            timeseries(
                "Residency",
                "Versions the engine should hold, holds, and refused",
                [
                    Query(f"sum(gateway_engine_adapters_desired{{{J}}})", "desired"),
                    Query(f"sum(gateway_engine_adapters{{{J}}})", "loaded"),
                    Query(f"sum(gateway_engine_adapters_failing{{{J}}})", "failing"),
                ],
            ),
            timeseries(
                "Loads, losses, restarts",
                "Within the rate interval",
                [
                    Query(f"sum by (result) (increase(gateway_engine_loads_total{{{J}}}{RATE}))", "{{result}}"),
                    Query(f"sum(increase(gateway_engine_adapters_lost_total{{{J}}}{RATE}))", "lost"),
                    Query(f"sum(increase(gateway_engine_restarts_total{{{J}}}{RATE}))", "restarts"),
                ],
            ),
            timeseries(
                "Gateway overhead",
                "Its own work on one request, without waiting",
                quantiles("gateway_overhead_seconds", J),
                "s",
            ),
        ],
    )
    return dashboard(
        "lora-serving",
        "Serving",
        "How chat goes, adapter by adapter",
        [job("gateway_build_info"), ADAPTER],
        [glance, latency, traffic, rollouts, tenants, engine],
    )
