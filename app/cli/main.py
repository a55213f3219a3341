"""Main program of the command line: python -m app serve | status | chat | adapters | screen | reference | …."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from pydantic import ValidationError

from app import __version__
from app.cli.adapters import adapters
from app.cli.audit_log import audit
from app.cli.bench import bench
from app.cli.canaries import canaries
from app.cli.client import AS_IT_CAME, CHANGED, REJECTED, err, fail, out
from app.cli.demo import demo
from app.cli.gateway import chat, status
from app.cli.keys import keys
from app.cli.reference import reference
from app.cli.store_audit import store
from app.cli.store_move import move_command
from app.cli.store_sign import sign_command
from app.cli.tenants import tenants
from app.cli.usage import usage
from app.cli.verify import verify
from app.cli.webhooks import webhooks
from app.domain.errors import GatewayError
from app.domain.lora import ServingDtype
from app.domain.policy import DEFAULT_ENERGY, DEFAULT_TAU, DEFAULT_TOP_K, Action, Comparison, Towers, default_action
from app.domain.verdict import Outcome
from app.observe.verdict_report import heat_map, notes, score_table
from app.server.open_files import raise_open_files

EXIT = dict.fromkeys(Outcome, CHANGED) | {Outcome.CLEAN: AS_IT_CAME, Outcome.REJECTED: REJECTED}
"""Exit status of `screen`."""

cli = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Screens LoRA adapters in front of vLLM.",
)
for group, name in (
    (adapters, "adapters"),
    (reference, "reference"),
    (canaries, "canaries"),
    (keys, "keys"),
    (tenants, "tenants"),
    (webhooks, "webhooks"),
    (audit, "audit"),
    (store, "store"),
    (demo, "demo"),
    (bench, "bench"),
):
    cli.add_typer(group, name=name)
store.command("move")(move_command)
store.command("sign")(sign_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"lora-gateway {__version__}\n")
        raise typer.Exit


@cli.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit")
    ] = False,
) -> None:
    """Handle the options before the command."""


def main() -> None:
    """Run a command; expected errors print one line and exit with status 1, without a traceback."""
    raise_open_files()  # a reference of 500 modules has a thousand files, which other commands open too
    try:
        cli()
    except GatewayError as error:
        fail(_explained(error))
    except OSError as error:
        fail(f"{error.filename or 'system'}: {error.strerror or error}")
    except httpx.TransportError as error:
        fail(f"cannot reach the gateway at {error.request.url.copy_with(path='')}: {error}")
    except httpx.InvalidURL as error:
        fail(f"the gateway's address is not a URL: {error}")


def _explained(error: GatewayError) -> str:
    """Return an error's message and remedy; those of every fault if there are several."""
    if len(error.details) < 2:
        return f"{error.message}\n{error.hint}"
    return "\n".join(f"{fault.code}: {fault.message}\n  {fault.what_to_do}" for fault in error.details)


def _print_settings(wanted: bool) -> None:
    if wanted:
        from app.cli.settings_help import settings_help

        out.print(settings_help())
        raise typer.Exit


@cli.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def serve(
    context: typer.Context,
    demo: Annotated[bool, typer.Option(help="The demo's model and reference, open, on loopback only")] = False,
    _: Annotated[
        bool, typer.Option("--help", callback=_print_settings, is_eager=True, help="Show every setting and exit")
    ] = False,
) -> None:
    """Run the gateway. Each setting is a flag (--max-loras 8) or a variable (GATEWAY_MAX_LORAS=8); see docs/settings.md."""
    from app.domain.outside import LOOPBACK
    from app.server.app import run
    from app.server.settings import Settings

    given = _flags(context.args)
    try:
        if demo:
            from app.demo.serving import serve_settings

            given = serve_settings() | given
            if given.get("host", "127.0.0.1") not in LOOPBACK:
                fail("the demo runs open, so it listens on loopback only")
        settings = Settings(**given)
    except ValidationError as error:
        fail("\n".join(map(_setting_at_fault, error.errors())), 2)
    run(settings)


