"""The analysis against the law that a synthetic study was made from, and the page that it becomes."""

import copy
import importlib.util
import re
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyscaling.report import analyse, held_out_test, write_report
from pyscaling.report import page as views
from pyscaling.report.analysis import choose_law, efficient_mask, seed_means, seed_noise, study_facts, unique_tokens
from pyscaling.study.spec import StudySpec
from pyscaling.study.store import Store, StudyError
from pyscaling.study.study import _given_rows
from pyscaling.tables import Runs

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).with_name("synthetic.py"))
assert _spec is not None
assert _spec.loader is not None
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return analyse(synthetic.make_study(tmp_path_factory.mktemp("study")), bootstrap=200)


@pytest.fixture(scope="module")
def page(analysis: Any) -> str:
    return write_report(analysis.study.folder, analysis=analysis).read_text()


def test_held_out_finds_the_true_law(analysis: Any) -> None:
    test = analysis.held_out
    assert test.law == "chinchilla"
    assert [run.D for run in test.runs] == list(synthetic.BUDGETS)
    for run in test.runs:
        assert run.predicted == pytest.approx(synthetic.true_loss(run.N, run.D), rel=0.01)
    assert test.fit.runs.N.max() < test.largest_N == analysis.runs.N.max()
    assert test.passed
    assert test.verdict.startswith("PASS")


def test_held_out_fails_plainly(tmp_path: Path) -> None:
    failing = analyse(synthetic.make_study(tmp_path / "off", largest_off=0.05), bootstrap=50)
    assert failing.held_out is not None
    assert not failing.held_out.passed
    assert failing.held_out.final.relative_error == pytest.approx(1 / 1.05 - 1, abs=0.01)
    assert "FAIL: the prediction is outside 2%" in failing.held_out.verdict
    page = write_report(tmp_path / "off", analysis=failing).read_text()
    assert 'class="verdict fail">FAIL' in page


def test_law_is_chosen_without_the_largest_model(tmp_path: Path) -> None:
    """Whatever the largest model did, it must not change which law is judged."""
    plain = analyse(synthetic.make_study(tmp_path / "plain"), bootstrap=50)
    off = analyse(synthetic.make_study(tmp_path / "off", largest_off=0.3), bootstrap=50)
    assert plain.choice.law == off.choice.law == "chinchilla"  # the synthetic truth
    assert off.choice.errors == pytest.approx(plain.choice.errors)
    assert plain.choice.errors["chinchilla"] < plain.choice.errors["kaplan_ND"]
    assert [test.law for test in plain.other_tests] == ["kaplan_ND"]
    assert plain.choice.reason.startswith("chosen for predicting the second largest model best")
    few = plain.runs.select(np.isin(plain.runs.N, np.unique(plain.runs.N)[:3]))
    five = np.isin(plain.runs.N, np.unique(plain.runs.N)[:5]) & (plain.runs["seed"] == 0)
    for part in (few, plain.runs.select(five & (plain.runs.D.max() == plain.runs.D))):
        assert choose_law(part).reason == "taken unchosen: too few sizes or runs to choose by"  # not named by the spec


def test_spec_may_name_the_law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "SPEC", synthetic.SPEC.replace("name =", 'law = "kaplan_ND"\nname =', 1))
    named = analyse(synthetic.make_study(tmp_path / "kaplan"), bootstrap=50)
    assert named.choice.law == named.held_out.law == named.main.name == "kaplan_ND"
    assert [test.law for test in named.other_tests] == ["chinchilla"]
    page = write_report(tmp_path / "kaplan", analysis=named).read_text()
    assert "2 laws of N and D were put to this test" in page


def test_fitted_laws_noise_and_plan(analysis: Any) -> None:
    assert analysis.main.fit.adjusted_r2 > 0.995
    assert analysis.main.fit.params["alpha"] == pytest.approx(synthetic.TRUTH["alpha"], abs=0.05)
    assert analysis.seed_noise.sigma == pytest.approx(0.003, rel=0.5)
    assert analysis.seed_noise.degrees_of_freedom == 2 * 5 * 2
    assert analysis.plan.compute == pytest.approx(10 * analysis.runs.C.max())
    assert "measured noise scale" in analysis.plan.batch.source
    assert analysis.failed == (("d8-l2-r4-s0-D200000", "loss is NaN at step 17 <diverged>"),)
    assert analysis.problems == ()


def test_page_stands_alone_in_the_promised_order(analysis: Any, page: str) -> None:
    assert re.findall(r"<h2>(\d)", page) == ["1", "2", "3", "4", "5"]
    assert page.index(analysis.held_out.verdict) < page.index("2. Fitted laws")
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == 9
    assert "with noise, &amp; no training" in page
    assert "&lt;diverged&gt;" in page


def test_the_plan_is_on_the_corpus_of_the_study(analysis: Any, page: str, tmp_path: Path) -> None:
    """The synthetic store tells of 3 M training tokens; without them none are counted."""
    assert analysis.plan.unique_tokens == 3_000_000
    assert analysis.plan.epochs == pytest.approx(analysis.plan.D.value / 3e6)
    assert StudySpec.from_toml(analysis.plan.to_toml("b/😀\x7f.txt")).corpus.source == "b/😀\x7f.txt"
    assert "on the 3 M training tokens of the corpus" in page
    few = synthetic.make_study(tmp_path / "few")
    db = sqlite3.connect(few / "study.db")
    db.execute("UPDATE study SET value = '100000' WHERE key = 'train_tokens'")
    db.commit()
    planned = analyse(few, bootstrap=50)
    assert planned.plan.epochs > 4  # the largest budget alone is 24 epochs
    assert any("epochs" in warning for warning in planned.plan.warnings)
    assert planned.plan.loss.value > analysis.plan.loss.value  # a repeated token is worth less
    db.execute("DELETE FROM study WHERE key = 'train_tokens'")
    db.commit()
    db.close()
    assert unique_tokens(study_facts(planned.study)) is None


