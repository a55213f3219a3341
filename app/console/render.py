"""Template rendering: responses with the headers of every page, and the templates' filters."""

from datetime import datetime
from typing import Any, Final

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from app.observe.verdict_report import place

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every page: only own resources, nothing inline, no framing; not cached, so that no page remains after signing
out."""

MINUS: Final = "−"
NONE: Final = "–"


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
    made.filters |= {"number": number, "count": count, "size": size, "when": when, "words": words}
    made.globals["place"] = place
    return made


_ENVIRONMENT: Final = _environment()
