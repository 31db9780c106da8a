"""The command line: `pyscaling study | fit | compare | isoflop | plan | report | laws`.

Everything heavy is imported inside the commands, so that --help is instant. A user's mistake prints one message and
exits with 2.
"""

import contextlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pyscaling.fitting import Fit
    from pyscaling.laws import Law
    from pyscaling.report.analysis import Analysis, HeldOutTest, LawChoice
    from pyscaling.tables import Runs

app = typer.Typer(
    help="Scaling laws for neural networks: train a grid of small models, fit the laws, plan the large one.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

TableArgument = Annotated[
    Path,
    typer.Argument(metavar="RUNS", help="Table of runs: .csv, .tsv, .jsonl, .json or .parquet.", show_default=False),
]
LawOption = Annotated[
    str,
    typer.Option(
        help="A law by name (see `pyscaling laws`) or an expression, whose names that are columns are variables."
    ),
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option("--column", "-c", metavar="NAME=HEADER", help="Header of a column, as N=params; may be repeated."),
]
ObjectiveOption = Annotated[str, typer.Option(help="huber, lad (least absolute deviations) or gaussian.")]
DeltaOption = Annotated[float, typer.Option(help="Where the Huber loss turns linear, in units of the residual.")]
ResidualOption = Annotated[str, typer.Option(help="log (of ln L) or raw (of L).")]
BootstrapOption = Annotated[int, typer.Option(min=0, help="Bootstrap resamples behind the intervals.")]
LevelOption = Annotated[float, typer.Option(help="Level of all intervals, between 0 and 1.")]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result as JSON.")]
PlotOption = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Also draw it: .png, .pdf or .svg.")]


@contextlib.contextmanager
def one_clear_message() -> Iterator[None]:
    """Turns errors that a user can mend into one message on stderr and exit code 2.

    Warnings of fits and of isoflop are dropped: the result, which says the same, is always printed.
    """
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"fit of |isoflop |R\^2 of ", category=UserWarning)
            yield
    except (ValueError, OSError) as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "tokenizers", "safetensors", "triton"):
            raise
        _fail(f"this command needs {error.name}: pip install 'pyscaling[train]'.")
    except RuntimeError as error:
        from pyscaling.study.store import StudyError

        if not isinstance(error, StudyError):
            raise
        _fail(str(error))
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. The same command goes on where this one stopped.", err=True)
        raise typer.Exit(130) from None