def test_one_kind_of_interval(analysis: Any, page: str) -> None:
    """What the page calls its intervals is what they are: t, as by the bootstrap of the very fit, and no percentiles."""
    assert analysis.intervals == "90% intervals by Student's t, their errors from 200 bootstrap refits"
    assert page.count("by Student&#x27;s t") == 1 and "percentile" not in page
    boot = analysis.main.fit.bootstrap(200)
    for name, interval in analysis.main.intervals.items():
        assert interval == pytest.approx(boot.interval(name, level=0.9, method="t"))
        assert interval != pytest.approx(boot.interval(name, level=0.9, method="percentile"), rel=1e-3)


def test_the_verdict_says_the_worst(analysis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PASS above what speaks against the fit, and no concerns above a concern, is what nobody should read."""

    def judged(**evidence: Any) -> tuple[Any, Any]:
        doubted = copy.copy(analysis.held_out.fit)
        object.__setattr__(doubted, "evidence", replace(analysis.held_out.fit.evidence, **evidence))
        return replace(analysis.held_out, fit=doubted), replace(analysis.main, fit=doubted)

    fine = {"converged": True, "misfit": (), "cautions": (), "unidentified": (), "at_bound": ()}
    test, law = judged(**fine)
    assert test.verdict.startswith("PASS: the prediction is within 2%") and test.trusted
    assert law.evidence == law.fit.verdict
    test, law = judged(**fine | {"converged": False, "misfit": ("the law misses the runs",)})
    both = "the optimiser stopped before a minimum; the law misses the runs"
    assert test.verdict.startswith(f"PASS, but by a fit that is not to be trusted ({both}): the prediction")
    assert test.passed and not test.trusted
    assert law.evidence.startswith("NOT TO BE TRUSTED") and law.evidence.endswith(both)
    doubted = replace(analysis, held_out=test, main=law, laws=(law,), other_tests=())
    assert f'class="verdict fail">PASS, but by a fit that is not to be trusted ({both})' in views._held_out(doubted)
    laws, plan = views._laws(doubted), views._plan(doubted)
    assert "<pre>NOT TO BE TRUSTED" in laws and "no concerns" not in laws
    assert 0 < plan.index("NOT TO BE TRUSTED") < plan.index("By <code>")
    test, law = judged(**fine | {"cautions": ("the law misses the runs by 3.9 times the noise of their replicates",)})
    assert test.verdict.startswith(
        "PASS, with care (the law misses the runs by 3.9 times the noise of their replicates): "
    )
    assert law.evidence.startswith("to be trusted with care, the law misses")


def test_a_bound_is_no_interval(analysis: Any) -> None:
    intervals = analysis.main.intervals | {"E": (0.0, 0.0)}
    rows = {name: shown for name, _, shown in replace(analysis.main, intervals=intervals).rows()}
    assert rows["E"] == "none, at a bound"
    low, high = analysis.main.intervals["alpha"]
    assert rows["alpha"] == f"[{low:.3g}, {high:.3g}]"


def test_runs_that_were_trained_elsewhere_are_foretold_as_added(tmp_path: Path) -> None:
    folder = synthetic.make_study(tmp_path / "given")
    with Store(folder, "", "", same=lambda key: True) as store:
        store.add_finished(
            _given_rows(Runs({"N": [5e5], "D": [3e6], "loss": [2.0]}), {}, StudySpec.from_toml(synthetic.SPEC))
        )
    given = analyse(folder, bootstrap=50)
    (run,) = given.added.runs
    assert (run.N, run.D, run.achieved) == (5e5, 3e6, 2.0)
    assert run.predicted == pytest.approx(synthetic.true_loss(5e5, 3e6), rel=0.02)
    assert given.held_out.largest_N == 5e5


def test_seed_noise_by_hand() -> None:
    runs = Runs({"N": [1e3, 1e3, 2e3, 2e3, 3e3], "D": [1e5] * 5, "loss": np.exp([1.0, 1.2, 2.0, 2.4, 1.0])})
    noise = seed_noise(runs)
    assert noise is not None
    assert noise.sigma == pytest.approx(np.sqrt((0.02 + 0.08) / 2))
    assert (noise.degrees_of_freedom, noise.n_group) == (2, 2)
    assert seed_noise(runs.select(np.array([0, 2, 4]))) is None


def test_efficient_runs_by_hand() -> None:
    runs = Runs({"N": [1.0, 2.0, 4.0, 8.0], "D": [1.0, 1.0, 1.0, 1.0], "loss": [5.0, 4.0, 4.5, 3.0]})
    assert efficient_mask(runs).tolist() == [True, True, False, True]
    double = Runs({"N": [1.0, 1.0, 2.0], "D": [1.0, 1.0, 1.0], "loss": [5.0, 3.0, 4.5]})
    assert seed_means(double).loss.tolist() == [4.0, 4.5]


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"holds no study\.db"):
        analyse(tmp_path)
    with pytest.raises(ValueError, match="needs at least three model sizes"):
        held_out_test(Runs({"N": [1e3, 2e3] * 4, "D": [1e5] * 8, "loss": [4.0, 3.0] * 4}), "chinchilla")
