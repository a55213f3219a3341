"""Main program of the command line: python -m app serve | status | chat | adapters | screen | reference | …."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import httpx
import typer
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from app import __version__
from app.cli.adapters import adapters
from app.cli.audit_log import audit
from app.cli.bench import bench
from app.cli.canaries import canaries
from app.cli.client import AS_IT_CAME, CHANGED, REJECTED, err, fail, out
from app.cli.demo import demo
from app.cli.gateway import chat, status
from app.cli.keys import keys
from app.cli.store_audit import store
from app.cli.store_move import move_command
from app.cli.store_sign import sign_command
from app.cli.tenants import tenants
from app.cli.usage import usage
from app.cli.verify import verify
from app.cli.webhooks import webhooks
from app.domain.errors import GatewayError, Unavailable
from app.domain.lora import ServingDtype
from app.domain.policy import DEFAULT_ENERGY, DEFAULT_TAU, DEFAULT_TOP_K, Action, Comparison, Towers, default_action
from app.domain.verdict import Outcome
from app.observe.verdict_report import heat_map, notes, score_table
from app.server.open_files import raise_open_files

if TYPE_CHECKING:
    from app.screen.reference.open import Reference

SHOWN_UNTOUCHED: Final = 8
"""Most modules that a warning names: a decoder layer has seven."""

TABLE_COLUMNS: Final = 112
"""Columns that `reference inspect` needs for a model with two digits of layers."""

SHARES: Final = (0.2, 0.5, 0.7, 0.8, 0.9)
"""Shares of ‖V‖² for which `reference inspect` says how many singular triples modules need."""

EXIT = dict.fromkeys(Outcome, CHANGED) | {Outcome.CLEAN: AS_IT_CAME, Outcome.REJECTED: REJECTED}
"""Exit status of `screen`."""

cli = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Screens LoRA adapters in front of vLLM.",
)
reference = typer.Typer(no_args_is_help=True, help="Build and inspect references.")
cli.add_typer(reference, name="reference")
cli.add_typer(adapters, name="adapters")
cli.add_typer(keys, name="keys")
cli.add_typer(tenants, name="tenants")
cli.add_typer(webhooks, name="webhooks")
cli.add_typer(audit, name="audit")
cli.add_typer(demo, name="demo")
cli.add_typer(bench, name="bench")
cli.add_typer(store, name="store")
cli.add_typer(canaries, name="canaries")
store.command("move")(move_command)
store.command("sign")(sign_command)
cli.command("status")(status)
cli.command("chat")(chat)
cli.command("verify")(verify)
cli.command("usage")(usage)


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


# ---- references and screening ------------------------------------------------------------------------------------


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=err)


@reference.command("build")
def reference_build(
    base: Annotated[str, typer.Option(help="Unaligned checkpoint: a directory or a hub id")],
    aligned: Annotated[str, typer.Option(help="Aligned checkpoint: a directory or a hub id")],
    out_dir: Annotated[Path, typer.Option("--out", help="Directory to write; must not exist")],
    energy: Annotated[
        float | None,
        typer.Option(help="Keep as many singular triples of each module as hold this share of ‖V‖²; default: 0.9"),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Keep at most this many, or, without --energy, exactly; default: at most 512")
    ] = None,
    outputs: Annotated[int | None, typer.Option(help="Outputs (left singular vectors) to keep; default: 64")] = None,
    modules: Annotated[str | None, typer.Option(help="Only modules whose name matches this glob")] = None,
    compact: Annotated[bool, typer.Option(help="Leave V out: megabytes, for the `input` comparison only")] = False,
    experts: Annotated[bool, typer.Option(help="Measure the experts of a mixture, too: most of its weights")] = True,
) -> None:
    """Build a reference from a base checkpoint and its aligned counterpart, tensor by tensor."""
    from app.screen.reference.build import WIDEST, BuildOptions, build_reference
    from app.screen.reference.open import open_reference

    try:
        kept = WIDEST.outputs if outputs is None else outputs
        options = BuildOptions(
            top_k=top_k, energy=energy, outputs=kept, modules=modules, compact=compact, experts=experts
        )
    except ValueError as error:
        fail(str(error), 2)
    with _progress() as bar:
        task = bar.add_task("reading")

        def show(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        def suspect(sign: str) -> None:
            err.print(f"warning: are --base and --aligned swapped? {sign}", highlight=False, soft_wrap=True)

        try:
            digest = build_reference(base, aligned, out_dir, options, show, suspect)
        except Unavailable as error:
            fail(error.message)  # the hint would be to run this command
    built = open_reference(out_dir, digest, verify_files=False)
    _tell_untouched(built)
    out.print(f"{out_dir}\n{held_summary(built)}", highlight=False, soft_wrap=True)
    out.print(f"GATEWAY_REFERENCE_DIGEST={digest}", highlight=False, soft_wrap=True)


def _tell_untouched(opened: "Reference") -> None:
    """Warn of the modules that are the same in both checkpoints: nothing can be measured there."""
    modules, alive = opened.modules, set(opened.alive)
    untouched = [name for name in modules if name not in alive]
    if untouched:
        some = ", ".join(untouched[:SHOWN_UNTOUCHED]) + (", …" if len(untouched) > SHOWN_UNTOUCHED else "")
        err.print(
            f"warning: {len(untouched)} of {len(modules)} modules are the same in both checkpoints: {some}\n"
            "An adapter on them cannot be scored there. GATEWAY_UNSCORABLE decides: reject refuses the whole adapter (the "
            "default), prune serves it without these modules, keep serves them unmeasured.",
            highlight=False,
            soft_wrap=True,
        )


@reference.command("inspect")
def reference_inspect(directory: Path) -> None:
    """Show the content of a reference."""
    from app.domain.policy import Policy
    from app.screen.reference.open import open_reference, short_of_energy

    opened = open_reference(directory, None)
    m = opened.manifest
    kind = "compact, without V" if m.compact else f"V in {m.dtype}"
    out.print(f"reference {opened.digest}: {kind}\n{held_summary(opened)}", soft_wrap=True, highlight=False)
    out.print(f"base      {m.base}\naligned   {m.aligned}", soft_wrap=True, highlight=False)
    policy = Policy(energy=DEFAULT_ENERGY, top_k=DEFAULT_TOP_K)
    legend = (
        "rounding: ‖V − V stored‖ / ‖V‖; error: the triples' largest residual / s₁; kept: inputs:outputs; held: share of "
        "‖V‖² that the kept inputs hold; inputs: what the default looks at"
    )
    out.print(legend, soft_wrap=True, highlight=False)
    if short := short_of_energy(opened, policy):
        few = f"in {short} modules all kept triples together hold less than {policy.energy:.0%} of ‖V‖²: build it with more"
        out.print(few, soft_wrap=True, highlight=False)
    out.print(f"left out: {', '.join(m.left_out) or 'nothing'}", soft_wrap=True, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("module", "shape", "‖V‖", "λ_max", "rounding", "error", "kept", "held", "inputs"):
        table.add_column(column, no_wrap=True, overflow="fold", justify="left" if column == "module" else "right")
    for name, shape in sorted(opened.modules.items()):
        info = opened.info(name)
        numbers = [f"{number:.4g}" for number in (info.v_norm, info.lambda_max, info.rounding, info.triples_error)]
        kept = ("", "", "")
        if opened.triples(name) is not None:
            looked_at = opened.singular_vectors(name, policy).r.shape[1]
            kept = (f"{info.top_k}:{info.outputs}", f"{opened.held(name):.3f}", str(looked_at))
        table.add_row(name, f"{shape.d_out} × {shape.d_in}", *numbers, *kept)
    Console(width=max(out.width, TABLE_COLUMNS)).print(table)  # never truncate a number


def held_summary(opened: "Reference") -> str:
    """Return what a reference keeps: singular triples, the share of ‖V‖² they hold, and the number that shares need."""
    held = sorted((opened.held(name), name) for name in opened.alive)
    kept = sorted(opened.info(name).top_k for name in opened.alive)
    outputs = min(opened.info(name).outputs for name in opened.alive)
    least, name = held[0]
    return (
        f"singular triples a module: {kept[0]} to {kept[-1]}, median {kept[len(kept) // 2]}; they hold {least:.3f} "
        f"({name}) to {held[-1][0]:.3f} of ‖V‖², median {held[len(held) // 2][0]:.3f}; outputs: {outputs} or more\n"
        f"needed, median and most: {'; '.join(_needed(opened, energy) for energy in SHARES)}"
    )


def _needed(opened: "Reference", energy: float) -> str:
    counts = [opened.needs(name, energy) for name in opened.alive]
    known = sorted(count for count in counts if count is not None)
    if len(known) < len(counts):
        return f"{energy:g}: more than is kept in {len(counts) - len(known)} modules"
    return f"{energy:g}: {known[len(known) // 2]}, {known[-1]}"


@reference.command("sizes")
def reference_sizes(
    outputs: Annotated[int | None, typer.Option(min=0, help="Outputs kept of each module; default: 64")] = None,
) -> None:
    """Print what references of common models take on disk, by the number of singular triples kept."""
    from app.screen.reference.build import WIDEST
    from app.screen.reference.sizes import MODELS, TRIPLES, bytes_of

    kept = WIDEST.outputs if outputs is None else outputs
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="GB on disk, by singular triples", title_justify="left")
    for column in ("model", "V, bfloat16", *map(str, TRIPLES)):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for model, shapes in MODELS.items():
        v, *compact = (size / 1e9 for size in bytes_of(shapes, TRIPLES, kept))
        table.add_row(model, f"{v:.1f}", *(f"{size:.2f}" for size in compact))
    out.print(table)
    out.print(f"with {kept} outputs; a compact reference has the triples only, any other V as well", highlight=False)


@cli.command("screen")
def screen_adapter(
    path: Annotated[Path, typer.Argument(help="An adapter's directory, its .safetensors file, or a trainer's output")],
    reference_dir: Annotated[Path, typer.Option("--reference", help="Reference directory")],
    tau: Annotated[float | None, typer.Option(help="Threshold (IQRs)")] = None,
    max_block_score: Annotated[float | None, typer.Option(help="Budget of one block's aggregate score")] = None,
    max_adapter_score: Annotated[float | None, typer.Option(help="Budget of the adapter's aggregate score")] = None,
    comparison: Annotated[Comparison | None, typer.Option(help="input, alignment or projection")] = None,
    action: Annotated[Action | None, typer.Option(help="prune or project")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Most inputs of a module that are measured")] = DEFAULT_TOP_K,
    towers: Annotated[Towers, typer.Option(help="Modules of towers and projectors: cut, reject or serve")] = Towers.CUT,
    dtype: Annotated[ServingDtype, typer.Option(help="Serving dtype")] = ServingDtype.BFLOAT16,
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
