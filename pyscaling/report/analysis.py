"""What a finished study shows, as plain data: the held-out test, the fitted laws, noise, frontier and plan.

The command line prints these objects and the report draws them; nothing here knows about either.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyscaling.fitting import Fit, fit
from pyscaling.planning import Plan, Quantity, plan
from pyscaling.study import Study
from pyscaling.study.store import read_table
from pyscaling.study.study import GIVEN
from pyscaling.tables import Runs

Array = NDArray[np.float64]
Columns = dict[str, list[Any]]

CANDIDATES = ("chinchilla", "kaplan_ND")  # laws of N and D that a study with law = "auto" chooses among
TOLERANCE = 0.02  # the largest model's final loss counts as predicted within this relative error


@dataclass(frozen=True)
class HeldOutRun:
    """One run of the largest model (the mean over its seeds): what the smaller models predict, what it achieved."""

    N: float
    D: float
    achieved: float
    predicted: float
    low: float
    high: float
    n_seed: int

    @property
    def relative_error(self) -> float:
        return self.predicted / self.achieved - 1

    @property
    def inside(self) -> bool:
        return self.low <= self.achieved <= self.high


@dataclass(frozen=True)
class HeldOutTest:
    """A law fitted on all but the largest model, asked for the largest model's losses; runs ascend in D."""

    law: str
    level: float
    fit: Fit
    largest_N: float
    runs: tuple[HeldOutRun, ...]

    @property
    def final(self) -> HeldOutRun:
        """The largest model at its largest D."""
        return self.runs[-1]

    @property
    def passed(self) -> bool:
        return abs(self.final.relative_error) <= TOLERANCE and self.final.inside

    @property
    def trusted(self) -> bool:
        """Whether the test is passed by a fit that nothing speaks against."""
        return self.passed and self.fit.evidence.trustworthy

    @property
    def verdict(self) -> str:
        """One sentence that says plainly whether the test is passed, what speaks against the fit that passed it, and why not."""
        error = abs(self.final.relative_error)
        within = f"{'within' if error <= TOLERANCE else 'outside'} {TOLERANCE:.0%} (error {error:.2%})"
        place = f"lies {'inside' if self.final.inside else 'outside'} its {self.level:.0%} prediction interval"
        join = "and" if (error <= TOLERANCE) == self.final.inside else "but"
        said = "FAIL"
        if self.passed:
            concerns, cautions = self.fit.evidence.concerns, self.fit.evidence.cautions
            said = "PASS" if not cautions else f"PASS, with care ({'; '.join(cautions)})"
            said = said if not concerns else f"PASS, but by a fit that is not to be trusted ({'; '.join(concerns)})"
        return f"{said}: the prediction is {within} {join} the achieved loss {place}."


@dataclass(frozen=True)
class LawChoice:
    """The law that a study is judged and planned by.

    errors: candidate -> rms relative error of predicting the second largest model from the smaller ones, by which
    `law` was chosen; empty where the spec names the law (`named`), or too few sizes leave none to judge by. The largest model
    plays no part either way.
    """

    law: str
    errors: dict[str, float] = field(default_factory=dict)
    named: bool = True

    @property
    def reason(self) -> str:
        if not self.errors:
            return "named by the study's spec" if self.named else "taken unchosen: too few sizes or runs to choose by"
        errors = ", ".join(f"{name} {error:.2%}" for name, error in sorted(self.errors.items(), key=lambda e: e[1]))
        return f"chosen for predicting the second largest model best from the smaller ones (rms error: {errors})"


@dataclass(frozen=True)
class FittedLaw:
    """A law fitted to part of the study. intervals: parameter -> (low, high) at `level`."""

    data: str
    fit: Fit
    intervals: dict[str, tuple[float, float]]
    level: float

    @property
    def name(self) -> str:
        return str(self.fit.law.name)

    @property
    def evidence(self) -> str:
        """Whether to believe the fit, and all that speaks against it: its verdict, as `fit` and `plan` print it."""
        said = self.fit.verdict.removesuffix(", see evidence")
        more = "; ".join(concern for concern in self.fit.evidence.concerns if concern not in said)
        return f"{said}{'; ' if ': ' in said else ': '}{more}" if more else said

    def rows(self) -> list[tuple[str, str, str]]:
        """(parameter, value, interval) as printed."""
        return [(name, f"{value:.4g}", self._interval(name)) for name, value in self.fit.params.items()]

    def _interval(self, name: str) -> str:
        low, high = self.intervals[name]
        if not low < high:  # no sample left the bound: that tells nothing of where the parameter lies
            return "none, at a bound"
        return f"[{low:.3g}, {high:.3g}]"