def _fail(message: str) -> None:
    typer.secho("Error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(message, err=True)
    raise typer.Exit(2) from None


def _version(asked: bool) -> None:
    if asked:
        from pyscaling import __version__

        typer.echo(f"pyscaling {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Scaling laws for neural networks: train a grid of small models, fit the laws, plan the large one."""


@app.command("fit")
def fit_command(
    table: TableArgument,
    law: LawOption = "chinchilla",
    objective: ObjectiveOption = "huber",
    delta: DeltaOption = 1e-3,
    residual: ResidualOption = "log",
    column: ColumnOption = None,
    response: Annotated[str | None, typer.Option(help="Column that the law gives.  [default: loss]")] = None,
    variable: Annotated[
        list[str] | None,
        typer.Option(help="A variable of an expression; may be repeated.  [default: its names that are columns]"),
    ] = None,
    positive: Annotated[
        list[str] | None,
        typer.Option(help="The parameters of an expression that are positive; may be repeated.  [default: all]"),
    ] = None,
    fixed: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A parameter that is known; may be repeated.")
    ] = None,
    bounds: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LOW:HIGH", help="Bounds of a parameter, an open end left empty; may be repeated."),
    ] = None,
    tied: Annotated[
        list[str] | None, typer.Option(metavar="NAME,NAME", help="Parameters that share one value; may be repeated.")
    ] = None,
    starts: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT|FILE", help="Automatic starts, or a .csv of starts: a column a parameter.  [default: 64]"
        ),
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of weights.")] = None,
    noise: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE|COLUMN", help="Known standard deviation of the residuals, with --objective gaussian."
        ),
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Column of data sets or architectures, each with parameters of its own.")
    ] = None,
    shared: Annotated[
        list[str] | None, typer.Option(help="A parameter that the groups have in common; may be repeated.")
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="Column of what shares its noise, as a training run.")] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="Also profile this parameter; its interval may be open. May be repeated.")
    ] = None,
    bootstrap: BootstrapOption = 4000,
    level: LevelOption = 0.9,
    json: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """Fit a law to a table of runs and say how sure it is.

    The table needs the law's variables and the loss; the usual headers are recognised, others are named with --column.
    C is 6ND where it is missing, and D = C/6N where D is. A law of your own is an expression: its names that are columns
    are variables, as x in --law "E + K*x**-p" --response acc.
    """
    with one_clear_message():
        from pyscaling.fitting.fit import law_over

        _check_level(level)
        _check_outputs(json, plot)
        if bootstrap == 1:
            raise ValueError("--bootstrap 1 gives no interval; 0 skips it, 1,000 or more make a steady one.")
        runs = _read(table, column)
        sigma = float(noise) if noise is not None and _is_number(noise) else noise
        columns = {"response": response, "weights": weights, "noise": sigma, "group": group, "cluster": cluster}
        for option, name in [*columns.items(), *(("variable", name) for name in variable or ())]:
            if isinstance(name, str) and name not in runs:
                raise ValueError(
                    f"--{option} {name!r} is no column of {runs.source}, which holds {', '.join(runs.columns)}."
                )
        fitted = _fit_table(
            runs,
            law_over(law, runs, variables=variable or (), positive=positive or (), response=response),
            objective,
            delta,
            residual,
            starts=_starts(starts),
            weights=weights,
            noise=sigma,
            bounds=_bounds(bounds),
            fixed={name: _number("--fixed", f"{name}={x}", x) for name, x in _pairs("--fixed", fixed, "alpha=0.35")},
            tied=_tied(tied),
            group=group,
            shared=shared,
        )
        profiles = {name: fitted.profile(name, cluster) for name in profile or ()}
        intervals = {}
        if bootstrap:
            boot = fitted.bootstrap(bootstrap, cluster, resample=None)
            intervals = {name: boot.interval(name, level=level) for name in fitted.params}
        _print_fit(fitted, intervals, level, bootstrap)
        for found in profiles.values():
            typer.echo(found.summary(level))
        if json is not None:
            _write_fit(
                json, fitted, intervals, {name: found.interval(level) for name, found in profiles.items()}, level
            )
        if plot is not None:
            _save(fitted.plot(), plot)


