"""The report of a study: one self-contained index.html, its figures embedded, opened from disk."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from pyscaling import __version__
from pyscaling.report import plots
from pyscaling.report.analysis import TOLERANCE, AddedTest, Analysis, FittedLaw, HeldOutRun, HeldOutTest, analyse
from pyscaling.units import format_count

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 Charter, "Bitstream Charter", Georgia, "DejaVu Serif", serif; color: #111; background: #fff;
       max-width: 46rem; margin: 2.5rem auto 5rem; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .2rem; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .6rem; padding-top: .5rem; border-top: 1px solid #111; }
h3 { font-size: 1rem; margin: 1.8rem 0 .3rem; }
p { margin: .5rem 0; }
.quiet { color: #555; font-size: .88rem; }
.verdict { border-left: 5px solid #111; padding: .3rem 0 .3rem 1rem; margin: 1rem 0; font-size: 1.1rem;
           font-weight: 600; }
.fail { border-left-style: double; border-left-width: 8px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font: 13px/1.45 "DejaVu Sans", system-ui, sans-serif; margin: .7rem 0;
        font-variant-numeric: tabular-nums; min-width: 60%; }
th, td { text-align: left; padding: .22rem .9rem .22rem 0; vertical-align: top; }
th { border-bottom: 1.5px solid #111; font-weight: 600; }
td { border-bottom: 1px solid #ddd; }
td.number, th.number { text-align: right; white-space: nowrap; }
.tight { white-space: nowrap; }
tr.strong td { font-weight: 700; }
table.inner { margin: 0; min-width: 0; }
table.inner td { border: 0; padding: 0 .8rem 0 0; white-space: nowrap; }
figure { margin: 1rem 0 1.6rem; }
figure img { width: 100%; height: auto; }
figcaption { font-size: .86rem; color: #444; }
pre { font: 12.5px/1.45 "DejaVu Sans Mono", ui-monospace, monospace; background: #f5f5f5; padding: .8rem;
      overflow-x: auto; white-space: pre-wrap; }
code { font-family: "DejaVu Sans Mono", ui-monospace, monospace; font-size: .88em; }
@media print { body { max-width: none; margin: 0; } h2 { break-after: avoid; } figure, table { break-inside: avoid; } }
"""


def write_report(folder: str | Path, *, analysis: Analysis | None = None) -> Path:
    """Writes index.html into a study folder and returns its path.

    analysis: of this folder, made here if not given. The page needs no network and no file beside it.
    Raises StudyError or ValueError if the folder holds no study or no finished run.
    """
    analysis = analysis or analyse(folder)
    with mpl.rc_context(plots.STYLE):  # type: ignore[arg-type]  # the stub lists every key
        body = "\n".join(
            (
                _head(analysis),
                _held_out(analysis),
                *([_added(analysis.added)] if analysis.added is not None else []),
                _laws(analysis),
                _figures(analysis),
                _plan(analysis),
                _facts(analysis),
            )
        )
    title = escape(f"pyscaling: {analysis.study.spec.name}")
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    path = Path(folder) / "index.html"
    unfinished = path.with_name("index.html.part")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(path)
    return path


def _head(analysis: Analysis) -> str:
    spec, runs = analysis.study.spec, analysis.runs
    sizes, budgets = len(set(runs.N)), len(set(runs.D))
    return (
        f"<h1>Scaling study “{escape(spec.name)}”</h1>\n<p>{escape(spec.description)}</p>\n"
        f'<p class="quiet">{len(runs)} runs fitted: {sizes} model sizes from {format_count(runs.N.min())} to '
        f"{format_count(runs.N.max())} non-embedding parameters, {budgets} token budgets from "
        f"{format_count(runs.D.min())} to {format_count(runs.D.max())}, compute up to {runs.C.max():.3g} FLOPs "
        "(C = 6ND). Losses are in nats per token on held-out documents.</p>"
    )


