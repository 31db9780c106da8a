"""Tables as users have them: the usual headers in files and in memory, and what is no table."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pyscaling as ps

TABLE = {"params": [1e7, 1e8], "Tokens": [1e9, 1e10], "val_loss": [3.0, 2.5], "seed": [0, 1]}


@pytest.mark.parametrize("of", [dict, pd.DataFrame, lambda t: pd.DataFrame(t).to_dict("records")])
def test_usual_headers_are_recognised_in_memory(of, tmp_path: Path) -> None:
    pd.DataFrame(TABLE).to_csv(tmp_path / "runs.csv", index=False)
    read, given = ps.read_runs(tmp_path / "runs.csv"), ps.Runs(of(TABLE))
    assert given.columns == read.columns == ["N", "D", "loss", "seed", "C"]
    assert given.renamed == read.renamed == {"N": "params", "D": "Tokens", "loss": "val_loss"}
    assert np.array_equal(given["val_loss"], TABLE["val_loss"]) and "val_loss" in given  # its own name stays good
    assert ps.Runs(given).renamed == given.select([True, False]).renamed == given.renamed


def test_a_header_of_ours_is_never_renamed() -> None:
    runs = ps.Runs({"N": [1.0, 2.0], "params": [3.0, 4.0], "n": [5.0, 6.0]})
    assert runs.columns == ["N", "params", "n"] and runs.N[0] == 1


def test_what_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"runs='runs.csv' is a path, not a table; read it first: ps.read_runs\('runs.csv'\)"
    ):
        ps.Runs("runs.csv")
    with pytest.raises(ValueError, match=r"column 'D' is missing from the table; .*frame.rename\(columns="):
        ps.fit({"N": [1e7], "loss": [3.0]})
    pd.DataFrame(TABLE).to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(ValueError, match=r"column 'S' is missing from runs.csv; .*read_runs\(path, columns="):
        ps.read_runs(tmp_path / "runs.csv")["S"]


def test_the_default_layout_of_to_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    pd.DataFrame(TABLE).to_json(path)
    with pytest.raises(ValueError, match='column N of runs.json is a mapping, .*orient="records"'):
        ps.read_runs(path)
    path.write_text(json.dumps(pd.DataFrame(TABLE).to_dict("records")))
    assert len(ps.read_runs(path)) == 2