@app.command("compare")
def compare_command(
    table: TableArgument,
    law: Annotated[
        list[str] | None, typer.Option(help="A law to compare; may be repeated.  [default: all of N and D]")
    ] = None,
    holdout: Annotated[str, typer.Option(help='Runs to predict: "largest" (N), "compute" or a fraction.')] = "largest",
    threshold: Annotated[float | None, typer.Option(help="Hold out the runs of N (or C) above it.")] = None,
    objective: ObjectiveOption = "huber",
    delta: DeltaOption = 1e-3,
    residual: ResidualOption = "log",
    column: ColumnOption = None,
    level: LevelOption = 0.9,
    json: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """Rank laws by how well they predict the largest runs from the smaller ones."""
    with one_clear_message():
        from pyscaling.fitting import compare

        _check_level(level)
        _check_outputs(json, plot)
        choices: Any = {"objective": objective, "delta": delta, "residual": residual}
        which = float(holdout) if _is_number(holdout) else holdout
        _show(compare(_read(table, column), law or None, which, threshold, level=level, **choices), json, plot)


@app.command("isoflop")
def isoflop_command(
    table: TableArgument,
    budgets: Annotated[
        str | None, typer.Option(help="Column of the budgets, or budgets in FLOPs: 1e18,1e19.  [default: from C]")
    ] = None,
    method: Annotated[str, typer.Option(help="parabola or akima.")] = "parabola",
    tolerance: Annotated[float, typer.Option(help="Runs whose C differ by less than this share are one budget.")] = 0.1,
    column: ColumnOption = None,
    bootstrap: Annotated[int, typer.Option(min=2, help="Bootstrap resamples behind the intervals.")] = 1000,
    json: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """Find the best N and D at each compute budget, and their exponents (Hoffmann et al. 2022, approach 2)."""
    with one_clear_message():
        from pyscaling.fitting import isoflop

        _check_outputs(json, plot)
        which: Any = budgets
        if budgets and any(map(_is_number, budgets.split(","))):
            which = [_number("--budgets", budgets, flops) for flops in budgets.split(",")]
        _show(isoflop(_read(table, column), which, method, tolerance=tolerance, n=bootstrap), json, plot)


@app.command("plan")
def plan_command(
    table: TableArgument,
    compute: Annotated[
        str | None, typer.Option(help='Budget: "1e21" FLOPs, "3 EFLOPs", "10 PF-days".', show_default=False)
    ] = None,
    time: Annotated[str | None, typer.Option(help='Budget: "3 days" on --devices.', show_default=False)] = None,
    devices: Annotated[float | None, typer.Option(help="How many work at once.", show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help="H100, A100, MI300X, ...", show_default=False)] = None,
    utilisation: Annotated[float | None, typer.Option(help="Share of its peak.  [default: 0.4]")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="Budget in hours of --device.", show_default=False)] = None,
    dollars: Annotated[float | None, typer.Option(help="Budget in money.", show_default=False)] = None,
    price_per_gpu_hour: Annotated[float | None, typer.Option(help="In the same money.", show_default=False)] = None,
    target_loss: Annotated[
        float | None, typer.Option(help="Goal: the least compute for this loss.", show_default=False)
    ] = None,
    target_gain: Annotated[
        float | None, typer.Option(help="Goal: a loss so far below that of the run --over.", show_default=False)
    ] = None,
    over: Annotated[
        tuple[str, str] | None, typer.Option(help="The run to be bettered.", metavar="N D", show_default=False)
    ] = None,
    unique_tokens: Annotated[
        str | None, typer.Option(help='"40B": beyond them tokens repeat.', show_default=False)
    ] = None,
    max_tokens: Annotated[str | None, typer.Option(help="Most training tokens.", show_default=False)] = None,
    inference_tokens: Annotated[
        str | None, typer.Option(help='"1T": tokens to be served, which the budget pays for, too.', show_default=False)
    ] = None,
    serving_apart: Annotated[
        bool, typer.Option("--serving-apart", help="The budget is training's alone; serving is priced in beside it.")
    ] = False,
    max_parameters: Annotated[str | None, typer.Option(help="Largest N.", show_default=False)] = None,
    serving_memory: Annotated[
        str | None, typer.Option(help='"80 GB" that the weights must fit into, in 16 bits.', show_default=False)
    ] = None,
    law: LawOption = "chinchilla",
    objective: ObjectiveOption = "huber",
    delta: DeltaOption = 1e-3,
    residual: ResidualOption = "log",
    column: ColumnOption = None,
    bootstrap: Annotated[int, typer.Option(min=2, help="Bootstrap resamples behind the intervals.")] = 4000,
    level: LevelOption = 0.9,
    batch_tokens: Annotated[float | None, typer.Option(help="Batch to use, in tokens.")] = None,
    noise_scale: Annotated[float | None, typer.Option(help="Measured gradient noise scale, in tokens.")] = None,
    context: Annotated[int, typer.Option(min=1, help="Context of the model to be trained, in tokens.")] = 1024,
    vocab_size: Annotated[int, typer.Option(min=1, help="Its vocabulary.")] = 50257,
    json: JsonOption = None,
    plot: PlotOption = None,
    toml: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write it as a study that `pyscaling study` trains.")
    ] = None,
    corpus: Annotated[str, typer.Option(help="The study's text: a file, folder or glob.")] = "sotu",
) -> None:
    """What to train under a budget and limits, or what a goal needs, by a law fitted to a table of runs."""
    with one_clear_message():
        from pyscaling.planning import plan
        from pyscaling.planning.budget import budget_of

        _check_level(level)
        _check_outputs(json, plot)
        _check_output("--toml", toml)
        # before the table is read and fitted
        budget_of(compute, gpu_hours, dollars, time, device, devices, utilisation, price_per_gpu_hour)
        limits = {
            "compute": compute, "time": time, "devices": devices, "device": device, "utilisation": utilisation,
            "gpu_hours": gpu_hours, "dollars": dollars, "price_per_gpu_hour": price_per_gpu_hour, "target_loss": target_loss,
            "target_gain": target_gain, "over": dict(zip("ND", over, strict=True)) if over is not None else None,
            "unique_tokens": unique_tokens, "max_tokens": max_tokens, "inference_tokens": inference_tokens,
            "max_parameters": max_parameters, "serving_memory": serving_memory,
        }  # fmt: skip
        result = plan(
            _fit_table(_read(table, column), law, objective, delta, residual),
            **limits,  # type: ignore[arg-type]
            serving_apart=serving_apart,
            level=level,
            bootstrap=bootstrap,
            batch_tokens=batch_tokens,
            noise_scale=noise_scale,
            architecture={"context": context, "vocab_size": vocab_size},
        )
        _print_plan(result)
        if json is not None:
            _write(json, result.to_json())
        if plot is not None:
            _save(result.plot(), plot)
        if toml is not None:
            _write(toml, result.to_toml(corpus))


