"""Training one's own grid: `pyscaling study | report`."""

from pathlib import Path
from typing import Annotated

import typer

from pyscaling.cli.app import command, one_clear_message
from pyscaling.cli.show import conclude


@command("study")
def study_command(
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC.toml]", help="A study of your own.", show_default=False)
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A study that comes with pyscaling: smoke, cpu (the default), gpu-mini or gpu."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the study.  [default: studies/NAME]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="COUNT", help="Processes, one thread each.  [default: cores]")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="torch or triton, instead of the spec's; triton needs a GPU or TRITON_INTERPRET=1."
        ),
    ] = None,
    log: Annotated[
        str | None, typer.Option(metavar="NAME", help="Also log to tensorboard or wandb; needs pyscaling[log].")
    ] = None,
    cost: Annotated[bool, typer.Option("--cost", help="Only print what the study will cost; train nothing.")] = False,
) -> None:
    """Train a grid of models, fit the laws, plan ten times its largest budget and write a report.

    A study that was stopped goes on where it was; one that is done is only analysed again.
    """
    with one_clear_message(resumes=True):
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
        study.run(workers=workers, progress=True, backend=backend, log=log)  # type: ignore[arg-type]  # checked above
        if done:
            typer.echo(f"Study {study.spec.name} in {study.folder} is done: nothing to train.")
        conclude(study.folder)


@command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study.", show_default=False)],
) -> None:
    """Analyse a study's finished runs again, and write its report."""
    with one_clear_message(resumes=True):
        conclude(folder)
