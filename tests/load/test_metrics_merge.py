"""Metrics of several engines as one text that Prometheus reads."""

import subprocess
from pathlib import Path

from app.load.client.metrics_merge import merged
from tests.support.prometheus import Promtool

VLLM = (Path(__file__).parents[1] / "support" / "vllm-0.32-metrics.txt").read_bytes()
UNREADABLE = 1
"""Exit status of `promtool check metrics` for a text that it cannot read; 3 is for names that it would choose otherwise."""


def lines(text: bytes, start: str) -> list[str]:
    return [line for line in text.decode().splitlines() if line.startswith(start)]


def test_prometheus_reads_the_metrics_of_several_vllm_engines(promtool: Promtool) -> None:
    done = subprocess.run(
        [promtool.program, "check", "metrics"], input=merged({"0": VLLM, "1": VLLM}), capture_output=True, timeout=60
    )
    assert done.returncode != UNREADABLE, done.stderr.decode()


def test_vllms_rank_is_kept_beside_the_engines_number() -> None:
    assert lines(merged({"0": VLLM, "3": VLLM}), "vllm:num_requests_waiting{") == [
        'vllm:num_requests_waiting{engine="0",exported_engine="0",model_name="tiny-llama"} 0.0',
        'vllm:num_requests_waiting{engine="3",exported_engine="0",model_name="tiny-llama"} 0.0',
    ]


def test_values_are_left_as_they_are() -> None:
    text = b'm{name="a,engine=\\"b\\"",tengine="x",engine="1"} 2\nn 3\n'
    assert merged({"0": text}).decode().splitlines() == [
        'm{engine="0",name="a,engine=\\"b\\"",tengine="x",exported_engine="1"} 2',
        'n{engine="0"} 3',
    ]