def _held_out(analysis: Analysis) -> str:
    parts = ["<h2>1. The held-out test</h2>"]
    test = analysis.held_out
    if test is None:
        return "\n".join(
            [*parts, f'<p class="verdict fail">Not possible. {escape("; ".join(analysis.problems[:1]))}</p>']
        )
    final = test.final
    seeds = f", mean of {final.n_seed} seeds" if final.n_seed > 1 else ""
    parts.append(
        f"<p>The law <code>{escape(test.law)}</code> is fitted to every model but the largest (N = "
        f"{format_count(test.largest_N)}) and asked for the final loss of that model, which it has not seen. "
        f"This law was {escape(analysis.choice.reason)}.</p>"
        f'<p class="verdict{"" if test.trusted else " fail"}">{escape(test.verdict)}</p>'
        f"<p>Predicted {final.predicted:.4f}, {test.level:.0%} interval [{final.low:.4f}, {final.high:.4f}]; "
        f"achieved {final.achieved:.4f}{seeds} at D = {format_count(final.D)} tokens. The test is passed if the error "
        f"is at most {TOLERANCE:.0%} and the achieved loss lies inside the interval.</p>"
    )
    rows = [_predicted_and_achieved(run) for run in test.runs]
    header = ["D, tokens", "predicted L", f"{test.level:.0%} interval", "achieved L", "error", "interval"]
    parts.append(_table(header, rows, strong=len(rows) - 1))
    inside = sum(run.inside for run in test.runs)
    largest = max(abs(run.relative_error) for run in test.runs)
    parts.append(
        f"<p>Over all budgets of the largest model: {inside} of {len(test.runs)} inside their intervals, "
        f"largest error {largest:.2%}. The last line is the test.</p>"
    )
    if not test.passed and not test.fit.evidence.trustworthy:  # else the verdict says it
        parts.append(
            f"<p>⚠ The law fitted without the largest model: {escape('; '.join(test.fit.evidence.concerns))}.</p>"
        )
    if analysis.other_tests:
        parts.append(_all_tests(analysis, test))
    parts.append(
        _image(plots.held_out(test), "The largest model's losses against what the smaller models predict for it.")
    )
    return "\n".join(parts)


def _added(test: AddedTest) -> str:
    rows = [[format_count(run.N), *_predicted_and_achieved(run)] for run in test.runs]
    header = ["N", "D, tokens", "predicted L", f"{test.level:.0%} interval", "achieved L", "error", "interval"]
    inside, size = sum(run.inside for run in test.runs), np.sqrt(np.mean([run.relative_error**2 for run in test.runs]))
    before, after = (
        f"{format_count(N.value)} [{format_count(N.low)}, {format_count(N.high)}]"
        for N in (test.N_before, test.N_after)
    )
    return (
        "<h2>The runs that were added</h2>\n<p>The law <code>"
        f"{escape(test.law)}</code>, fitted to the runs that were there before, against what the added ones achieved: "
        f"{inside} of {len(test.runs)} inside their intervals, root mean square error {size:.2%}. The best N at "
        f"{test.compute:.3g} FLOPs was {before} before and is {after} with them ({test.level:.0%} intervals).</p>\n"
        + _table(header, rows)
    )


def _predicted_and_achieved(run: HeldOutRun) -> list[str]:
    return [
        format_count(run.D), f"{run.predicted:.4f}", f"[{run.low:.4f}, {run.high:.4f}]", f"{run.achieved:.4f}",
        f"{run.relative_error:+.2%}", "inside" if run.inside else "outside",
    ]  # fmt: skip


def _all_tests(analysis: Analysis, test: HeldOutTest) -> str:
    """The test by every law that was tried, so that a reader sees what was chosen among."""
    tests = (test, *analysis.other_tests)
    rows = []
    for each in tests:
        run = each.final
        interval = f"[{run.low:.4f}, {run.high:.4f}]"
        role = "the verdict" if each is test else "comparison"
        cells = [each.law, role, f"{run.predicted:.4f}", interval, f"{run.relative_error:+.2%}"]
        rows.append([*cells, "pass" if each.passed else "fail"])
    header = ["law", "role", "predicted L", f"{test.level:.0%} interval", "error", "test"]
    return (
        f"<p>{len(tests)} laws of N and D were put to this test; the verdict is that of "
        f"<code>{escape(test.law)}</code>, settled before the largest model was looked at.</p>" + _table(header, rows)
    )


def _laws(analysis: Analysis) -> str:
    parts = ["<h2>2. Fitted laws</h2>"]
    if analysis.laws:
        parts.append(f"<p>Here and below: {escape(analysis.intervals)}.</p>")
    header = ["law", f"parameters, {analysis.laws[0].level:.0%} intervals" if analysis.laws else "", "adjusted R²"]
    rows = [[_law_cell(law), _parameters(law), f"{law.fit.adjusted_r2:.4f}"] for law in analysis.laws]
    parts.append(_table(header, rows, raw=True))
    if analysis.main is not None:
        parts.append(f"<h3>Evidence for {escape(analysis.main.name)}</h3><pre>{escape(_evidence(analysis.main))}</pre>")
    if analysis.problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in analysis.problems)
        parts.append(f"<h3>What could not be done</h3><ul>{items}</ul>")
    return "\n".join(parts)


