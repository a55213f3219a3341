"""Tables of docs/, generated from the code that they describe: `python -m app docs` rewrites them."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from app.domain.errors import CODES
from app.observe.metrics import Metrics
from app.serve.fields.refused import REFUSED
from app.serve.fields.validators import Check
from app.serve.request import TABLES as REQUEST_FIELDS
from app.server.settings import Settings
from app.validate.config_fields import FIELDS, Kind


def settings_table() -> str:
    """Return the table of settings: environment variable and flag, default, meaning."""
    rows = ["| Setting | Default | Meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        flag = f"`GATEWAY_{name.upper()}`, `--{name.replace('_', '-')}`"
        rows.append(f"| {flag} | {default_of(field)} | {field.description} |")
    return "\n".join(rows)


def default_of(field: FieldInfo) -> str:
    """Return the default of a setting as it is shown: code, `must be set`, or – for none."""
    value = field.default
    if value is PydanticUndefined:
        return "must be set"
    if value in (None, (), frozenset()) or isinstance(value, SecretStr):
        return "–"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def refusals_table() -> str:
    """Return the table of refusals: code, HTTP status, stage, remedy."""
    rows = ["| Code | Status | Stage | What to do |", "| --- | --- | --- | --- |"]
    rows += [f"| `{c.name}` | {c.status} | {c.stage} | {c.hint} |" for c in CODES.values()]
    return "\n".join(rows)


def metrics_table() -> str:
    """Return the table of metrics: name with its unit, kind, labels, meaning."""
    rows = ["| Metric | Kind | Labels | Meaning |", "| --- | --- | --- | --- |"]
    for one in Metrics().registry.declared:
        labels = ", ".join(f"`{label}`" for label in one.labels) or "–"
        rows.append(f"| `{one.name}` | {one.kind} | {labels} | {one.help} |")
    return "\n".join(rows)


def adapter_fields_table() -> str:
    """Return the table of fields of adapter_config.json: name, treatment, remedy."""
    rows = ["| Field | Treatment | What to do if it is refused |", "| --- | --- | --- |"]
    for name, field in sorted(FIELDS.items(), key=lambda item: (list(Kind).index(item[1].kind), item[0])):
        rows.append(f"| `{name}` | {field.kind} | {field.remedy or '–'} |")
    return "\n".join(rows)


def request_fields_table() -> str:
    """Return the table of request fields that go on to the engine: name, routes, values that are taken.

    The values are in the words in which the gateway refuses others.
    """
    routes: dict[tuple[str, str], list[str]] = {}
    for route, fields in REQUEST_FIELDS.items():
        for name, check in fields.items():
            routes.setdefault((name, _wanted(check)), []).append(route)
    rows = ["| Field | Routes | Value |", "| --- | --- | --- |"]
    for (name, wanted), where in sorted(routes.items()):
        rows.append(f"| `{name}` | {'all' if len(where) == len(REQUEST_FIELDS) else ', '.join(where)} | {wanted} |")
    return "\n".join(rows)


def _wanted(check: Check) -> str:
    """Return what a check takes, in the words of its refusal."""
    try:
        check(object())
    except ValueError as error:
        return str(error).removeprefix("must be ").replace("|", "\\|")
    return "the name of an adapter, of a version, or of the served model"


def refused_fields_table() -> str:
    """Return the table of request fields that are refused by name: name, reason."""
    rows = ["| Field | Reason |", "| --- | --- |"]
    rows += [f"| `{name}` | {reason} |" for name, reason in REFUSED.items()]
    return "\n".join(rows)


@dataclass(frozen=True, slots=True)
class Table:
    """One generated table. page: the page that contains it, from the repository's root. make: generates its text."""

    page: str
    make: Callable[[], str]


TABLES = {
    "settings": Table("docs/settings.md", settings_table),
    "metrics": Table("docs/operating.md", metrics_table),
    "refusals": Table("docs/api.md", refusals_table),
    "adapter-fields": Table("docs/adapters.md", adapter_fields_table),
    "request-fields": Table("docs/api.md", request_fields_table),
    "refused-fields": Table("docs/api.md", refused_fields_table),
}


def with_tables(text: str) -> str:
    """Return `text` with each `<!-- name -->` … `<!-- /name -->` filled in."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        if after:
            text = f"{before}{begin}{table.make()}\n{end}{after}"
    return text


def write_tables() -> None:
    """Write the tables of every page anew."""
    for page in {table.page for table in TABLES.values()}:
        path = Path(__file__).parents[2] / page
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
