"""Every alert rule, by promtool: the state that must wake somebody, and one nearby that must not."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.prometheus import HOME, RULES, Promtool, keep

MINUTE = 60


@dataclass(frozen=True)
class Case:
    """series: what was scraped, a sample each minute, in promtool's notation. minute: when it is looked at.

    labels: of the one alert that fires then, besides its severity; None: none fires. value: how it reads in the summary.
    """

    alert: str
    series: dict[str, str]
    minute: int
    labels: dict[str, str] | None = field(default=None)
    value: str = ""


GATEWAY = {"job": "gateway", "instance": "gateway:8080"}
AT = 'job="gateway",instance="gateway:8080"'


def uploads(clean: str, rejected: str) -> dict[str, str]:
    """Counters of uploads by outcome."""
    name = "gateway_uploads_total"
    return {f'{name}{{{AT},outcome="clean"}}': clean, f'{name}{{{AT},outcome="rejected"}}': rejected}


def screenings(quick: str, slow: str) -> dict[str, str]:
    """Cumulative buckets: so many under 30 s, so many in all."""
    name = f'gateway_stage_duration_seconds_bucket{{{AT},stage="screen",le='
    return {f'{name}"30.0"}}': quick, f'{name}"60.0"}}': slow, f'{name}"+Inf"}}': slow}


def store(free: int, *, reserve: int = 500, size: int = 10_000) -> dict[str, str]:
    """Bytes."""
    values = {"free": free, "reserve": reserve, "size": size}
    return {f"gateway_store_{name}_bytes{{{AT}}}": f"{value}x30" for name, value in values.items()}


def adapters(*pruned: int, of: int = 100) -> dict[str, str]:
    """Adapters a0, a1, …, by how many of their modules were cut out."""
    found = {}
    for i, count in enumerate(pruned):
        for decision, modules in (("prune", count), ("keep", of - count)):
            found[f'gateway_adapter_modules{{{AT},adapter="a{i}",decision="{decision}"}}'] = f"{modules}x30"
    return found


def engine(up: str, desired: str, loaded: str) -> dict[str, str]:
    """What should be loaded, and what is."""
    found = {"gateway_engine_up": up, "gateway_engine_adapters_desired": desired, "gateway_engine_adapters": loaded}
    return {f"{name}{{{AT}}}": values for name, values in found.items()}


def requests(good: str, bad: str) -> dict[str, str]:
    """Counters of requests by status."""
    name = "gateway_requests_total"
    return {f'{name}{{{AT},adapter="a",status="200"}}': good, f'{name}{{{AT},adapter="a",status="502"}}': bad}


JOB = {"job": "gateway"}

CASES = [
    Case("GatewayDown", {f"up{{{AT}}}": "1 0x30"}, 3, GATEWAY),
    Case("GatewayDown", {f"up{{{AT}}}": "1 0 1x30"}, 3),
    Case("GatewayMissing", {'up{job="prometheus"}': "1x30"}, 5, {"job": "gateway"}),
    Case("GatewayMissing", {f"up{{{AT}}}": "0x30"}, 5),  # GatewayDown says it
    Case("EngineDown", {f"gateway_engine_up{{{AT}}}": "1x5 0x30"}, 10, GATEWAY),
    Case("EngineDown", {f"gateway_engine_up{{{AT}}}": "1x5 0 1x30"}, 10),
    Case("EngineRestarting", {f"gateway_engine_restarts_total{{{AT}}}": "0x5 1x3 2x3 3x20"}, 20, GATEWAY, "3"),
    Case("EngineRestarting", {f"gateway_engine_restarts_total{{{AT}}}": "0x5 1x30"}, 20),
    Case("AdaptersNotLoaded", engine("1x30", "5x30", "3x30"), 15, GATEWAY, "2"),
    Case("AdaptersNotLoaded", engine("1x30", "5x30", "3x5 5x25"), 15),  # late, but loaded
    Case("AdaptersNotLoaded", engine("0x30", "5x30", "0x30"), 15),  # EngineDown says it
    Case("UploadRejectionSurge", uploads("0+1x40", "0+3x40"), 30, {"job": "gateway"}, "75%"),
    Case("UploadRejectionSurge", uploads("0+3x40", "0+1x40"), 30),
    Case("UploadRejectionSurge", uploads("0x40", "0x20 1x20"), 30),  # one refused upload is no surge
    Case("ScreeningSlow", screenings("0+1x40", "0+4x40"), 35, {"job": "gateway"}, "58s"),
    Case("ScreeningSlow", screenings("0+4x40", "0+4x40"), 35),
    Case("StoreNearlyFull", store(900), 10, GATEWAY),
    Case("StoreNearlyFull", store(400, reserve=0), 10, GATEWAY),
    Case("StoreNearlyFull", store(1100), 10),
    Case("AuditFoundBrokenInvariant", {f"gateway_audit_broken_invariants{{{AT}}}": "0x3 2x30"}, 5, GATEWAY, "2"),
    Case(
        "AuditFoundBrokenInvariant", {f"gateway_audit_broken_invariants{{{AT}}}": "NaN NaN NaN NaN NaN NaN"}, 5
    ),  # none yet
    Case("AuditFoundBrokenInvariant", {f"gateway_audit_broken_invariants{{{AT}}}": "0x30"}, 5),
    Case("AuditFoundBrokenInvariant", {f"gateway_audit_broken_invariants{{{AT}}}": "0x3 2x3 0x30"}, 10),  # mended since
    Case("PrunedShareUnusual", adapters(2, 4, 5, 6, 45), 5, {"job": "gateway", "adapter": "a4"}, "40%"),
    Case("PrunedShareUnusual", adapters(40, 42, 45, 46, 47), 5),  # all alike
    Case("PrunedShareUnusual", adapters(2, 4, 45), 5),  # too few to say what is usual
    Case("AdapterFailedCanaries", {f'gateway_evaluations_total{{{AT},result="rejected"}}': "0x5 2x30"}, 10, JOB, "2"),
    Case("AdapterFailedCanaries", {f'gateway_evaluations_total{{{AT},result="rejected"}}': "2x30"}, 10),
    Case("AdapterFailedCanaries", {f'gateway_evaluations_total{{{AT},result="corrected"}}': "0x5 2x30"}, 10),
    Case("VersionsWithheld", {f"gateway_versions_withheld{{{AT}}}": "0x5 2x30"}, 10, {"job": "gateway"}, "2"),
    Case("VersionsWithheld", {f"gateway_versions_withheld{{{AT}}}": "0x5 2x2 0x30"}, 10),
    Case(
        "WebhookMessagesGivenUp",
        {f'gateway_webhook_messages_total{{{AT},result="given_up"}}': "0x5 2x30"},
        10,
        JOB,
        "2",
    ),
    Case("WebhookMessagesGivenUp", {f'gateway_webhook_messages_total{{{AT},result="failed"}}': "0x5 2x30"}, 10),
    Case("RequestsFailing", requests("0+60x30", "0+20x30"), 15, {"job": "gateway"}, "25%"),
    Case("RequestsFailing", requests("0+60x30", "0+1x30"), 15),
    Case("RequestsFailing", requests("0x30", "0x10 1x20"), 15),  # one of one
]


def rules() -> dict[str, dict[str, Any]]:
    """The alerts of the rule file, by name."""
    groups = yaml.safe_load((RULES / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def expected(case: Case) -> list[dict[str, Any]]:
    """The alert as it should reach a person."""
    if case.labels is None:
        return []
    rule = rules()[case.alert]
    said = {name: filled(text, case) for name, text in rule["annotations"].items()}
    return [{"exp_labels": {**case.labels, **rule["labels"]}, "exp_annotations": said}]


def filled(template: str, case: Case) -> str:
    """An annotation with its labels and its value."""
    text = template
    for name, value in (case.labels or {}).items():
        text = text.replace(f"{{{{ $labels.{name} }}}}", value)
    head, opened, tail = text.partition("{{ $value")
    return head + case.value + tail.partition("}}")[2] if opened else text


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.alert}-{'fires' if c.labels else 'quiet'}")
def test_alert(case: Case, promtool: Promtool, tmp_path: Path) -> None:
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    at = {"eval_time": f"{case.minute}m", "alertname": case.alert, "exp_alerts": expected(case)}
    test = {"interval": "1m", "input_series": series, "alert_rule_test": [at]}
    file = tmp_path / "test.yml"
    files = [str(RULES / "recording.yml"), str(RULES / "alerts.yml")]
    file.write_text(json.dumps({"rule_files": files, "evaluation_interval": "1m", "tests": [test]}), encoding="utf-8")
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_firing_and_quiet() -> None:
    assert {case.alert for case in CASES if case.labels} == set(rules())
    assert {case.alert for case in CASES if case.labels is None} == set(rules())


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in rules().values():
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


def test_the_guide_names_every_alert() -> None:
    text = (HOME.parents[1] / "docs" / "operating.md").read_text(encoding="utf-8")
    (named,) = re.findall(r"The alerts are (.+?)\.\n", text, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", named)) == set(rules())


def test_promtool_accepts_rules_and_configuration(promtool: Promtool, tmp_path: Path) -> None:
    for file in sorted(RULES.glob("*.yml")):
        done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(file))
        assert done.returncode == 0, done.stdout + done.stderr
    done = promtool("check", "config", str(promtool.configuration(tmp_path)))
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_run_may_unpack_a_promtool_that_this_one_runs(tmp_path: Path) -> None:
    sleep, unpacked, kept = shutil.which("sleep"), tmp_path / "unpacked", tmp_path / "kept"
    assert sleep is not None
    unpacked.mkdir()
    shutil.copy2(sleep, unpacked / "promtool")
    keep(unpacked, kept)
    with subprocess.Popen([kept / "promtool", "60"]) as running:
        keep(unpacked, kept)
        assert running.poll() is None
        running.kill()
    assert [path.name for path in kept.iterdir()] == ["promtool"]