@dataclass(frozen=True)
class SeedNoise:
    """Standard deviation of ln L between runs that differ by their seed alone, pooled over groups."""

    sigma: float
    degrees_of_freedom: int
    n_group: int


@dataclass(frozen=True)
class AddedTest:
    """The runs that `Study.extend` added, as the law fitted to the others predicts them; and N_opt before and after.

    N_opt: at `compute` FLOPs, ten times the largest of the runs that were there before, each with its interval.
    """

    law: str
    level: float
    compute: float
    runs: tuple[HeldOutRun, ...]
    N_before: Quantity
    N_after: Quantity


@dataclass(frozen=True)
class Analysis:
    """Everything that the report shows.

    choice: the law of the verdict, of the plan and of the main curves, settled without the largest model. held_out: the
    test by that law. other_tests: the same test by every other law of N and D. main: the chosen law fitted to all runs.
    added: what that law foretold of the runs that `Study.extend` added. problems: what could not be done, each with its
    reason.
    """

    study: Study
    runs: Runs
    choice: LawChoice
    held_out: HeldOutTest | None
    other_tests: tuple[HeldOutTest, ...]
    laws: tuple[FittedLaw, ...]
    main: FittedLaw | None
    seed_noise: SeedNoise | None
    plan: Plan | None
    added: AddedTest | None
    facts: dict[str, str]
    failed: tuple[tuple[str, str], ...]
    n_pending: int
    metrics: Columns
    evaluations: Columns
    noise_scale: Columns
    run_table: Columns
    problems: tuple[str, ...] = field(default=())
    bootstrap: int = 4000

    @property
    def intervals(self) -> str:
        """What the intervals of the parameters are; those of curves and of the plan are by the same method."""
        level = self.laws[0].level if self.laws else 0.9
        return f"{level:.0%} intervals by Student's t, their errors from {self.bootstrap:,} bootstrap refits"


