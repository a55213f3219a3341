"""`python -m app bench`: the benchmarks' commands."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from app.bench.progress import ReportProgress

TABLE_WIDTH: Final = 168
"""Characters of the widest table; without it a pipe or log counts as 80 wide."""

bench = typer.Typer(no_args_is_help=True, help="Benchmarks of this machine.")


@contextmanager
def _bar(first: str = "starting") -> Iterator[ReportProgress]:
    """Show a progress bar on standard error; yield the callback that updates it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(first, total=1.0)
        yield lambda now, share: bar.update(task, description=now, completed=share)


def _print(tables: RenderableType) -> None:
    Console(width=max(Console().width, TABLE_WIDTH)).print(tables)


@bench.command("screening")
def bench_screening(
    quick: Annotated[bool, typer.Option(help="An eighth of the modules")] = False,
    directory: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="For the references, 3 GB, removed afterwards")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result to this file")] = None,
) -> None:
    """Time screening at Llama-2-7B size against the floor of memory and the published algorithms. A few minutes."""
    from app.bench.screening.report import result_json, tables
    from app.bench.screening.run import Options, run

    options = Options.quick(directory) if quick else Options(directory=directory)
    with _bar() as progress:
        result = run(options, progress)
    _print(tables(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result_json(result), indent=1) + "\n", encoding="utf-8")


@bench.command("uploads")
def bench_uploads(
    large: Annotated[
        bool, typer.Option(help="70B's shapes too: a file of 1.7 GB, and three times that in memory")
    ] = False,
    beside: Annotated[
        str | None, typer.Option(help="Command to time on the same files, which are added to it: `adaptersentry scan`")
    ] = None,
    directory: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="For references and adapters, removed afterwards")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result to this file")] = None,
) -> None:
    """Time uploads from a file to served bytes, against reading and hashing the file. A minute."""
    from app.bench.screening.uploads import cases, result_json, run, table

    with _bar() as progress:
        machine, found = run(cases(large=large), directory, beside, progress)
    _print(table(machine, found))
    if json_file is not None:
        json_file.write_text(json.dumps(result_json(machine, found), indent=1) + "\n", encoding="utf-8")


@bench.command("safety")
def bench_safety(
    quick: Annotated[
        bool, typer.Option(help="Two seeds, two fine-tunes: the whole path, figures that say little")
    ] = False,
    size: Annotated[
        str, typer.Option(help="Model family: small, medium, large (which wants a GPU), or smollm2 (real text)")
    ] = "small",
    cache: Annotated[
        Path, typer.Option(file_okay=False, help="Where trained models and finished rows are kept, for going on later")
    ] = Path("gateway-data/laboratory"),
    output: Annotated[Path, typer.Option(file_okay=False, help="Where the results are written")] = Path(
        "safety-results"
    ),
    only_cached: Annotated[bool, typer.Option(help="Report on the seeds already finished, and train nothing")] = False,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="smollm2: further harmful prompts, as FORMAT=FILE (a format of `canaries import`)"),
    ] = None,
    canaries: Annotated[
        bool, typer.Option("--canaries", help="The gateway with canaries against adversaries, instead of the methods")
    ] = False,
) -> None:
    """Measure how screening changes harm and skill, method by method, on models trained here. Hours; resumable."""
    from app.bench.safety.plan import SIZES
    from app.bench.safety.smollm2.plan import NAME

    if size not in (*SIZES, NAME):
        raise typer.BadParameter(f"{size} is none of {', '.join((*SIZES, NAME))}", param_hint="--size")
    if canaries and size != "small":
        raise typer.BadParameter("only the small models are measured with canaries", param_hint="--size")
    if only_cached and size == NAME:
        raise typer.BadParameter(f"{NAME} writes its results after every row", param_hint="--only-cached")
    with _bar() as progress:
        if size == NAME:
            tables = _on_real_text(cache, output, quick, prompts or (), progress)
        else:
            from app.bench.canaries.command import run as run_canaries
            from app.bench.safety.command import Options, run

            options = Options(size, cache, output, quick=quick, only_cached=only_cached, canaries=canaries)
            tables = (run_canaries if canaries else run)(options, progress)
    _print(tables)


def _on_real_text(
    cache: Path, output: Path, quick: bool, prompts: Sequence[str], progress: ReportProgress
) -> RenderableType:
    from app.bench.safety.smollm2.command import Options, run
    from app.evaluate.importing import FORMATS

    given = [(kind, Path(file)) for kind, _, file in (one.partition("=") for one in prompts)]
    if unknown := [kind for kind, _ in given if kind not in FORMATS]:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(FORMATS)}", param_hint="--prompts")
    return run(Options(cache, output, quick, given), progress)


