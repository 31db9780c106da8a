"""What commands print and write."""

import contextlib
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pyscaling.fitting import Fit
    from pyscaling.fitting.profile import Profile
    from pyscaling.report.analysis import Analysis, HeldOutTest, LawChoice


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """Says what is being done while it is, on a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what} ..."):
        yield


def show(result: Any, json: Path | None, plot: Path | None) -> None:
    typer.echo(str(result))
    if json is not None:
        write(json, result.to_json())
    if plot is not None:
        save_plot(result.plot(), plot)


def check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"--level must lie between 0 and 1, got {level:g}.")


def check_resamples(count: int) -> None:
    if count < 50:
        raise ValueError(f"--bootstrap {count} makes no interval; 1,000 or more make a steady one.")


def check_output(option: str, path: Path | None) -> None:
    """Before the work, not after it."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} {str(path)!r} is a folder; give a file in it.")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {str(path)!r}: there is no folder {str(path.parent)!r}; make it first.")


def check_outputs(json: Path | None, plot: Path | None) -> None:
    check_output("--json", json)
    check_output("--plot", plot)
    if plot is not None and plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--plot {str(plot)!r} has the unknown ending {plot.suffix!r}; known are .png, .pdf and .svg.")


def write_fit(
    path: Path, fitted: "Fit", profiles: dict[str, "Profile"], level: float, bootstrap: int, cluster: str | None
) -> None:
    import json

    from pyscaling.fitting.result import finite

    intervals: dict[str, Any] = {"intervals": fitted.intervals(level, bootstrap, cluster)}
    if profiles:
        intervals["profile_intervals"] = {name: found.interval(level) for name, found in profiles.items()}
    result = fitted.to_dict(level) | intervals
    write(path, json.dumps(finite(result), indent=1, allow_nan=False))


def conclude(folder: Path) -> None:
    """Prints a study's held-out test, laws and plan, and writes its report."""
    from pyscaling.report import analyse, write_report

    analysis = analyse(folder)
    path = write_report(folder, analysis=analysis)  # first: a reader that closes the pipe early must not cost it
    console = new_console()
    console.print()
    if analysis.held_out is not None:
        print_held_out(analysis.held_out, analysis.other_tests, analysis.choice)
    print_laws(analysis)
    if analysis.plan is not None:
        typer.echo(str(analysis.plan))
    for problem in analysis.problems:
        console.print(f"[yellow]![/yellow] {plain(problem)}", highlight=False)
    for run_id, reason in analysis.failed:
        console.print(f"[yellow]![/yellow] run {plain(run_id)} failed: {plain(reason)}", highlight=False)
    console.print(f"\nReport: {plain(str(path.resolve()))}", highlight=False, soft_wrap=True)


def print_held_out(test: "HeldOutTest", others: "tuple[HeldOutTest, ...]", choice: "LawChoice") -> None:
    from pyscaling.units import format_count

    console = new_console()
    largest = format_count(test.largest_N)
    console.print(
        f"[bold]Held-out test[/bold]: {plain(test.law)} fitted to all but the largest N = {largest}", highlight=False
    )
    console.print(f"[dim]law {plain(choice.reason)}[/dim]", highlight=False)
    table = new_table("D", "predicted L", f"{test.level:.0%} interval", "achieved L", "error", "")
    for run in test.runs:
        table.add_row(
            format_count(run.D),
            f"{run.predicted:.4f}",
            plain(f"[{run.low:.4f}, {run.high:.4f}]"),
            f"{run.achieved:.4f}",
            f"{run.relative_error:+.2%}",
            "inside" if run.inside else "outside",
        )
    console.print(table)
    colour = "red" if not test.passed else "green" if test.trusted else "yellow"
    console.print(f"[{colour} bold]{plain(test.verdict)}", highlight=False)
    for other in others:
        place = "inside" if other.final.inside else "outside"
        verdict = "pass" if other.passed else "fail"
        note = f"also tried, {other.law}: {verdict}, error {other.final.relative_error:+.2%}, {place} its interval"
        console.print(f"[dim]{plain(note)}[/dim]", highlight=False)
    console.print()


def print_laws(analysis: "Analysis") -> None:
    if not analysis.laws:
        return
    console = new_console()
    console.print(f"[bold]Fitted laws[/bold], {plain(analysis.intervals)}", highlight=False)
    table = new_table("law, data, adjusted R²", "", "value", "interval")
    for law in analysis.laws:
        about = (
            f"[bold]{plain(law.name)}[/bold]",
            f"{law.data}, {len(law.fit.runs)}",
            f"R² {law.fit.adjusted_r2:.4f}",
        )
        rows = [tuple(map(plain, row)) for row in law.rows()]
        for left, right in zip_longest(about, rows):
            table.add_row(left or "", *(right or ()))
        table.add_section()
    console.print(table)
    for law in analysis.laws:
        console.print(f"{plain(law.name)}: {plain(law.evidence)}", highlight=False)
    if analysis.seed_noise is not None:
        console.print(f"seed noise: {analysis.seed_noise.sigma:.2%} of the loss", highlight=False)
    console.print()


def new_console() -> Any:
    from rich.console import Console

    return Console()


def new_table(*headers: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(headers))
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def plain(text: str) -> str:
    """Text in which rich sees no markup."""
    from rich.markup import escape

    return escape(text)


def write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise ValueError(f"{str(path)!r} could not be written: {error.strerror}.") from error
    typer.echo(f"Wrote {path}")


def save_plot(ax: Any, path: Path) -> None:
    ax.figure.savefig(path, dpi=180, bbox_inches="tight")
    typer.echo(f"Wrote {path}")