def analyse(folder: str | Path, *, level: float = 0.9, bootstrap: int = 4000) -> Analysis:
    """Reads a study's store and analyses its finished runs.

    level: of all intervals. bootstrap: resamples behind the parameters' intervals and the plan.
    Raises StudyError or ValueError if the folder holds no study or no finished run.
    """
    study = Study.open(folder)
    table = read_table(study.folder, "runs")
    if table["status"] and set(table["status"]) == {"failed"}:
        raise ValueError(
            f"all {len(table['status'])} runs of the study in {study.folder} failed, the first because {table['reason'][0]}. "
            "Lower training.learning_rate, or change what the reason names, and start the study in another folder."
        )
    if "finished" not in table["status"]:
        raise ValueError(f"study folder {study.folder} has no finished run yet; run `pyscaling study` first.")
    runs = study.runs
    pending = sum(status in ("pending", "running") for status in table["status"])
    problems: list[str] = []
    if pending:
        problems.append(
            f"{pending} of {len(table['status'])} runs are not trained yet; run the study again to go on with them"
        )

    def attempt(what: str, action: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except ValueError as error:
            problems.append(f"{what}: {error}")
            return None

    choice = choose_law(runs) if study.spec.law == "auto" else LawChoice(study.spec.law)
    law = choice.law
    tests = attempt("held-out test", held_out_test, runs, law, level)
    rivals = laws_of_N_and_D(law)[1:]
    others = [attempt(f"held-out test of {name}", held_out_test, runs, name, level) for name in rivals]
    laws = []
    for data, name, part in parts_to_fit(runs, law):
        fitted = attempt(f"{name} on {data}", fit_law, data, name, part, level, bootstrap)
        if fitted is not None:
            laws.append(fitted)
    main = next((fitted for fitted in laws if fitted.name == law), None)
    noise_scale = read_table(study.folder, "noise_scale")
    planned = None
    if main is not None:
        planned = attempt("plan", plan_tenfold, study, main.fit, noise_scale, level, bootstrap)
    failed = [
        (run_id, reason or "no reason recorded")
        for run_id, status, reason in zip(table["run_id"], table["status"], table["reason"], strict=True)
        if status == "failed"
    ]
    return Analysis(
        study=study,
        runs=runs,
        choice=choice,
        held_out=tests,
        other_tests=tuple(test for test in others if test is not None),
        laws=tuple(laws),
        main=main,
        seed_noise=seed_noise(runs),
        plan=planned,
        added=attempt("added runs", added_test, study, law, level, bootstrap),
        facts=study_facts(study),
        failed=tuple(failed),
        n_pending=pending,
        metrics=read_table(study.folder, "metrics", "ORDER BY trunk_id, step"),
        evaluations=read_table(study.folder, "evaluations", "ORDER BY run_id, tokens"),
        noise_scale=noise_scale,
        run_table=table,
        problems=tuple(problems),
        bootstrap=bootstrap,
    )


def choose_law(runs: Runs, candidates: Sequence[str] = CANDIDATES) -> LawChoice:
    """The candidate that, fitted without the two largest models, predicts the second largest best.

    The first candidate, where there are fewer than four sizes, or too few runs, to judge by.
    """
    sizes = np.unique(runs.N)
    if len(sizes) < 4:
        return LawChoice(candidates[0], named=False)
    rest = runs.select(sizes[-1] > runs.N)
    largest = rest.N.max()
    held = seed_means(rest.select(largest == rest.N))
    errors = {}
    for law in candidates:
        with warnings.catch_warnings(), suppress(ValueError):  # too few runs for a candidate leave it out
            warnings.simplefilter("ignore")  # one that is not chosen need not be warned about
            fitted = fit(rest.select(largest > rest.N), law=law)
            errors[law] = float(np.sqrt(np.mean((fitted.evaluate(N=held.N, D=held.D) / held.loss - 1) ** 2)))
    return LawChoice(min(errors, key=lambda law: errors[law], default=candidates[0]), errors, named=False)


def held_out_test(runs: Runs, law: str, level: float = 0.9) -> HeldOutTest:
    """Fits `law` on all but the largest model and predicts each budget of the largest.

    The interval is that of a single run not yet made. Raises ValueError if fewer than two sizes are left to fit.
    """
    largest = runs.N.max()
    rest = runs.select(largest > runs.N)
    if len(np.unique(rest.N)) < 2:
        raise ValueError(
            f"needs at least three model sizes, two to fit and one to predict; got {len(np.unique(runs.N))}."
        )
    fitted = fit(rest, law=law)
    return HeldOutTest(law, level, fitted, float(largest), _compared(fitted, runs.select(largest == runs.N), level))


def _compared(fitted: Fit, held: Runs, level: float) -> tuple[HeldOutRun, ...]:
    """Each N and D of runs that a fit has not seen, predicted and achieved; ascending."""
    places = np.unique(np.stack([held.N, held.D]), axis=1)
    predicted = fitted.predict(N=places[0], D=places[1], level=level, kind="run")
    rows = []
    for i, (N, D) in enumerate(places.T):
        losses = held.loss[(held.N == N) & (held.D == D)]
        value, low, high = (float(np.atleast_1d(part)[i]) for part in (predicted.value, predicted.low, predicted.high))
        rows.append(HeldOutRun(float(N), float(D), float(losses.mean()), value, low, high, len(losses)))
    return tuple(rows)


def added_test(study: Study, law: str, level: float = 0.9, bootstrap: int = 4000) -> AddedTest | None:
    """Predicted against achieved of the runs that were added to a study; None without any.

    Raises ValueError where the others do not make a fit, or a fit no plan.
    """
    fleets = {added.fleet_id for added in study.spec.added}
    runs = study.all_runs
    added = np.array([fleet in fleets or fleet.startswith(GIVEN) for fleet in runs["fleet_id"].tolist()], dtype=bool)
    if not added.any() or added.all():
        return None
    before, after = fit(runs.select(~added), law=law), fit(runs, law=law)
    C = 10 * float(runs.C[~added].max())
    unique = unique_tokens(study_facts(study))
    best = [plan(f, C, level=level, bootstrap=bootstrap, unique_tokens=unique).N for f in (before, after)]
    return AddedTest(law, level, C, _compared(before, runs.select(added), level), *best)


def laws_of_N_and_D(law: str) -> list[str]:
    """The chosen law and those that it is compared with."""
    return [law, *(other for other in CANDIDATES if other != law)]


def parts_to_fit(runs: Runs, law: str) -> list[tuple[str, str, Runs]]:
    """(what data, law, its runs): the laws of N and D on everything, and each law of one variable on its limit."""
    means = seed_means(runs)
    efficient = means.select(efficient_mask(means))
    return [
        *(("all runs", name, runs) for name in laws_of_N_and_D(law)),
        ("the largest D", "power_constant_N", runs.select(common_largest_D(runs) == runs.D)),
        ("the largest N", "power_constant_D", runs.select(runs.N.max() == runs.N)),
        ("the efficient frontier", "power_constant_C", efficient),
        ("the efficient frontier", "kaplan_C", efficient),
    ]


def common_largest_D(runs: Runs) -> float:
    """The largest D that the most sizes share."""
    budgets = np.unique(runs.D)
    sizes = np.array([len(np.unique(runs.N[runs.D == D])) for D in budgets])
    return float(budgets[sizes == sizes.max()][-1])


def seed_means(runs: Runs) -> Runs:
    """N, D, C and the mean loss over seeds: the luckiest of several seeds is no model's loss."""
    cells, cell = np.unique(np.stack([runs.N, runs.D]), axis=1, return_inverse=True)
    cell = cell.reshape(-1)
    mean = np.bincount(cell, weights=runs.loss) / np.bincount(cell)
    C = np.bincount(cell, weights=runs.C) / np.bincount(cell)
    return Runs({"N": cells[0], "D": cells[1], "C": C, "loss": mean})


def efficient_mask(runs: Runs) -> NDArray[np.bool_]:
    """The runs that no run of at most their compute beats (the compute-efficient frontier of what was trained)."""
    order = np.lexsort((runs.loss, runs.C))
    best = np.minimum.accumulate(runs.loss[order])
    mask = np.zeros(len(runs), dtype=bool)
    mask[order] = (runs.loss[order] <= best) & np.r_[True, runs.loss[order][1:] < best[:-1]]
    return mask


def fit_law(data: str, name: str, runs: Runs, level: float, bootstrap: int) -> FittedLaw:
    """Fits a law and takes its parameters' bootstrap intervals."""
    fitted = fit(runs, law=name)
    boot = fitted._bootstrap_for_prediction(bootstrap, None, 0, None)  # kept: the plan draws on the same refits
    intervals = {parameter: boot.interval(parameter, level=level, method="t") for parameter in fitted.params}
    return FittedLaw(data, fitted, {k: (float(low), float(high)) for k, (low, high) in intervals.items()}, level)


def seed_noise(runs: Runs) -> SeedNoise | None:
    """Pooled standard deviation of ln L over runs of equal N and D; None where no run was repeated."""
    groups: dict[tuple[float, float], list[float]] = {}
    for N, D, loss in zip(runs.N, runs.D, runs.loss, strict=True):
        groups.setdefault((N, D), []).append(np.log(loss))
    repeated = [np.array(group) for group in groups.values() if len(group) > 1]
    if not repeated:
        return None
    freedom = sum(len(group) - 1 for group in repeated)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in repeated)
    return SeedNoise(float(np.sqrt(squares / freedom)), freedom, len(repeated))