def _law_cell(law: FittedLaw) -> str:
    return (
        f"<strong>{escape(law.name)}</strong>, {escape(law.data)} ({len(law.fit.runs)})"
        f'<br><code>{escape(law.fit.law.expression)}</code><br><span class="quiet">{escape(law.evidence)}</span>'
    )


def _parameters(law: FittedLaw) -> str:
    rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in law.rows())
    return f'<table class="inner">{"".join(f"<tr>{row}</tr>" for row in rows)}</table>'


def _evidence(law: FittedLaw) -> str:
    """The verdict, then how it was come by."""
    return "\n".join([law.evidence, *str(law.fit.evidence).strip().splitlines()[1:]])


def _figures(analysis: Analysis) -> str:
    runs, level = analysis.runs, 0.9
    main = analysis.main.fit if analysis.main is not None else None
    compute_law = next((law for law in analysis.laws if law.name == "power_constant_C"), None)
    curves = (
        "Marks are runs, lines the fitted law, bands the 90 % interval of the curve." if main else "Marks are runs."
    )
    parts = [
        "<h2>3. Loss against N, D and C</h2>",
        _image(plots.loss_against_N(runs, main, level), f"Loss against model size, one line per budget. {curves}"),
        _image(plots.loss_against_D(runs, main, level), f"Loss against tokens, one line per model. {curves}"),
        _image(
            plots.loss_against_C(runs, main, compute_law, level),
            "Loss against compute. Circled runs are those that no run of as little compute beats; the dashed line is "
            "the best loss that the law allows at each compute, with its 90 % band.",
        ),
    ]
    if main is not None:
        caption = "The compute-efficient frontier: model size and tokens that the law divides each budget into."
        parts.append(_image(plots.frontier(runs, main), caption))
    if any(loss is not None for loss in analysis.metrics["train_loss"]):
        caption = (
            "Learning curves of one seed per size: the training loss of the trunk at a constant rate, and the "
            "validation losses after each budget's decay."
        )
        parts.append(_image(plots.learning_curves(analysis), caption))
    noise = analysis.seed_noise
    if main is not None:
        sigma = noise.sigma if noise is not None else None
        parts.append("<h3>Residuals and seed noise</h3>")
        parts.append(_image(plots.residuals(main, runs, sigma), "Residuals of the law in per cent of the loss."))
    if noise is not None:
        parts.append(
            f"<p>Runs that differ by their seed alone differ by {noise.sigma:.2%} of their loss (standard deviation of "
            f"ln L, {noise.n_group} groups, {noise.degrees_of_freedom} degrees of freedom).</p>"
        )
    else:
        parts.append("<p>No run was repeated with another seed, so the seed noise is not known.</p>")
    scale = plots.noise_scale(analysis)
    if scale is not None:
        parts.append("<h3>Gradient noise scale</h3>")
        parts.append(
            _image(
                scale,
                "The simple noise scale of McCandlish et al. 2018: about the batch beyond which larger batches save "
                "few steps. Points where its unbiased estimate is not positive are left out.",
            )
        )
    return "\n".join(parts)


def _plan(analysis: Analysis) -> str:
    parts = ["<h2>4. Plan: ten times the largest compute</h2>"]
    plan = analysis.plan
    if plan is None:
        return "\n".join([*parts, "<p>No plan could be made.</p>"])
    if analysis.main is not None and not analysis.main.fit.evidence.trustworthy:
        parts.append(f"<p>⚠ {escape(analysis.main.evidence)}.</p>")
    corpus = (
        ""
        if plan.unique_tokens is None
        else f", on the {format_count(plan.unique_tokens)} training tokens of the corpus"
    )
    parts.append(f"<p>By <code>{escape(plan.law)}</code> fitted to all runs{corpus}, {plan.level:.0%} intervals.</p>")
    parts.append(_table(["", "value", "interval", ""], [list(row) for row in plan.rows()], numbers=False, tight=3))
    parts += [f"<p>⚠ {escape(warning)}</p>" for warning in plan.warnings]
    figure, ax = plots.new_figure(6.6, 3.8)
    plan.plot(ax)
    parts.append(_image(figure, "Loss against model size at the planned compute: how much another size would cost."))
    return "\n".join(parts)


