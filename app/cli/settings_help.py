"""Help of `python -m app serve`: every setting by subject, with its default and meaning."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.cli.docs import default_of
from app.server.settings import Settings

USAGE = """usage: python -m app serve [--demo] [--SETTING VALUE …]

Run the gateway. Each setting is a flag (--max-loras 8) or a variable (GATEWAY_MAX_LORAS=8).
--demo: the demo's model and reference, open, on loopback only. More: docs/settings.md"""


def settings_help() -> RenderableType:
    """Return the help: one table a subject, in the order of the classes that Settings is made of."""
    parts: list[RenderableType] = [Text(USAGE)]
    for subject in Settings.__bases__:
        rows = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
        rows.add_column(no_wrap=True)
        rows.add_column(overflow="fold")
        for name in subject.__annotations__:
            field = Settings.model_fields[name]
            default = default_of(field).strip("`")
            rows.add_row(f"--{name.replace('_', '-')}", Text(f"{field.description} [{default}]"))
        about = (subject.__doc__ or "").strip().splitlines()[0].removeprefix("Settings of ").rstrip(".")
        parts += [Text(f"\n{about[0].upper()}{about[1:]}", style="bold"), rows]
    return Group(*parts)