@app.command("study")
def study_command(
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC.toml]", help="A study of your own.", show_default=False)
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="A study that comes with pyscaling: smoke, cpu (the default), gpu-mini or gpu.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study.  [default: studies/NAME]")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, one thread each.  [default: cores]")] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="torch or triton, instead of the spec's; triton needs a GPU or TRITON_INTERPRET=1."),
    ] = None,
    cost: Annotated[bool, typer.Option("--cost", help="Only print what the study will cost; train nothing.")] = False,
) -> None:
    """Train a grid of models, fit the laws, plan ten times its largest budget and write a report.

    A study that was stopped goes on where it was; one that is done is only analysed again.
    """
    with one_clear_message():
        if spec is not None and preset is not None:
            raise ValueError(f"give either a spec ({spec}) or --preset {preset}, not both.")
        if backend not in (None, "auto", "torch", "triton"):
            raise ValueError(f"--backend={backend!r} is unknown; known are auto, torch and triton.")
        from pyscaling.study import Study

        study = Study.from_toml(spec, out) if spec is not None else Study.from_preset(preset or "cpu", out)
        if cost:
            from pyscaling.study.cost import predict_cost

            typer.echo(str(predict_cost(study.spec)))
            return
        done = study.finished
        if not done:
            typer.echo(f"Study {study.spec.name} in {study.folder}: {study.spec.description}")
        study.run(workers=workers, progress=True, backend=backend)  # type: ignore[arg-type]  # checked above
        if done:
            typer.echo(f"Study {study.spec.name} in {study.folder} is done: nothing to train.")
        _conclude(study.folder)


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study.", show_default=False)],
) -> None:
    """Analyse a study's finished runs again, and write its report."""
    with one_clear_message():
        _conclude(folder)


@app.command("laws")
def laws_command() -> None:
    """List the laws that are built in."""
    from pyscaling import laws

    table = _table("name", "L =", "source")
    for law in laws.LAWS.values():
        table.add_row(law.name, law.expression, law.source)
    _console().print(table)
    typer.echo('A law of your own: pyscaling fit runs.csv --law "E + A/N**alpha + B/D**beta"')


def _read(path: Path, column: list[str] | None) -> "Runs":
    from pyscaling.tables import read_runs

    runs = read_runs(path, dict(_pairs("--column", column, "N=params")))
    if runs.renamed:
        taken = ", ".join(f"{ours} = {theirs!r}" for ours, theirs in runs.renamed.items())
        typer.echo(f"{path.name}: {len(runs)} runs; columns taken: {taken}")
    return runs


def _pairs(option: str, given: list[str] | None, example: str) -> list[tuple[str, str]]:
    """The two sides of each NAME=... that an option was given."""
    pairs = []
    for item in given or ():
        name, sign, rest = item.partition("=")
        if not sign or not name.strip() or not rest.strip():
            raise ValueError(f"{option} {item!r} must be written as in {option} {example}.")
        pairs.append((name.strip(), rest.strip()))
    return pairs


def _number(option: str, given: str, text: str) -> float:
    if not _is_number(text):
        raise ValueError(f"{option} {given!r}: {text!r} is not a number.")
    return float(text)


