"""The few kinds of Grafana panels the dashboards use, as plain data (schema version 39, Grafana 11)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

SCHEMA_VERSION: Final = 39
WIDTH: Final = 24
"""Columns of Grafana's grid."""

Json = dict[str, Any]
SOURCE: Final[Json] = {"type": "prometheus", "uid": "${datasource}"}


J: Final = 'job=~"$job"'
"""Matcher of the chosen jobs."""

A: Final = 'job=~"$job", adapter=~"$adapter"'
"""And of the chosen adapters."""

RATE: Final = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and its legend."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """kind: timeseries, stat, heatmap, bargauge or table. width, height: grid units. instant: only the newest value."""

    title: str
    description: str
    queries: Sequence[Query]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    instant: bool = False
    stacked: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    transformations: Sequence[Json] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


def rate(metric: str, by: str, matcher: str = J) -> str:
    """Per second, summed."""
    return f"sum by ({by}) (rate({metric}{{{matcher}}}{RATE}))"


def job(metric: str) -> Json:
    """The variable `job`: whoever exports `metric`."""
    return variable("job", "Job", f"label_values({metric}, job)", multi=True)


def quantiles(metric: str, matcher: str, by: str = "", legend: str = "") -> list[Query]:
    """P50, P90 and P99 of a histogram over the rate interval, as vLLM's own dashboards have them."""
    groups = f"{by}, le" if by else "le"
    return [
        Query(
            f"histogram_quantile({q}, sum by ({groups}) (rate({metric}_bucket{{{matcher}}}[$__rate_interval])))",
            f"{legend} {name}".strip(),
        )
        for q, name in ((0.5, "P50"), (0.9, "P90"), (0.99, "P99"))
    ]


def timeseries(title: str, description: str, queries: Sequence[Query], unit: str = "short", **more: Any) -> Panel:
    """Lines over time."""
    return Panel(title, description, queries, unit=unit, **more)


def stat(title: str, description: str, expr: str, unit: str = "short", **more: Any) -> Panel:
    """One number."""
    return Panel(title, description, [Query(expr)], "stat", unit, **{"width": 4, "height": 4, "instant": True} | more)


def distribution(title: str, description: str, metric: str, matcher: str, unit: str = "short", **more: Any) -> Panel:
    """A histogram over time: time across, buckets up, shade by count."""
    expr = f"sum by (le) (increase({metric}_bucket{{{matcher}}}[$__rate_interval]))"
    options = {
        "calculate": False,
        "yAxis": {"unit": unit, "decimals": 1},
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5},
        "cellGap": 1,
        "filterValues": {"le": 1e-9},
        "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": True},
        "legend": {"show": True},
    }
    return Panel(title, description, [Query(expr, "{{le}}")], "heatmap", unit, options=options, **more)


def matrix(title: str, description: str, expr: str, columns: str, rows: str, **more: Any) -> Panel:
    """A table coloured as a heat map: one label across, another down."""
    sort = [{"id": "sortBy", "options": {"fields": {}, "sort": [{"field": label}]}} for label in (rows, columns)]
    grouping = {"columnField": columns, "rowField": rows, "valueField": "Value", "emptyValue": "null"}
    cell = {"type": "color-background", "mode": "basic"}
    return Panel(
        title,
        description,
        [Query(expr)],
        "table",
        instant=True,
        transformations=[*sort, {"id": "groupingToMatrix", "options": grouping}],
        options={"showHeader": True, "cellHeight": "sm"},
        defaults={
            "custom": {"align": "center", "cellOptions": cell, "minWidth": 40},
            "color": {"mode": "continuous-YlRd"},
            "min": 0,
            "decimals": 0,
        },
        **more,
    )


def dashboard(uid: str, title: str, description: str, variables: Sequence[Json], rows: Sequence[Row]) -> Json:
    """The whole file."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["lora-gateway"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_datasource(), *variables]},
        "annotations": {"list": [_alerts()]},
        "links": [{"type": "dashboards", "tags": ["lora-gateway"], "title": "LoRA gateway", "asDropdown": True}],
        "panels": _laid_out(rows),
    }


def variable(name: str, label: str, query: str, *, multi: bool = False) -> Json:
    """A choice out of a label's values."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": multi,
        "includeAll": multi,
        "allValue": ".*" if multi else None,
        "current": {"text": "All", "value": "$__all"} if multi else {},
        "options": [],
    }


def choice(name: str, label: str, values: Sequence[str]) -> Json:
    """A choice out of a fixed list; the first is the default."""
    options = [{"text": value, "value": value, "selected": value == values[0]} for value in values]
    found = {"name": name, "label": label, "type": "custom", "query": ",".join(values), "options": options}
    return found | {"current": options[0], "multi": False, "includeAll": False}


def _datasource() -> Json:
    found = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return found | {"current": {"text": "Prometheus", "value": "prometheus"}, "regex": "", "options": [], "refresh": 1}


def _alerts() -> Json:
    expr = 'ALERTS{alertstate="firing", job=~"$job"}'
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": expr,
        "titleFormat": "{{alertname}}",
        "textFormat": "{{adapter}}",
        "step": "60s",
    }


def _laid_out(rows: Sequence[Row]) -> list[Json]:
    """Left to right, top to bottom, a heading above each row."""
    found: list[Json] = []
    y = 0
    for row in rows:
        grid = {"h": 1, "w": WIDTH, "x": 0, "y": y}
        found.append({"id": len(found) + 1, "type": "row", "title": row.title, "collapsed": False, "gridPos": grid})
        found[-1]["panels"] = []
        x, y, tallest = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            place = {"h": panel.height, "w": panel.width, "x": x, "y": y}
            found.append({"id": len(found) + 1, "gridPos": place, **_json(panel)})
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return found


def _json(panel: Panel) -> Json:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": [_target(panel, i, query) for i, query in enumerate(panel.queries)],
        "transformations": list(panel.transformations),
        "options": dict(panel.options) or _options(panel),
        "fieldConfig": {"defaults": {"unit": panel.unit, **_defaults(panel), **panel.defaults}, "overrides": []},
    }


def _target(panel: Panel, index: int, query: Query) -> Json:
    shape = {"heatmap": "heatmap", "table": "table"}.get(panel.kind, "time_series")
    return {
        "refId": chr(ord("A") + index),
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "range": not panel.instant,
        "instant": panel.instant,
        "format": shape,
    }


def _defaults(panel: Panel) -> Json:
    if panel.kind != "timeseries":
        return {}
    drawn = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 30 if panel.stacked else 0, "showPoints": "never"}
    return {"min": 0, "custom": drawn | {"stacking": {"group": "A", "mode": "normal" if panel.stacked else "none"}}}


def _options(panel: Panel) -> Json:
    if panel.kind == "timeseries":
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    newest = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel.kind == "bargauge":
        return {"reduceOptions": newest, "orientation": "horizontal", "displayMode": "gradient", "valueMode": "color"}
    return {"reduceOptions": newest, "colorMode": "value", "graphMode": "none", "textMode": "auto"}
