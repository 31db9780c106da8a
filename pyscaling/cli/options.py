"""Options that many commands share: how to read a table of runs, and which law to fit to it.

A command is written as a function of a `Table` (`reads_table`) or of a `Fitted` (`fits_law`); these add the options.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyscaling.cli.app import InOptions, is_number, named, number, one_clear_message, pairs
from pyscaling.cli.show import busy

if TYPE_CHECKING:
    from pyscaling.fitting import Fit
    from pyscaling.tables import Runs

ObjectiveOption = Annotated[
    str, typer.Option(metavar="NAME", help="huber, lad (least absolute deviations) or gaussian.")
]
DeltaOption = Annotated[
    float, typer.Option(metavar="X", help="Where the Huber loss turns linear, in units of the residual.")
]
ResidualOption = Annotated[str, typer.Option(metavar="NAME", help="log (of ln L) or raw (of L).")]
LevelOption = Annotated[float, typer.Option(metavar="X", help="Level of all intervals, between 0 and 1.")]
BootstrapOption = Annotated[int, typer.Option(metavar="COUNT", help="Bootstrap resamples behind the intervals.")]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result as JSON.")]
PlotOption = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Also draw it: .png, .pdf or .svg.")]

_TABLE = {
    "path": Annotated[
        Path,
        typer.Argument(
            metavar="RUNS",
            help="Table of runs: .csv, .tsv, .jsonl, .json, .parquet or .xlsx, compressed or not.",
            show_default=False,
        ),
    ],
    "column": Annotated[
        list[str] | None,
        typer.Option("--column", "-c", metavar="NAME=HEADER", help="Header of a column, as N=params; may be repeated."),
    ],
    "unit": Annotated[
        list[str] | None,
        typer.Option(
            "--unit", "-u", metavar="NAME=UNIT", help="What a column's numbers are in: N=1e6, D=B, C=PF-days, "
            "loss=perplexity. It also settles a doubt about units. May be repeated.",
        ),
    ],
    "where": Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION", help="""Keep the rows that meet it, as 'State == "finished"'; a name with a slash or a space """
            "stands in backticks.",
        ),
    ],
    "drop_missing": Annotated[
        bool, typer.Option("--drop-missing", help="Leave out rows without one of the numbers that are needed.")
    ],
}  # fmt: skip
_FIT = {
    "law": Annotated[
        str,
        typer.Option(
            metavar="LAW", help="A law by name (see `pyscaling laws`) or an expression, whose names that are columns "
            "are variables.",
        ),
    ],
    "response": Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column that the law gives.  [default: loss]")
    ],
    "objective": ObjectiveOption,
    "delta": DeltaOption,
    "residual": ResidualOption,
    "fixed": Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A parameter that is known; may be repeated.")
    ],
    "tied": Annotated[
        list[str] | None, typer.Option(metavar="NAME,NAME", help="Parameters that share one value; may be repeated.")
    ],
    "group": Annotated[
        str | None,
        typer.Option(metavar="COLUMN[=LABEL]", help="Column of data sets or architectures, each with parameters of its "
                     "own; =LABEL says which of them is asked about."),
    ],
    "shared": Annotated[
        list[str] | None, typer.Option(metavar="NAME,NAME", help="Parameters that the groups have in common.")
    ],
}  # fmt: skip
_DEFAULTS = {
    "drop_missing": False,
    "law": "chinchilla",
    "objective": "huber",
    "delta": 1e-3,
    "residual": "log",
}


@dataclass(frozen=True)
class Table:
    """A file of runs and how to read it; nothing is read before it is asked for."""

    path: Path
    column: list[str] | None
    unit: list[str] | None
    where: str | None
    drop_missing: bool

    def read(self, *needed: str) -> "Runs":
        """The runs, and on the terminal what was taken for what. needed: further columns whose empty rows may be dropped."""
        from pyscaling.tables import read_runs

        with busy(f"reading {self.path.name}"):
            runs = read_runs(
                self.path,
                dict(pairs("--column", self.column, "N=params")),
                units=dict(pairs("--unit", self.unit, "N=1e6")),
                where=self.where,
                drop_missing=self.drop_missing,
            )
        further = [name for name in needed if name in runs]
        if self.drop_missing and further:
            from pyscaling.tables import Runs

            runs = Runs(runs, drop_missing=further)
        typer.echo(f"{self.path.name}: {len(runs)} runs; {runs.taken}")
        return runs

    @property
    def kept(self) -> bool:
        """Whether this is no table but a fit that was kept by Fit.save or --save."""
        if self.path.suffix.lower() != ".json" or not self.path.is_file():
            return False
        with open(self.path, encoding="utf-8", errors="replace") as file:
            return '"pyscaling fit"' in file.read(200)


@dataclass(frozen=True)
class Fitted:
    """A table, and the law that is to be fitted to it."""

    table: Table
    law: str
    response: str | None
    objective: str
    delta: float
    residual: str
    fixed: list[str] | None
    tied: list[str] | None
    group: str | None
    shared: list[str] | None

    @property
    def label(self) -> str | None:
        """Which of the groups is asked about."""
        return self.group.partition("=")[2] or None if self.group else None

    def fit(self) -> "Fit":
        """The fit that was kept, or a new one."""
        if self.table.kept:
            from pyscaling.fitting.save import load

            given = {name: getattr(self, name) for name in _FIT if name != "group"}
            given |= {name: getattr(self.table, name) for name in _TABLE if name != "path"}
            said = [f"--{name.replace('_', '-')}" for name, value in given.items() if value != _DEFAULTS.get(name)]
            if said:
                raise InOptions(
                    f"{self.table.path.name} is a fit that was kept; {', '.join(said)} would change nothing. Leave it out, or "
                    "give the table of runs."
                )
            return load(self.table.path)
        from pyscaling.fitting.fit import law_over

        runs = self.table.read(*names_in(self.law), *([self.response] if self.response else []))
        return self.fit_to(runs, law_over(self.law, runs, response=self.response))

    def label_in(self, fitted: "Fit") -> str | None:
        """Which group of a fit is asked about; None where it has none. Raises InOptions where it must be said."""
        from pyscaling.fitting.groups import GroupedLaw

        if isinstance(fitted.law, GroupedLaw) and self.label is None:
            column = self.group or "COLUMN"
            raise InOptions(f"--group {column}=LABEL must say which of {', '.join(map(str, fitted.law.labels))}.")
        return self.label

    def fit_to(self, runs: "Runs", law: Any, **more: Any) -> "Fit":
        from pyscaling.fitting import fit

        choices: Any = {"objective": self.objective, "residual": self.residual, **more}
        column = self.group.partition("=")[0] if self.group else None
        fixed = {name: number("--fixed", f"{name}={x}", x) for name, x in pairs("--fixed", self.fixed, "alpha=0.35")}
        with busy(f"fitting {len(runs):,} runs"):
            return fit(
                runs,
                law=law,
                delta=self.delta,
                fixed=fixed,
                tied=tied_names(self.tied),
                group=column,
                shared=named("--shared", self.shared),
                **choices,
            )


def reads_table(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command of a Table, with the options that say how to read it."""
    return _with_options(command, _TABLE, Table)