def _setting_at_fault(error: Any) -> str:
    """Describe one of pydantic's errors in terms of flags and environment variables."""
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    name = str(error["loc"][0])
    problem = {"missing": "must be set", "extra_forbidden": "no such setting"}.get(error["type"], error["msg"])
    return f"--{name.replace('_', '-')} (GATEWAY_{name.upper()}): {problem}"


def _flags(args: list[str]) -> dict[str, Any]:
    """Parse `--max-loras 8 --open` into {"max_loras": "8", "open": "true"}; Settings checks names and values."""
    given: dict[str, Any] = {}
    rest = iter(args)
    pending: str | None = None
    for arg in rest:
        if arg.startswith("--"):
            if pending is not None:
                given[pending] = "true"
            name, equals, value = arg[2:].partition("=")
            pending = name.replace("-", "_")
            if equals:
                given[pending], pending = value, None
        elif pending is None:
            fail(f"unexpected argument {arg!r}", 2)
        else:
            given[pending], pending = arg, None
    if pending is not None:
        given[pending] = "true"
    return given


@cli.command("docs", hidden=True)
def docs() -> None:
    """Write the generated tables of docs/ anew, in a checkout."""
    from app.cli.docs import write_tables

    write_tables()


@cli.command("screen")
def screen_adapter(
    path: Annotated[Path, typer.Argument(help="An adapter's directory, its .safetensors file, or a trainer's output")],
    reference_dir: Annotated[Path, typer.Option("--reference", help="Reference directory")],
    tau: Annotated[float | None, typer.Option(help="Threshold (IQRs)")] = None,
    max_block_score: Annotated[float | None, typer.Option(help="Budget of one block's aggregate score")] = None,
    max_adapter_score: Annotated[float | None, typer.Option(help="Budget of the adapter's aggregate score")] = None,
    comparison: Annotated[
        Comparison | None, typer.Option(metavar="NAME", help="input, alignment or projection")
    ] = None,
    action: Annotated[Action | None, typer.Option(metavar="NAME", help="prune or project")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Most inputs of a module that are measured")] = DEFAULT_TOP_K,
    towers: Annotated[
        Towers, typer.Option(metavar="NAME", help="Modules of towers and projectors: cut, reject or serve")
    ] = Towers.CUT,
    dtype: Annotated[
        ServingDtype, typer.Option(metavar="DTYPE", help="Serving dtype: float32, float16 or bfloat16")
    ] = ServingDtype.BFLOAT16,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON")] = False,
) -> None:
    """Measure one adapter on disk. Exit status: 0 clean, 3 pruned, projected or emptied, 2 rejected or invalid."""
    from app.domain.manifest import verdict_json
    from app.domain.policy import Policy
    from app.gateway.directory_screening import screen_directory

    action = action or default_action(comparison or Comparison.INPUT)
    given: dict[str, Any] = {"tau": DEFAULT_TAU[action] if tau is None else tau, "comparison": comparison}
    given |= {"action": action, "top_k": top_k, "energy": DEFAULT_ENERGY, "towers": towers}
    given |= {"max_block_score": max_block_score, "max_adapter_score": max_adapter_score}
    policy = Policy(**{name: value for name, value in given.items() if value is not None})
    try:
        verdict = screen_directory(path, reference_dir, policy, dtype)
    except GatewayError as error:
        fail(_explained(error), EXIT[Outcome.REJECTED])
    report = verdict_json(verdict)
    for note in notes(report):
        err.print(f"note: {note}", highlight=False, soft_wrap=True)
    if as_json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        out.print(score_table(report), heat_map(report))
    sys.exit(EXIT[verdict.outcome])


for command in (status, chat, usage, verify):  # after `serve` and `screen`: `--help` lists them in this order
    cli.command(command.__name__)(command)
