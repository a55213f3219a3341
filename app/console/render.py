"""Template rendering: responses with the headers of every page, and the templates' filters."""

from datetime import UTC, datetime
from typing import Any, Final

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from app.observe.verdict_report import place

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every page: only own resources, nothing inline, no framing; not cached, so that no page remains after signing
out."""

MINUS: Final = "−"
NONE: Final = "–"
DAY_S: Final = 86_400


def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a template from templates/."""
    return HTMLResponse(_ENVIRONMENT.get_template(template).render(**values), status, HEADERS)


def number(value: float | None, digits: int = 2) -> str:
    """Format a number for people: a real minus sign, a dash for None, never a negative zero."""
    if value is None:
        return NONE
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def count(value: float | None) -> str:
    """Format a count: 1234567 → 1,234,567."""
    return NONE if value is None else f"{value:,.0f}"


def size(value: int) -> str:
    """Format a number of bytes for people."""
    amount = float(value)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.2f} GiB"


def when(value: datetime) -> str:
    """Format a time to the minute, in UTC."""
    return f"{value:%Y-%m-%d %H:%M}"


def ago(value: datetime, now: datetime | None = None) -> str:
    """Format a time for people: `5 min ago`, `3 h ago`, and from a day on the date. now: the present, for tests."""
    seconds = ((now or datetime.now(UTC)) - value).total_seconds()
    if seconds < 60:
        return "just now"
    if seconds < DAY_S:
        return f"{seconds // 60:.0f} min ago" if seconds < 3600 else f"{seconds // 3600:.0f} h ago"
    return f"{value.day} {value:%b %Y}"


def full(value: datetime) -> str:
    """Format a time to the second, in UTC."""
    return f"{value:%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float) -> str:
    """Format a length of time for people: `90 s`, `2 min`, `1 h`."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:g} s"


def share(value: float | None) -> str:
    """Format a share (0..1) as a percentage: `0.4 %`, `27 %`, `< 0.1 %`."""
    if value is None:
        return NONE
    if 0 < value < 0.001:
        return "< 0.1 %"
    return f"{100 * value:.{1 if 0 < value < 0.01 else 0}f} %"


def words(value: object) -> str:
    """Format an identifier for people: `above_tau` → `above τ`."""
    return str(value).replace("_", " ").replace("tau", "τ")


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("app.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": number,
        "count": count,
        "size": size,
        "when": when,
        "words": words,
        "ago": ago,
        "full": full,
    }
    made.filters |= {"share": share, "duration": duration}
    made.globals["place"] = place
    return made


_ENVIRONMENT: Final = _environment()
