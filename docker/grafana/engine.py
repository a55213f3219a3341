"""The Engine dashboard."""

from typing import Final

from panels import RATE, Json, Query, Row, dashboard, distribution, job, quantiles, rate, timeseries, variable

M: Final = 'job=~"$job", model_name=~"$model_name"'


def mean(metric: str) -> str:
    """Of a histogram, over the rate interval."""
    seconds, count = (f"sum(rate({metric}_{part}{{{M}}}{RATE}))" for part in ("sum", "count"))
    return f"{seconds} / {count}"


def engine() -> Json:
    """vLLM's own metrics, as vLLM's own dashboards show them."""
    model = variable(
        "model_name", "Model", 'label_values(vllm:num_requests_running{job=~"$job"}, model_name)', multi=True
    )

    def total(metric: str, by: str = "model_name") -> str:
        return f"sum by ({by}) (vllm:{metric}{{{M}}})"

    hits, looked_up = (f"sum(rate(vllm:prefix_cache_{what}_total{{{M}}}{RATE}))" for what in ("hits", "queries"))
    latency = Row(
        "Latency",
        [
            timeseries(
                "E2E request latency",
                "From arrival to the last token",
                quantiles("vllm:e2e_request_latency_seconds", M),
                "s",
            ),
            timeseries(
                "Time to first token",
                "From arrival to the first token",
                quantiles("vllm:time_to_first_token_seconds", M),
                "s",
            ),
            timeseries("Inter-token latency", "Token to token", quantiles("vllm:inter_token_latency_seconds", M), "s"),
            timeseries(
                "Queue time", "Waiting for a place in the batch", quantiles("vllm:request_queue_time_seconds", M), "s"
            ),
            timeseries(
                "Prefill and decode time, mean",
                "Per request",
                [
                    Query(
                        mean(f"vllm:request_{part}_time_seconds"),
                        part,
                    )
                    for part in ("prefill", "decode")
                ],
                "s",
            ),
            timeseries(
                "Time per output token",
                "Of each request",
                quantiles("vllm:request_time_per_output_token_seconds", M),
                "s",
            ),
        ],
    )
    load = Row(
        "Load",
        [
            timeseries(
                "Token throughput",
                "Tokens a second",
                [
                    Query(rate("vllm:prompt_tokens_total", "model_name", M), "prompt"),
                    Query(rate("vllm:generation_tokens_total", "model_name", M), "generation"),
                ],
            ),
            timeseries(
                "Scheduler state",
                "Requests running and waiting",
                [Query(total("num_requests_running"), "running"), Query(total("num_requests_waiting"), "waiting")],
            ),
            timeseries(
                "KV cache usage",
                "Share of blocks in use",
                [Query(f"max by (model_name) (vllm:kv_cache_usage_perc{{{M}}})", "{{model_name}}")],
                "percentunit",
            ),
            timeseries(
                "Finish reason",
                "Requests a second",
                [Query(rate("vllm:request_success_total", "finished_reason", M), "{{finished_reason}}")],
                "reqps",
                stacked=True,
            ),
            timeseries(
                "Prefix cache hits",
                "Share of looked-up tokens",
                [
                    Query(
                        f"{hits} / {looked_up}",
                        "hit",
                    )
                ],
                "percentunit",
            ),
            timeseries(
                "Preemptions",
                "Within the rate interval",
                [Query(f"sum by (model_name) (increase(vllm:num_preemptions_total{{{M}}}{RATE}))", "{{model_name}}")],
            ),
        ],
    )
    sizes = Row(
        "Sizes",
        [
            distribution("Prompt length", "Tokens", "vllm:request_prompt_tokens", M),
            distribution("Generation length", "Tokens", "vllm:request_generation_tokens", M),
            distribution("Tokens in one step", "Prefill and decode together", "vllm:iteration_tokens_total", M),
        ],
    )
    text = "vLLM's own metrics. They know no adapters: the Serving dashboard does."
    return dashboard("lora-engine", "Engine", text, [job("vllm:num_requests_running"), model], [latency, load, sizes])
