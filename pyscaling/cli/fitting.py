"""What a table of runs says: `pyscaling fit | predict | compare | isoflop | gain | laws`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyscaling.cli.app import command, is_number, named, number, pairs
from pyscaling.cli.options import (
    BootstrapOption,
    DeltaOption,
    Fitted,
    JsonOption,
    LevelOption,
    ObjectiveOption,
    PlotOption,
    ResidualOption,
    Table,
    bounds_of,
    check_column,
    fits_law,
    names_in,
    reads_table,
    starts_of,
    value_of,
)
from pyscaling.cli.show import (
    busy,
    check_level,
    check_output,
    check_outputs,
    check_resamples,
    new_console,
    new_table,
    plain,
    save_plot,
    show,
    write,
    write_fit,
)

if TYPE_CHECKING:
    pass


@command("fit")
@fits_law
def fit_command(
    given: Fitted,
    variable: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A variable of an expression; may be repeated.  [default: its names that are columns]"
        ),
    ] = None,
    positive: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="The parameters of an expression that are positive; may be repeated.  [default: all]"
        ),
    ] = None,
    bounds: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LOW:HIGH", help="Bounds of a parameter, an open end left empty; may be repeated."),
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
    overestimate_penalty: Annotated[
        float,
        typer.Option(metavar="X", help="Above 1 the law follows the lower edge of runs that were not all tuned."),
    ] = 1.0,
    cluster: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of what shares its noise, as a training run.")
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Also profile this parameter; its interval may be open. May be repeated."),
    ] = None,
    bootstrap: BootstrapOption = 4000,
    level: LevelOption = 0.9,
    json: JsonOption = None,
    plot: PlotOption = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the fit, a .json that predict, plan and next-runs take for a table."),
    ] = None,
) -> None:
    """Fit a law to a table of runs and say how sure it is.

    The table needs the law's variables and the loss; the usual headers are recognised, others are named with --column.
    C is 6ND where it is missing, and D = C/6N where D is. A law of your own is an expression: its names that are columns
    are variables, as x in --law "E + K*x**-p" --response acc.
    """
    from pyscaling.fitting.fit import law_over

    check_level(level)
    check_outputs(json, plot)
    check_output("--save", save)
    if bootstrap:  # 0: standard errors instead
        check_resamples(bootstrap)
    if given.table.kept:
        raise ValueError(
            f"{given.table.path.name} is a fit that was kept: predict, plan and next-runs take it; fit a table."
        )
    sigma = value_of(noise)
    group = given.group.partition("=")[0] if given.group else None
    columns = {"response": given.response, "weights": weights, "noise": sigma, "group": group, "cluster": cluster}
    wanted = [name for name in columns.values() if isinstance(name, str)]
    runs = given.table.read(*names_in(given.law), *wanted)
    for option, name in [*columns.items(), *(("variable", name) for name in variable or ())]:
        if isinstance(name, str):
            check_column(f"--{option}", name, runs)
    fitted = given.fit_to(
        runs,
        law_over(given.law, runs, variables=variable or (), positive=positive or (), response=given.response),
        starts=starts_of(starts),
        weights=weights,
        noise=sigma,
        bounds=bounds_of(bounds),
        overestimate_penalty=overestimate_penalty,
    )
    profiles = {name: fitted.profile(name, cluster) for name in profile or ()}
    with busy(f"{bootstrap:,} refits"):
        text = fitted.summary(level, bootstrap, cluster)
    typer.echo(text)
    for found in profiles.values():
        typer.echo(found.summary(level))
    if json is not None:
        write_fit(json, fitted, profiles, level, bootstrap, cluster)
    if save is not None:
        fitted.save(save)
        typer.echo(f"Wrote {save}")
    if plot is not None:
        save_plot(fitted.plot(), plot)


@command("predict")
@fits_law
def predict_command(
    given: Fitted,
    N: Annotated[str | None, typer.Option("--N", metavar="COUNTS", help="Parameters, as 7B or 1B,7B,70B.")] = None,
    D: Annotated[str | None, typer.Option("--D", metavar="COUNTS", help="Training tokens, as 1.4T.")] = None,
    C: Annotated[
        str | None, typer.Option("--C", metavar="FLOPS", help="Compute instead of one of them, as 1e24 or '3 PF-days'.")
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Another variable of the law, as U=40B; may be repeated."),
    ] = None,
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="run, a run not yet made, or mean, the curve alone.")
    ] = "run",
    level: LevelOption = 0.9,
    json: JsonOption = None,
) -> None:
    """Predict the loss of runs not yet made, by a law fitted to a table, or by a fit that was kept.

    Lists of counts must be equally long, or one long.
    """
    from pyscaling.accounting import parse_compute
    from pyscaling.units import format_count, parse_count

    check_level(level)
    check_output("--json", json)
    places: dict[str, list[float]] = {}
    for name, text in [("N", N), ("D", D), ("C", C), *pairs("--at", at, "U=40B")]:
        if text is not None:
            places[name] = [
                parse_compute(part) if name == "C" else parse_count(f"--{name}", part) for part in text.split(",")
            ]
    if not places:
        raise ValueError("predict needs the place: --N and --D, or --C with one of them, or --at NAME=VALUE.")
    longest = max(map(len, places.values()))
    for name, values in places.items():
        if len(values) not in (1, longest):
            raise ValueError(f"--{name} has {len(values)} values, another option {longest}; give as many, or one.")
        places[name] = values * longest if len(values) == 1 else values
    fitted = given.fit()
    label = given.label_in(fitted)
    where: Any = places | ({"group": label} if label else {})
    predicted = fitted.predict(level=level, kind=kind, **where)
    name = fitted.law.response
    console, table = new_console(), new_table(*places, name, f"{100 * level:g}% interval")
    rows = []
    for i in range(longest):
        at_row = {place: values[i] for place, values in places.items()}
        value, low, high = (float(part[i]) for part in predicted)
        cells = [f"{x:.4g}" if place == "C" else format_count(x) for place, x in at_row.items()]
        table.add_row(*cells, f"{value:.5g}", plain(f"[{low:.5g}, {high:.5g}]"))
        rows.append({**at_row, "value": value, "low": low, "high": high})
    console.print(f"[bold]{plain(fitted.law.name)}[/bold]: {plain(fitted.verdict)}", highlight=False)
    console.print(table)
    for note in predicted.notes:
        console.print(f"! {plain(note)}", highlight=False)
    if json is not None:
        import json as encoder

        result = {"law": fitted.law.name, "verdict": fitted.verdict, "level": level, "kind": kind, "predictions": rows}
        result["notes"] = list(predicted.notes)
        write(json, encoder.dumps(result, indent=1))


@command("compare")
@reads_table
def compare_command(
    table: Table,
    law: Annotated[
        list[str] | None,
        typer.Option(metavar="LAW", help="A law to compare; may be repeated.  [default: all of N and D]"),
    ] = None,
    holdout: Annotated[
        str,
        typer.Option(
            metavar="RUNS",
            help='Runs to predict: "cuts" (several, in C), "largest" (N), "compute" or a fraction.',
        ),
    ] = "cuts",
    threshold: Annotated[
        float | None, typer.Option(metavar="X", help="Hold out the runs of N (or C) above it.")
    ] = None,
    objective: ObjectiveOption = "huber",
    delta: DeltaOption = 1e-3,
    residual: ResidualOption = "log",
    level: LevelOption = 0.9,
    json: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """Rank laws by how well they predict the largest runs from the smaller ones."""
    from pyscaling.fitting import compare

    check_level(level)
    check_outputs(json, plot)
    choices: Any = {"objective": objective, "delta": delta, "residual": residual}
    needed = [name for chosen in law or ["chinchilla"] for name in names_in(chosen)]
    which: Any = value_of(holdout)
    show(compare(table.read(*needed), law or None, which, threshold, level=level, **choices), json, plot)


@command("isoflop")
@reads_table
def isoflop_command(
    table: Table,
    budgets: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN|FLOPS", help="Column of the budgets, or budgets in FLOPs: 1e18,1e19.  [default: from C]"
        ),
    ] = None,
    method: Annotated[str, typer.Option(metavar="NAME", help="parabola or akima.")] = "parabola",
    tolerance: Annotated[
        float, typer.Option(metavar="X", help="Runs whose C differ by less than this share are one budget.")
    ] = 0.1,
    compute: Annotated[
        str | None,
        typer.Option(metavar="FLOPS", help="Also plan a run of this budget, by the power laws of the optima."),
    ] = None,
    bootstrap: BootstrapOption = 1000,
    json: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """Find the best N and D at each compute budget, and their exponents (Hoffmann et al. 2022, approach 2)."""
    from pyscaling.fitting import isoflop

    check_outputs(json, plot)
    which: Any = budgets
    if budgets and any(map(is_number, budgets.split(","))):
        which = [number("--budgets", budgets, flops) for flops in budgets.split(",")]
    found = isoflop(table.read("N", "C", "loss"), which, method, tolerance=tolerance, n=bootstrap)
    show(found, json, plot)
    if compute is not None:
        from pyscaling.planning import plan

        typer.echo(f"\n{plan(found, compute)}")


@command("gain")
@reads_table
def gain_command(
    table: Table,
    group: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the two recipes.")],
    groups: Annotated[
        str | None,
        typer.Option(metavar="BASELINE,OTHER", help="Two of its values.  [default: the two that it has]"),
    ] = None,
    law: Annotated[str, typer.Option(metavar="LAW", help="Of C alone.")] = "power_constant_C",
    at: Annotated[
        str | None, typer.Option(metavar="FLOPS", help="The other's compute.  [default: the middle of both]")
    ] = None,
    level: LevelOption = 0.9,
    json: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """How much compute a better recipe is worth: what the baseline needs to reach the loss of the other."""
    from pyscaling.accounting import parse_compute
    from pyscaling.fitting import compute_gain

    check_level(level)
    check_outputs(json, plot)
    runs = table.read(group)
    check_column("--group", group, runs)
    pair: list[Any] | None = named("--groups", [groups]) if groups else None
    if pair is not None:  # as the column has them
        held = {str(value): value for value in runs[group].tolist()}
        pair = [held.get(name, name) for name in pair]
    compute = None if at is None else parse_compute(at)
    show(compute_gain(runs, group, pair, law, compute, level=level), json, plot)


@command("laws")
def laws_command() -> None:
    """List the laws that are built in."""
    from pyscaling import laws

    table = new_table("name", "L =", "source")
    for law in laws.LAWS.values():
        table.add_row(law.name, law.expression, law.source)
    new_console().print(table)
    typer.echo('A law of your own: pyscaling fit runs.csv --law "E + A/N**alpha + B/D**beta"')