def _facts(analysis: Analysis) -> str:
    facts, runs = analysis.facts, analysis.runs
    table = analysis.run_table
    finished = table["status"].count("finished")
    rows = [["runs", f"{finished} finished, {len(analysis.failed)} failed, {analysis.n_pending} not finished"]]
    for key, label in (
        ("corpus", "corpus"),
        ("train_tokens", "training tokens in the corpus"),
        ("validation_tokens", "validation tokens"),
        ("skipped_files", "files of the corpus passed over"),
        ("vocab_size", "vocabulary"),
        ("bytes_per_token", "bytes per token"),
        ("distributions", "evaluated on"),
        ("precision", "precision of the training's products"),
        ("version", "pyscaling"),
    ):
        if key in facts:
            rows.append([label, _readable(facts[key])])
    if "wall_s" in facts:
        rows.append(["wall time of training", f"{float(facts['wall_s']):.0f} s"])
    rows.append(["D summed over these runs, tokens", format_count(float(runs.D.sum()))])
    parts = ["<h2>5. Facts</h2>", _table(["", ""], rows, numbers=False)]
    others = _other_distributions(analysis)
    if others:
        parts.append("<h3>Other distributions</h3><p>Final losses of each size at its largest D.</p>" + others)
    if analysis.failed:
        parts.append(
            "<h3>Failed runs</h3>" + _table(["run", "reason"], [list(run) for run in analysis.failed], numbers=False)
        )
    spec = analysis.study.folder / "study.toml"
    if spec.exists():
        parts.append(f"<h3>Spec</h3><pre>{escape(spec.read_text())}</pre>")
    parts.append(
        f'<p class="quiet">Written by pyscaling {__version__}. The store is <code>study.db</code> (SQLite): all of '
        "this page can be made again from it.</p>"
    )
    return "\n".join(parts)


def _other_distributions(analysis: Analysis) -> str:
    """A table of final losses by size on every evaluation distribution, where there is more than one."""
    names = list(dict.fromkeys(analysis.evaluations["distribution"]))
    if len(names) < 2:
        return ""
    losses: dict[tuple[str, str], float] = {}
    columns = (analysis.evaluations[name] for name in ("run_id", "distribution", "loss"))
    for run_id, distribution, loss in zip(*columns, strict=True):
        losses[run_id, distribution] = loss
    table, rows = analysis.run_table, []
    for N in sorted(set(analysis.runs.N)):
        indices = [
            i
            for i, (n, status) in enumerate(zip(table["N"], table["status"], strict=True))
            if n == N and status == "finished"
        ]
        run_id = table["run_id"][max(indices, key=lambda i: table["D"][i])]
        values = [losses.get((run_id, name)) for name in names]
        rows.append([format_count(N), *("" if value is None else f"{value:.4f}" for value in values)])
    return _table(["N", *names], rows)


def _readable(value: str) -> str:
    try:
        number = float(value)
    except ValueError:
        return value.replace(",", ", ")
    return f"{int(number):,}" if number == int(number) and abs(number) >= 1000 else f"{number:.4g}"


def _table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    raw: bool = False,
    strong: int | None = None,
    numbers: bool = True,
    tight: int = 0,
) -> str:
    """An HTML table. raw: cells are HTML already. strong: index of a row to stress. numbers: align right if all are.

    tight: the first columns that are never broken into lines.
    """
    rows = list(rows)
    right = [
        numbers and not raw and bool(rows) and all(row[i][:1] in "+-−[.0123456789" for row in rows)
        for i in range(len(header))
    ]
    write = str if raw else escape

    def cells(tag: str, texts: Sequence[str]) -> str:
        marks = [' class="number"' if flag else ' class="tight"' if i < tight else "" for i, flag in enumerate(right)]
        return "".join(f"<{tag}{mark}>{write(text)}</{tag}>" for mark, text in zip(marks, texts, strict=True))

    head = f"<tr>{cells('th', header)}</tr>" if any(header) else ""
    marks = [' class="strong"' if i == strong else "" for i in range(len(rows))]
    body = "\n".join(f"<tr{mark}>{cells('td', row)}</tr>" for mark, row in zip(marks, rows, strict=True))
    return f'<div class="scroll"><table>{head}\n{body}</table></div>'


def _image(figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=180)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