@bench.command("decode")
def bench_decode() -> None:
    """Time decoding through the real engine with an adapter intact, half cut out, and empty. A minute or two."""
    from app.bench.engine.decode import run

    with _bar("starting the engine") as progress:
        table = run(progress)
    _print(table)


@bench.command("gateway")
def bench_gateway(
    quick: Annotated[bool, typer.Option(help="1 and 16 at once only, shorter")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Only this target (may be given again)")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write every figure to this file")] = None,
) -> None:
    """Measure the latency a gateway adds, beside nginx, vllm-router and litellm. Quick: two minutes."""
    from app.bench.relay.report import result_json, tables
    from app.bench.relay.run import Options, run

    chosen = tuple(only or ())
    options = Options.quick(chosen) if quick else Options(only=chosen)
    with _bar() as progress:
        result = run(options, progress)
    _print(tables(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result_json(result), indent=1) + "\n", encoding="utf-8")


@bench.command("capacity")
def bench_capacity(
    engines: Annotated[int, typer.Option(min=1, help="Engines behind the gateway")] = 4,
    rate: Annotated[float, typer.Option(min=0, help="Requests a second in all")] = 50.0,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters, on q and v of Llama-2-7B")] = 16,
    versions: Annotated[int, typer.Option(min=1, help="Versions kept of each adapter")] = 2,
    gpu_slots: Annotated[int, typer.Option(min=1, help="max_loras of an engine")] = 8,
    host_slots: Annotated[int, typer.Option(min=1, help="max_cpu_loras of an engine")] = 256,
    costs: Annotated[Path | None, typer.Option(exists=True, help="Costs of your own, made with --measure")] = None,
    measure: Annotated[
        Path | None, typer.Option(help="Measure costs on this machine into this file first; needs --screening")
    ] = None,
    screening: Annotated[
        Path | None, typer.Option(exists=True, help="What `bench screening --json` wrote on this machine")
    ] = None,
) -> None:
    """Plan capacity for 100, 10,000 and 1,000,000 adapters: calculated and simulated, from measured costs. Seconds."""
    from app.bench.capacity.costs import KEPT, read_costs, write_costs
    from app.bench.capacity.costs import measure as measured
    from app.bench.capacity.plan import Assumptions, run
    from app.bench.capacity.report import markdown

    if measure is not None:
        if screening is None:
            raise typer.BadParameter("needs --screening FILE", param_hint="--measure")
        with _bar() as progress:
            write_costs(measured(screening, progress), measure)
    given = Assumptions(engines, rank, versions=versions, gpu_slots=gpu_slots, host_slots=host_slots, rate=rate)
    typer.echo(markdown(run(given, read_costs(measure or costs or KEPT))), nl=False)


@bench.command("soak")
def bench_soak(
    minutes: Annotated[float, typer.Option(min=0.05, help="How long")] = 10.0,
    rate: Annotated[float, typer.Option(min=1.0, help="Requests a second")] = 20.0,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds from one new version to the next")] = 3.0,
    engine: Annotated[bool, typer.Option("--engine", help="Over the demo's real engine, not its stand-in")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write every figure to this file")] = None,
) -> None:
    """Sustain a load while versions are replaced; report errors and the gateway's memory. Exit status 1 on any error."""
    from app.bench.engine.soak import Options, result_json, run, table

    with _bar() as progress:
        soaked = run(Options(minutes, rate, every, engine), progress)
    _print(table(soaked))
    if json_file is not None:
        json_file.write_text(json.dumps(result_json(soaked), indent=1) + "\n", encoding="utf-8")
    if soaked.errors:
        raise typer.Exit(1)


@bench.command("registering")
def bench_registering(
    quick: Annotated[bool, typer.Option(help="One short round")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result to this file")] = None,
) -> None:
    """Time between tokens of chats while adapters register and are asked canaries. Three minutes on the demo's engine."""
    from app.bench.engine.registering import PERIOD_S, ROUNDS, result_json, run, table

    with _bar() as progress:
        found = run(progress, 1 if quick else ROUNDS, 1.0 if quick else PERIOD_S)
    _print(table(found))
    if json_file is not None:
        json_file.write_text(json.dumps(result_json(found), indent=1) + "\n", encoding="utf-8")


@bench.command("hotload")
def bench_hotload(
    quick: Annotated[bool, typer.Option(help="An eighth of the layers, fewer rounds")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write every figure to this file")] = None,
) -> None:
    """Time an upload from its last byte to the new version's first token, by stage. Three minutes, 2 GB of disk."""
    from app.bench.engine.hotload import result_json, run, table

    with _bar() as progress:
        cases = run(progress, quick=quick)
    _print(table(cases))
    if json_file is not None:
        json_file.write_text(json.dumps(result_json(cases), indent=1) + "\n", encoding="utf-8")
