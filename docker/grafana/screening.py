"""The Screening dashboard."""

from typing import Final

from panels import (
    RATE,
    A,
    J,
    Json,
    Panel,
    Query,
    Row,
    choice,
    dashboard,
    distribution,
    job,
    matrix,
    quantiles,
    rate,
    stat,
    timeseries,
    variable,
)

ADAPTER: Final = variable(
    "adapter", "Adapter", 'label_values(gateway_adapter_modules{job=~"$job"}, adapter)', multi=True
)


def screening() -> Json:
    """Dashboard of uploads, of the modules cut out of them, and the reasons."""
    pruned, projected = (f'gateway_adapter_modules{{{A}, decision="{d}"}}' for d in ("prune", "project"))
    every_one = f"gateway_adapter_modules{{{A}}}"
    cut = f'gateway_block_modules_total{{{J}, decision=~"prune|project"}}'
    every = f"gateway_block_modules_total{{{J}}}"
    buckets = rate("gateway_stage_duration_seconds_bucket", "stage, le")
    cut_here, all_here = (f"sum by (block, module) (increase({name}[$__range]))" for name in (cut, every))
    glance = Row(
        "At a glance",
        [
            stat("Adapters served", "Whose active version is served", f"sum(gateway_adapters_ready{{{J}}})", width=3),
            stat("Modules cut out", "Of all adapters' active versions", f"sum({pruned})", width=3),
            stat("Modules projected", "Kept without what acts on alignment's inputs", f"sum({projected})", width=3),
            stat(
                "Share cut out",
                "Of all adapters' active versions",
                f"sum({pruned}) / sum({every_one})",
                "percentunit",
                width=3,
            ),
            stat(
                "Uploads under way", "Being received or screened", f"sum(gateway_uploads_in_progress{{{J}}})", width=3
            ),
            stat("Store free", "Where artefacts are kept", f"min(gateway_store_free_bytes{{{J}}})", "bytes", width=3),
            stat(
                "τ",
                "Modules with an E-DIEM above it are cut out, or projected where the policy says so",
                f"max(gateway_policy_tau{{{J}}})",
                width=3,
            ),
            stat(
                "Invariants broken",
                "As the last audit found; the log lists them",
                f"max(gateway_audit_broken_invariants{{{J}}})",
                width=3,
            ),
        ],
    )
    came = Row(
        "What came in",
        [
            timeseries(
                "Uploads by outcome",
                "What became of them",
                [Query(f"sum by (outcome) (increase(gateway_uploads_total{{{J}}}{RATE}))", "{{outcome}}")],
                stacked=True,
            ),
            timeseries(
                "Refusals by code",
                "The table of refusals in docs/api.md says what each means",
                [Query(f"sum by (stage, code) (increase(gateway_rejected_total{{{J}}}{RATE}))", "{{stage}}: {{code}}")],
                stacked=True,
            ),
            timeseries(
                "Stage durations, P95",
                "From the first byte to the engine",
                [
                    Query(
                        f"histogram_quantile(0.95, {buckets})",
                        "{{stage}}",
                    )
                ],
                "s",
            ),
        ],
    )
    out = Row(
        "What was cut out",
        [
            timeseries(
                "Modules by decision over time",
                "Of each screened upload, as it was screened",
                [Query(f"sum by (decision) (increase(gateway_modules_total{{{J}}}{RATE}))", "{{decision}}")],
                stacked=True,
            ),
            timeseries(
                "Modules cut out and projected by adapter",
                "Of its active version",
                [
                    Query(f"sum by (adapter) ({pruned})", "{{adapter}}: cut out"),
                    Query(f"sum by (adapter) ({projected})", "{{adapter}}: projected"),
                ],
            ),
            Panel(
                "Share cut out by adapter",
                "Of its active version",
                [Query(f"sort_desc(sum by (adapter) (adapter:gateway_modules_pruned:ratio{{{A}}}))", "{{adapter}}")],
                "bargauge",
                "percentunit",
                instant=True,
                defaults={"min": 0, "max": 1, "color": {"mode": "continuous-YlRd"}},
            ),
            matrix(
                "Condemned by block and module type",
                "Modules cut out of uploads or projected, within the dashboard's time range",
                cut_here,
                "block",
                "module",
                width=12,
                height=10,
            ),
            matrix(
                "Share condemned by block and module type",
                "Cut out or projected, of the modules screened within the dashboard's time range, percent",
                f"100 * {cut_here} / {all_here}",
                "block",
                "module",
                width=12,
                height=10,
            ),
        ],
    )
    why = Row(
        "Why",
        [
            timeseries(
                "Modules by reason",
                "Decision and reason of each screened module",
                [
                    Query(
                        f"sum by (decision, reason) (increase(gateway_modules_total{{{J}}}{RATE}))",
                        "{{decision}}: {{reason}}",
                    )
                ],
                stacked=True,
            ),
            distribution(
                "Scores",
                "E-DIEM of every screened module under one comparison, interquartile ranges",
                "gateway_module_score",
                f'{J}, comparison="$comparison"',
            ),
            timeseries(
                "Scores, quantiles and τ",
                "Under one comparison, interquartile ranges",
                [
                    *quantiles("gateway_module_score", f'{J}, comparison="$comparison"'),
                    Query(f"max(gateway_policy_tau{{{J}}})", "τ"),
                ],
                defaults={"min": None},
            ),
        ],
    )
    behaviour = Row(
        "Behaviour",
        [
            timeseries(
                "Evaluations by result",
                "floor: served as screening left it; corrected: served with a stronger correction; rejected: not served. "
                "None without a battery of canaries",
                [Query(f"sum by (result) (increase(gateway_evaluations_total{{{J}}}{RATE}))", "{{result}}")],
                stacked=True,
            ),
            timeseries(
                "Canaries by answer",
                "Asked of adapters on every correction that was tried; over_refused: an answer was expected",
                [Query(f"sum by (answer) (increase(gateway_canaries_total{{{J}}}{RATE}))", "{{answer}}")],
                stacked=True,
            ),
            timeseries(
                "Modules changed beyond the floor by adapter",
                "Of its active version, by a stronger correction that canaries asked for; 0: the floor was enough",
                [Query(f"sum by (adapter) (gateway_adapter_modules_beyond_floor{{{A}}})", "{{adapter}}")],
            ),
            timeseries(
                "Versions withheld",
                "Published, and not answering: asked again they failed canaries, or the policy in force does not pass them",
                [Query(f"max(gateway_versions_withheld{{{J}}})", "withheld")],
            ),
            timeseries(
                "Adapters without effect",
                "They answer exactly as the served model: modules that the engine does not serve, or an update of zero",
                [Query(f"sum(increase(gateway_versions_without_effect_total{{{J}}}{RATE}))", "without effect")],
            ),
        ],
    )
    comparison = choice("comparison", "Comparison", ["input", "alignment", "projection"])
    text = "What came in, what was cut out of it, and why. Screened does not mean free of harm."
    variables = [job("gateway_build_info"), ADAPTER, comparison]
    return dashboard("lora-screening", "Screening", text, variables, [glance, came, out, why, behaviour])