def _bounds(given: list[str] | None) -> dict[str, tuple[float | None, float | None]]:
    """NAME=LOW:HIGH, where an end may be empty."""
    bounds = {}
    for name, ends in _pairs("--bounds", given, "E=1:2"):
        low, sign, high = ends.partition(":")
        if not sign:
            raise ValueError(f"--bounds {name}={ends!r} must be written as in --bounds E=1:2, or E=1: for an open end.")
        pair = [_number("--bounds", f"{name}={ends}", end) if end.strip() else None for end in (low, high)]
        bounds[name] = pair[0], pair[1]
    return bounds


def _tied(given: list[str] | None) -> list[list[str]]:
    for names in given or ():
        if "," not in names:
            raise ValueError(f"--tied {names!r} must name parameters that share one value, as in --tied alpha,beta.")
    return [[name.strip() for name in names.split(",")] for names in given or ()]


def _starts(given: str | None) -> Any:
    """A count, or starts from the rows of a file."""
    import csv

    if given is None:
        return "auto"
    if given.isdecimal():
        return int(given)
    if not Path(given).is_file():
        raise ValueError(f"--starts {given!r} is neither a count nor a .csv file with a column for each parameter.")
    with open(given, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    return [{name: _number("--starts", given, x or "") for name, x in row.items() if name} for row in rows]


def _fit_table(runs: "Runs", law: "str | Law", objective: str, delta: float, residual: str, **more: Any) -> "Fit":
    from pyscaling.fitting import fit

    choices: Any = {"objective": objective, "residual": residual, **more}
    return fit(runs, law=law, delta=delta, **choices)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _show(result: Any, json: Path | None, plot: Path | None) -> None:
    typer.echo(str(result))
    if json is not None:
        _write(json, result.to_json())
    if plot is not None:
        _save(result.plot(), plot)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"--level must lie between 0 and 1, got {level:g}.")


def _check_output(option: str, path: Path | None) -> None:
    """Before the work, not after it."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} {str(path)!r} is a folder; give a file in it.")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {str(path)!r}: there is no folder {str(path.parent)!r}; make it first.")


def _check_outputs(json: Path | None, plot: Path | None) -> None:
    _check_output("--json", json)
    _check_output("--plot", plot)
    if plot is not None and plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--plot {str(plot)!r} has the unknown ending {plot.suffix!r}; known are .png, .pdf and .svg.")


def _print_fit(fitted: "Fit", intervals: dict[str, tuple[float, float]], level: float, bootstrap: int) -> None:
    table = _table("parameter", "value")
    if intervals:
        table.add_column(f"{100 * level:g}% interval", no_wrap=True)
    for name, value in fitted.params.items():
        row = [name, f"{value:.6g}"]
        if name in intervals:
            row.append("[{:.4g}, {:.4g}]".format(*intervals[name]))
        table.add_row(*row)
    console = _console()
    console.print(f"[bold]{_plain(fitted.law.name)}[/bold]: {fitted.verdict}")
    console.print(_plain(fitted.formula))
    console.print(_plain(str(fitted.evidence)))
    console.print(table)
    text = f"{len(fitted.runs)} runs, objective {fitted.objective_value:.9g}, adjusted R² {fitted.adjusted_r2:.5f}"
    console.print(text + (f", {bootstrap} bootstrap resamples" if intervals else ""), highlight=False)


def _write_fit(
    path: Path,
    fitted: "Fit",
    intervals: dict[str, tuple[float, float]],
    profiles: dict[str, tuple[float, float]],
    level: float,
) -> None:
    import json
    from math import isfinite

    result = json.loads(fitted.to_json()) | {"level": level}
    for key, found in (("intervals", intervals), ("profile_intervals", profiles)):
        if found:
            ends = {name: [float(end) for end in pair] for name, pair in found.items()}
            result[key] = {name: [end if isfinite(end) else None for end in pair] for name, pair in ends.items()}
    _write(path, json.dumps(result, indent=1))


def _print_plan(plan: Any) -> None:
    table = _table("", "value", f"{100 * plan.level:g}% interval", "")
    for row in plan.rows():
        table.add_row(*(_plain(cell) for cell in row))
    console = _console()
    title = f"[bold]Plan[/bold] for {plan.compute:.4g} FLOPs by {_plain(plan.law)}: {_plain(plan.verdict)}"
    console.print(title, highlight=False)
    console.print(table)
    for warning in plan.warnings:
        console.print(f"[yellow]![/yellow] {_plain(warning)}", highlight=False)


def _conclude(folder: Path) -> None:
    """Prints a study's held-out test, laws and plan, and writes its report."""
    from pyscaling.report import analyse, write_report

    analysis = analyse(folder)
    path = write_report(folder, analysis=analysis)  # first: a reader that closes the pipe early must not cost it
    console = _console()
    console.print()
    if analysis.held_out is not None:
        _print_held_out(analysis.held_out, analysis.other_tests, analysis.choice)
    _print_laws(analysis)
    if analysis.plan is not None:
        _print_plan(analysis.plan)
    for problem in analysis.problems:
        console.print(f"[yellow]![/yellow] {_plain(problem)}", highlight=False)
    for run_id, reason in analysis.failed:
        console.print(f"[yellow]![/yellow] run {_plain(run_id)} failed: {_plain(reason)}", highlight=False)
    console.print(f"\nReport: {_plain(str(path.resolve()))}", highlight=False, soft_wrap=True)


