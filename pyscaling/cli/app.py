"""The program and what all of its commands share: a user's mistake prints one message and exits with 2."""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup


class _BareFlags:
    """Help in which a flag takes no value."""

    def get_params(self, context: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(context)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
        return parameters


class _Group(_BareFlags, TyperGroup):
    pass


class _Command(_BareFlags, TyperCommand):
    pass


app = typer.Typer(
    cls=_Group,
    help="Scaling laws for neural networks: train a grid of small models, fit the laws, plan the large one.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

command = functools.partial(app.command, cls=_Command)
_PROGRAM: ContextVar[Any] = ContextVar("program")


@contextlib.contextmanager
def one_clear_message(resumes: bool = False) -> Iterator[None]:
    """Turns errors that a user can mend into one message on stderr, in the command line's words, and exit code 2.

    Warnings of results are dropped: what is printed says the same; others are one line. resumes: whether the command goes
    on where it stopped when it is given again.
    """
    import warnings

    def line(message: Warning | str, *_: Any, **__: Any) -> None:
        typer.echo(f"! {message}", err=True)

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=r"fit of |isoflop|R\^2 of |compute_gain|envelope", category=UserWarning
            )
            warnings.showwarning = line
            yield
    except InOptions as error:
        _fail(str(error), {})
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
        remedy = " The same command goes on where this one stopped." if resumes else ""
        typer.echo(f"\nInterrupted.{remedy}", err=True)
        raise typer.Exit(130) from None


class InOptions(ValueError):
    """A message that speaks of options already."""


def _fail(message: str, options: dict[str, str] | None = None) -> None:
    typer.secho("Error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(_in_options(message, _options() if options is None else options), err=True)
    raise typer.Exit(2) from None


def _options() -> dict[str, str]:
    """Parameters of the running command that are options: the library's name -> the option."""
    program = _PROGRAM.get(None)
    if program is None or program.invoked_subcommand is None:
        return {}
    command = program.command.commands[program.invoked_subcommand]
    return {p.name: max(p.opts, key=len) for p in command.params if p.param_type_name == "option"}


def _in_options(message: str, options: dict[str, str]) -> str:
    """A message of the library with its arguments written as options: target_loss=2 becomes --target-loss 2."""
    for name, option in options.items():
        message = re.sub(rf"^{name}(?= must )", option, message)
        message = re.sub(rf"(?<![\w.\-(]){name}=(?=[\w'\"+.\[(-])", f"{option} ", message)
        message = re.sub(rf"(?<![\w.\-(]){name}=(?![\w'\"+.\[(-])", option, message)
        if "_" in name:
            message = re.sub(rf"(?<![\w.\-(]){name}(?![\w=(])", option, message)
    return message


def _version(asked: bool) -> None:
    if asked:
        from pyscaling import __version__

        typer.echo(f"pyscaling {__version__}")
        raise typer.Exit


@app.callback()
def main(
    program: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Scaling laws for neural networks: train a grid of small models, fit the laws, plan the large one."""
    _PROGRAM.set(program)


def pairs(option: str, given: Iterable[str] | None, example: str) -> list[tuple[str, str]]:
    """The two sides of each NAME=... that an option was given."""
    found = []
    for item in given or ():
        name, sign, rest = item.partition("=")
        if not sign or not name.strip() or not rest.strip():
            raise ValueError(f"{option} {item!r} must be written as in {option} {example}.")
        found.append((name.strip(), rest.strip()))
    return found


def number(option: str, given: str, text: str) -> float:
    if not is_number(text):
        raise ValueError(f"{option} {given!r}: {text!r} is not a number.")
    return float(text)


def is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True


def named(option: str, given: Iterable[str] | None) -> list[str]:
    """Names given one by one or separated by commas."""
    return [name.strip() for names in given or () for name in names.split(",") if name.strip()]
