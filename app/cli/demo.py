"""`python -m app demo [train | measure]`: the demo's commands."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

demo = typer.Typer(invoke_without_command=True, help="The tour: a trained model pair, four adapters, one gateway.")
out, err = Console(), Console(stderr=True)

DEMO_TOP_K = 16
"""Singular triples kept in the demo's reference: enough to try the policy, small enough for a repository."""


@demo.callback()
def demo_tour(
    context: typer.Context,
    once: Annotated[bool, typer.Option(help="End after the tour instead of serving on")] = False,
    port: Annotated[int, typer.Option(help="Port to serve on; 0: a free one")] = 8080,
    real_text: Annotated[
        bool, typer.Option("--real-text", help="With a language model that speaks English; made on the first run")
    ] = False,
    cache: Annotated[
        Path, typer.Option(file_okay=False, help="With --real-text: where its models are kept for the next run")
    ] = Path("gateway-data/laboratory"),
) -> None:
    """Run the tour, then keep serving until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    if real_text:
        from app.bench.safety.smollm2.tour import tour as tour_on_real_text

        sys.exit(tour_on_real_text(cache, once=once, port=port))
    from app.demo.tour import tour

    sys.exit(tour(once=once, port=port))


@demo.command("train")
def demo_train(
    out_dir: Annotated[Path | None, typer.Option("--out", help="Default: the demo's own assets")] = None,
) -> None:
    """Train the demo's models and adapters again, and build their reference."""
    from app.demo.assets import ASSETS, EVADING
    from app.demo.evasion import train_evading
    from app.demo.train import train_all
    from app.screen.reference.build import BuildOptions, build_reference

    where = out_dir or ASSETS
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err) as bar:
        task = bar.add_task("training", total=1.0)
        train_all(where, lambda stage, share: bar.update(task, description=stage, completed=share))
        shutil.rmtree(where / "reference", ignore_errors=True)
        bar.update(task, description="reference", completed=0.0)
        options = BuildOptions(top_k=DEMO_TOP_K)
        digest = build_reference(where / "base", where / "aligned", where / "reference", options, lambda *_: None)
        train_evading(where, lambda share: bar.update(task, description=EVADING, completed=share))
    out.print(f"{where}\nreference {digest}", highlight=False)


@demo.command("measure")
def demo_measure() -> None:
    """Score the demo's adapters before and after screening on all held-out questions, beside a random control."""
    from app.demo.measure import measure

    with out.status("loading") as status:
        table = measure(status.update)
    out.print(table)
