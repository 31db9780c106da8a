"""A real check of `next_runs` and `Study.extend`: with the small half of the default study as data it picks, trains and refits.

    pytest bench/test_next_runs.py -s            # about five minutes on two cores

The spend is twice what the small half took, one run at most a quarter of it. Printed: what was picked, what the small half
predicted for it, what was achieved, and the interval of the best N at a hundred times the half's largest compute, before,
as promised, and after. The report of the same folder shows the same table.
"""

from pathlib import Path

import numpy as np

import pyscaling as ps
from pyscaling.planning import plan
from pyscaling.report.analysis import added_test
from pyscaling.report.page import write_report
from pyscaling.study.spec import StudySpec


def test_small_half_picks_trains_and_refits(tmp_path: Path) -> None:
    spec = StudySpec.preset("cpu")
    small = sorted(spec.sizes, key=lambda size: spec.shape(size, 1).N)[: len(spec.sizes) // 2]
    study = ps.Study(spec.model_copy(update={"name": "half", "sizes": tuple(small)}), tmp_path / "half")
    runs = study.run(progress=False)
    law = "kaplan_ND"
    fit = ps.fit(runs, law=law)
    C = 100 * runs.C.max()
    spend = 2 * float(runs.C.sum())
    picked = ps.next_runs(fit, spend, target="N_opt", compute=C, max_run=spend / 4)
    print(f"\n{picked}")
    study.extend(picked, progress=False)
    tested = added_test(study, law)
    assert tested is not None
    for run in tested.runs:
        print(
            f"N {run.N:9.0f} D {run.D:10.0f}: predicted {run.predicted:.4f} [{run.low:.4f}, {run.high:.4f}], achieved "
            f"{run.achieved:.4f}, {run.relative_error:+.2%}, {'inside' if run.inside else 'outside'}"
        )
    before, after = (plan(ps.fit(r, law=law), C).N for r in (runs, study.all_runs))
    width = [np.log(N.high / N.low) for N in (before, after)]
    size = np.sqrt(np.mean([run.relative_error**2 for run in tested.runs]))
    print(f"root mean square error of the predictions {size:.2%}: most lie outside the fitted runs' ranges")
    print(f"best N at {C:.3g} FLOPs: before {before}, after {after}; width of ln N {width[0]:.2f} -> {width[1]:.2f}")
    assert "The runs that were added" in write_report(study.folder).read_text()
    assert width[1] < width[0]