def fits_law(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command of a Fitted, with the options of its table and of its law."""

    def build(**given: Any) -> Fitted:
        return Fitted(Table(**{name: given.pop(name) for name in _TABLE}), **given)

    return _with_options(command, {**_TABLE, **_FIT}, build)


def _with_options(
    command: Callable[..., Any], options: dict[str, Any], build: Callable[..., Any]
) -> Callable[..., Any]:
    """The command with its first argument replaced by options of which it is built."""
    own = list(inspect.signature(command).parameters.values())[1:]
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=annotation,
            default=inspect.Parameter.empty if name == "path" else _DEFAULTS.get(name),
        )
        for name, annotation in options.items()
    ]

    @functools.wraps(command)
    def with_options(**given: Any) -> Any:
        with one_clear_message():
            return command(build(**{name: given.pop(name) for name in options}), **given)

    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    required = [p for p in keyword_only if p.default is inspect.Parameter.empty]
    rest = [p for p in keyword_only if p.default is not inspect.Parameter.empty]
    parameters = [added[0], *required, *rest, *added[1:]]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def check_column(option: str, name: str, runs: "Runs") -> None:
    if name not in runs:
        raise ValueError(f"{option} {name!r} is no column of {runs.source}, which holds {', '.join(runs.columns)}.")


def names_in(law: str) -> list[str]:
    """The columns that a law may need: its variables, and what it gives."""
    from pyscaling import laws
    from pyscaling.expression import names_of

    if any(sign in law for sign in "+*/("):
        return names_of(law)
    chosen = laws.get(law)
    return [*chosen.variables, chosen.response]


def tied_names(given: list[str] | None) -> list[list[str]]:
    for names in given or ():
        if "," not in names:
            raise ValueError(f"--tied {names!r} must name parameters that share one value, as in --tied alpha,beta.")
    return [[name.strip() for name in names.split(",")] for names in given or ()]


def starts_of(given: str | None) -> Any:
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
    return [{name: number("--starts", given, x or "") for name, x in row.items() if name} for row in rows]


def bounds_of(given: list[str] | None) -> dict[str, tuple[float | None, float | None]]:
    """NAME=LOW:HIGH, where an end may be empty."""
    bounds = {}
    for name, ends in pairs("--bounds", given, "E=1:2"):
        low, sign, high = ends.partition(":")
        if not sign:
            raise ValueError(f"--bounds {name}={ends!r} must be written as in --bounds E=1:2, or E=1: for an open end.")
        pair = [number("--bounds", f"{name}={ends}", end) if end.strip() else None for end in (low, high)]
        bounds[name] = pair[0], pair[1]
    return bounds


def range_of(option: str, given: str | None) -> tuple[float, float] | None:
    """LOW:HIGH of counts, as 10M:2B."""
    from pyscaling.units import parse_count

    if given is None:
        return None
    low, sign, high = given.partition(":")
    if not sign:
        raise ValueError(f"{option} {given!r} must be written as in {option} 10M:2B.")
    return parse_count(option, low), parse_count(option, high)


def value_of(given: str | None) -> Any:
    """A number where the text is one, else the text: the name of a column."""
    return float(given) if given is not None and is_number(given) else given