def _print_held_out(test: "HeldOutTest", others: "tuple[HeldOutTest, ...]", choice: "LawChoice") -> None:
    from pyscaling.units import format_count

    console = _console()
    largest = format_count(test.largest_N)
    console.print(
        f"[bold]Held-out test[/bold]: {_plain(test.law)} fitted to all but the largest N = {largest}", highlight=False
    )
    console.print(f"[dim]law {_plain(choice.reason)}[/dim]", highlight=False)
    table = _table("D", "predicted L", f"{test.level:.0%} interval", "achieved L", "error", "")
    for run in test.runs:
        table.add_row(
            format_count(run.D),
            f"{run.predicted:.4f}",
            _plain(f"[{run.low:.4f}, {run.high:.4f}]"),
            f"{run.achieved:.4f}",
            f"{run.relative_error:+.2%}",
            "inside" if run.inside else "outside",
        )
    console.print(table)
    console.print(f"[{'green' if test.passed else 'red'} bold]{_plain(test.verdict)}", highlight=False)
    for other in others:
        place = "inside" if other.final.inside else "outside"
        verdict = "pass" if other.passed else "fail"
        note = f"also tried, {other.law}: {verdict}, error {other.final.relative_error:+.2%}, {place} its interval"
        console.print(f"[dim]{_plain(note)}[/dim]", highlight=False)
    console.print()


def _print_laws(analysis: "Analysis") -> None:
    if not analysis.laws:
        return
    console = _console()
    console.print(f"[bold]Fitted laws[/bold], {analysis.laws[0].level:.0%} intervals", highlight=False)
    table = _table("law, data, adjusted R²", "", "value", "interval")
    for law in analysis.laws:
        about = (
            f"[bold]{_plain(law.name)}[/bold]",
            f"{law.data}, {len(law.fit.runs)}",
            f"R² {law.fit.adjusted_r2:.4f}",
        )
        rows = [
            (name, f"{value:.4g}", _plain("[{:.3g}, {:.3g}]".format(*law.intervals[name])))
            for name, value in law.fit.params.items()
        ]
        for left, right in zip_longest(about, rows):
            table.add_row(left or "", *(right or ()))
        table.add_section()
    console.print(table)
    for law in analysis.laws:
        if law is analysis.main or not law.fit.evidence.trustworthy:
            console.print(f"{_plain(law.name)}: {_plain(law.evidence)}", highlight=False)
    if analysis.seed_noise is not None:
        console.print(f"seed noise: {analysis.seed_noise.sigma:.2%} of the loss", highlight=False)
    console.print()


def _console() -> Any:
    from rich.console import Console

    return Console()


def _table(*headers: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(headers))
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def _plain(text: str) -> str:
    """Text in which rich sees no markup."""
    from rich.markup import escape

    return escape(text)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise ValueError(f"{str(path)!r} could not be written: {error.strerror}.") from error
    typer.echo(f"Wrote {path}")


def _save(ax: Any, path: Path) -> None:
    ax.figure.savefig(path, dpi=180, bbox_inches="tight")
    typer.echo(f"Wrote {path}")


if __name__ == "__main__":
    app()