def plan_tenfold(study: Study, fitted: Fit, noise_scale: Columns, level: float, bootstrap: int) -> Plan:
    """The plan for ten times the largest compute of the study, in its architecture, with its noise scale, on its corpus.

    Tokens beyond the corpus repeat, at a price; the plan tells how often.
    """
    runs = study.runs
    usable = any(value is not None and value > 0 for value in noise_scale["noise_scale"])
    measured = {
        name: np.array([np.nan if value is None else value for value in noise_scale[name]], dtype=np.float64)
        for name in ("loss", "noise_scale")
    }
    facts = study_facts(study)
    vocab_size = int(float(facts.get("vocab_size", study.spec.corpus.vocab_size)))
    return plan(
        fitted,
        10 * float(runs.C.max()),
        level=level,
        bootstrap=bootstrap,
        noise_scale=measured if usable else None,
        architecture={**study.spec.model.model_dump(), "vocab_size": vocab_size},
        unique_tokens=unique_tokens(facts),
    )


def study_facts(study: Study) -> dict[str, str]:
    """What a study's store tells of its corpus and its training."""
    table = read_table(study.folder, "study")
    return dict(zip(table["key"], table["value"], strict=True))


def unique_tokens(facts: Mapping[str, str]) -> float | None:
    """Training tokens of a study's corpus, each counted once; None where its store does not tell."""
    return float(facts["train_tokens"]) if "train_tokens" in facts else None
