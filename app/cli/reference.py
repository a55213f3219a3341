"""`python -m app reference`: build references, and show what is in them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.cli.client import AsJson, err, fail, out, print_json
from app.domain.errors import Unavailable
from app.domain.policy import DEFAULT_ENERGY, DEFAULT_TOP_K, Policy
from app.observe.fitted_table import FittedTable
from app.observe.verdict_report import natural

if TYPE_CHECKING:
    from app.screen.reference.open import Reference

SHOWN_UNTOUCHED: Final = 8
"""Most modules that a warning names: a decoder layer has seven."""

INSPECTED: Final = ("shape", "‖V‖", "λ_max", "rounding", "error", "kept", "held", "inputs")
"""Columns of `reference inspect` beside the module's name."""

SHARES: Final = (0.2, 0.5, 0.7, 0.8, 0.9)
"""Shares of ‖V‖² for which `reference inspect` says how many singular triples modules need."""

SHOWN_FIELDS: Final = ("d_out", "d_in", "v_norm", "lambda_max", "rounding", "triples_error", "top_k", "outputs")
"""Fields of a module that `reference inspect --json` prints as they are."""

reference = typer.Typer(no_args_is_help=True, help="Build and inspect references.")


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
    as_json: AsJson = False,
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
    if as_json:
        print_json({"reference": str(out_dir), "digest": str(digest)})
        return
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
def reference_inspect(
    directory: Annotated[Path, typer.Argument(help="Reference directory")], as_json: AsJson = False
) -> None:
    """Show the content of a reference."""
    from app.screen.reference.open import open_reference, short_of_energy

    opened, policy = open_reference(directory, None), Policy(energy=DEFAULT_ENERGY, top_k=DEFAULT_TOP_K)
    described = _described(opened, policy)
    if as_json:
        print_json(described)
        return
    m = opened.manifest
    kind = "compact, without V" if m.compact else f"V in {m.dtype}"
    out.print(f"reference {opened.digest}: {kind}\n{held_summary(opened)}", soft_wrap=True, highlight=False)
    out.print(f"base      {m.base}\naligned   {m.aligned}", soft_wrap=True, highlight=False)
    legend = (
        "rounding: ‖V − V stored‖ / ‖V‖; error: the triples' largest residual / s₁; kept: inputs:outputs; held: share of "
        "‖V‖² that the kept inputs hold; inputs: what the default looks at"
    )
    out.print(legend, soft_wrap=True, highlight=False)
    if short := short_of_energy(opened, policy):
        few = f"in {short} modules all kept triples together hold less than {policy.energy:.0%} of ‖V‖²: build it with more"
        out.print(few, soft_wrap=True, highlight=False)
    out.print(f"left out: {', '.join(m.left_out) or 'nothing'}", soft_wrap=True, highlight=False)
    rows = [_row(module) for module in described["modules"]]
    out.print(FittedTable(("module", *INSPECTED), rows, INSPECTED))


def _row(module: dict[str, Any]) -> tuple[str, ...]:
    """Return a module's cells, as `INSPECTED` after its name."""
    numbers = [f"{module[one]:.4g}" for one in ("v_norm", "lambda_max", "rounding", "triples_error")]
    kept = ("", "", "")
    if module["held"] is not None:
        kept = (f"{module['top_k']}:{module['outputs']}", f"{module['held']:.3f}", str(module["looked_at"]))
    return (module["name"], f"{module['d_out']} × {module['d_in']}", *numbers, *kept)


def _described(opened: "Reference", policy: Policy) -> dict[str, Any]:
    """Return what `inspect` shows, by module. held, looked_at: of the triples kept; None without any."""
    m = opened.manifest
    modules = []
    for name in sorted(opened.modules, key=natural):
        info, kept = opened.info(name), opened.triples(name) is not None
        fields = {one: getattr(info, one) for one in SHOWN_FIELDS}
        held = opened.held(name) if kept else None
        looked_at = opened.singular_vectors(name, policy).r.shape[1] if kept else None
        modules.append({"name": name, **fields, "held": held, "looked_at": looked_at})
    about = {"compact": m.compact, "dtype": m.dtype, "left_out": list(m.left_out)}
    digests = {"digest": str(opened.digest), "base": str(m.base), "aligned": str(m.aligned)}
    return {**digests, **about, "modules": modules}


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
    as_json: AsJson = False,
) -> None:
    """Print what references of common models take on disk, by the number of singular triples kept."""
    from app.screen.reference.build import WIDEST
    from app.screen.reference.sizes import MODELS, TRIPLES, bytes_of

    kept = WIDEST.outputs if outputs is None else outputs
    if as_json:
        sizes = {model: bytes_of(shapes, TRIPLES, kept) for model, shapes in MODELS.items()}
        columns = ("v_bfloat16", *map(str, TRIPLES))
        print_json({model: dict(zip(columns, found, strict=True)) for model, found in sizes.items()})
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="GB on disk, by singular triples", title_justify="left")
    for column in ("model", "V, bfloat16", *map(str, TRIPLES)):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for model, shapes in MODELS.items():
        v, *compact = (size / 1e9 for size in bytes_of(shapes, TRIPLES, kept))
        table.add_row(model, f"{v:.1f}", *(f"{size:.2f}" for size in compact))
    out.print(table)
    out.print(f"with {kept} outputs; a compact reference has the triples only, any other V as well", highlight=False)
