"""Files as spreadsheets, loggers and scripts write them; missing values; rows that a condition picks."""

import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pyscaling as ps
from pyscaling.tables import reading

ROWS = "N,D,loss\n1e7,1e9,3.5\n1e8,2e9,3.0\n"
RUNS = {"N": [1e7, 1e8], "D": [1e9, 2e9], "loss": [3.5, 3.0]}


def same(runs: ps.Runs) -> bool:
    return all(runs[name].tolist() == column for name, column in RUNS.items())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("runs.csv", ROWS.encode()),
        ("runs.csv", ROWS.replace(",", ";").encode()),
        ("runs.csv", ROWS.replace(",", "\t").encode()),
        ("runs.txt", ROWS.replace(",", " | ").encode()),
        ("runs.csv", ROWS.replace(",", ";").replace("3.5", "3,5").replace("3.0", "3,01").replace("3,01", "3,00").encode()),
        ("runs.csv", ("# made by a script\n\n" + ROWS + "# the end\n").encode()),
        ("runs.csv", ("# " + ROWS).encode()),  # as numpy.savetxt has it
        ("runs.txt", ("# " + ROWS).replace(",", " ").encode()),
        ("runs.txt", ROWS.replace(",", "   ").encode()),
        ("runs.csv", b"N;D;loss\n10 000 000;1e9;3.5\n1e8;2 000 000 000;3.0\n"),
        ("runs.csv", b"\xef\xbb\xbf" + ROWS.encode()),
        ("runs.csv", ROWS.encode("utf-16")),
        ("runs.csv", ROWS.replace("\n", ",\n").encode()),
        ("runs.csv", ROWS.replace("\n", "\r\n").encode()),
        ("runs.csv", b'"N","D","loss"\n"1,000,0000","1e9",3.5\n"1e8","2e9",3.0\n'.replace(b"1,000,0000", b"10,000,000")),
        ("runs.csv", b"N,D,loss\n10M,1B tokens,3.5\n0.1B,2e9,3.0\n"),
        ("runs.csv.gz", gzip.compress(ROWS.encode())),
        ("runs.tsv.xz", lzma.compress(ROWS.replace(",", "\t").encode())),
        ("runs.json", json.dumps(RUNS).encode()),
        ("runs.jsonl", b'{"N": 1e7, "D": 1e9, "loss": 3.5}\n\n{"N": 1e8, "D": 2e9, "loss": 3.0}\n'),
        ("runs.jsonl", b'{"config": {"num_params": 1e7, "D": 1e9}, "summary": {"eval/loss": 3.5}}\n'
                       b'{"config": {"num_params": 1e8, "D": 2e9}, "summary": {"eval/loss": 3.0}}\n'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("long", [False, True])  # by csv, and by pandas
def test_the_same_table_in_many_forms(
    name: str, content: bytes, long: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_LONG", 0 if long else 10**9)
    (tmp_path / name).write_bytes(content)
    asked = {"D": "config.D"} if b"config" in content else None
    assert same(ps.read_runs(tmp_path / name, asked))


def test_zst_and_xlsx(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "runs.csv.zst").write_bytes(zstandard.compress(ROWS.encode()))
    assert same(ps.read_runs(tmp_path / "runs.csv.zst"))
    pytest.importorskip("openpyxl")
    pd.DataFrame(RUNS).to_excel(tmp_path / "runs.xlsx", index=False)
    assert same(ps.read_runs(tmp_path / "runs.xlsx"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("runs.doc", b"x", "unknown ending '.doc'"),
        ("runs.csv", b"", "is empty"),
        ("runs.csv", b"N,D,loss\n", "has a header and no runs: N, D, loss"),
        ("runs.csv", b"N,N,loss\n1,2,3\n", "names the column 'N' twice"),
        ("runs.csv", b"N,D,loss\n1e7,1e9,3\n1e7,1e9\n", "row 2 of runs.csv has 2 cells, its header 3"),
        ("runs.csv", b'N,D,loss\n1e7,1e9,3\n1e7,"1e9",3,4\n', "row 2 of runs.csv has 4 cells, its header 3"),
        ("runs.csv", b"N,D,loss\n1e7,\xff\xfa,3\n", "not text in UTF-8"),
        ("runs.csv", b"N;D;loss\n1,5;1e9;3\n2e7;1e9;3\n", None),
        ("runs.csv", b'N,D,loss\n"1,5",1e9,3\n', "N must be a number; row 1 of runs.csv has N='1,5'"),
        ("runs.csv.gz", b"no gzip", r"no \.gz file"),
        ("runs.jsonl", b'{"N": 1}\n{', "line 2 of runs.jsonl is not valid JSON"),
        ("runs.parquet", b"no parquet", "cannot be read as .parquet|needs another package"),
    ],
)
@pytest.mark.parametrize("long", [False, True])
def test_what_cannot_be_read_is_named(
    name: str, content: bytes, message: str | None, long: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_LONG", 0 if long else 10**9)
    (tmp_path / name).write_bytes(content)
    if message is None:
        assert ps.read_runs(tmp_path / name).N.tolist() == [1.5, 2e7]
        return
    with pytest.raises(ValueError, match=message):
        ps.read_runs(tmp_path / name)


EXPORT = (
    '"Name","State","num_parameters","total_tokens","eval/loss","_step"\n'
    '"a","finished","10000000","1000000000","3.5","100"\n'
    '"b","crashed","20000000","1000000000","",""\n'
    '"c","finished","100000000","2000000000","3.0","200"\n'
    '"d","failed","20000000","","NaN",""\n'
)


def test_crashed_runs_are_counted_and_left_out_in_either_way(tmp_path: Path) -> None:
    path = tmp_path / "wandb.csv"
    path.write_text(EXPORT)
    with pytest.raises(
        ValueError,
        match=r"row 4 .*\(2 of 4 rows lack a value: D in 1, loss in 2\).*--drop-missing .*--where 'State == ",
    ):
        ps.read_runs(path)
    for runs in (ps.read_runs(path, drop_missing=True), ps.read_runs(path, where='State == "finished"')):
        assert same(runs) and runs.rows.tolist() == [0, 2] and "2 of 4 rows left out" in runs.taken
    assert len(ps.read_runs(path, where="`eval/loss` < 3.2")) == len(ps.read_runs(path, where="loss < 3.2")) == 1
    table = pd.read_csv(path)
    assert same(ps.Runs(table, drop_missing=True)) and same(ps.Runs(table, where='State == "finished"'))
    # rows keep their place in the table
    with pytest.raises(ValueError, match="row 3 of wandb.csv has loss=-1"):
        path.write_text(EXPORT.replace('"3.0"', '"-1"'))
        ps.read_runs(path, drop_missing=True)


@pytest.mark.parametrize(
    ("where", "message"),
    [("Stat == 1", "where='Stat == 1' cannot be answered .*columns are Name, State"), ("State", "is no condition"),
     ('State == "x"', "leaves none of the 4 rows"), ("State ==", "cannot be answered")],
)  # fmt: skip
def test_conditions_that_are_none(where: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "wandb.csv").write_text(EXPORT)
    with pytest.raises(ValueError, match=message):
        ps.read_runs(tmp_path / "wandb.csv", where=where)


def test_empty_cells_follow_from_the_other_two() -> None:
    nan = np.nan
    runs = ps.Runs({"N": [1e7, nan, 1e7], "D": [1e9, 1e9, nan], "C": [nan, 1.2e17, 3e16], "loss": [3.0, 2.9, 3.1]})
    assert runs.C.tolist() == [6e16, 1.2e17, 3e16] and runs.N[1] == 2e7 and runs.D[2] == 5e8
    assert "N of 1 rows by C = 6ND; D of 1 rows by C = 6ND; C of 1 rows by C = 6ND" in runs.taken


def test_a_line_plot_of_runs_becomes_curves(tmp_path: Path) -> None:
    path = tmp_path / "plot.csv"
    path.write_text(
        '"tokens","a - eval/loss","a - eval/loss__MIN","a - eval/loss__MAX",'
        '"b - eval/loss","b - eval/loss__MIN","b - eval/loss__MAX"\n'
        '"1e8","4.0","3.9","4.1","","",""\n"2e8","3.5","3.4","3.6","3.8","3.8","3.8"\n'
    )
    runs = ps.read_runs(path)
    assert runs["run"].tolist() == ["a", "a", "b"] and runs.D.tolist() == [1e8, 2e8, 2e8]
    assert runs.loss.tolist() == [4.0, 3.5, 3.8]
    sizes = {"Name": ["b", "a"], "params (M)": [20, 10], "State": ["finished", "finished"]}
    joined = runs.join(sizes)
    assert joined.N.tolist() == [1e7, 1e7, 2e7] and joined.C.tolist() == [6e15, 1.2e16, 2.4e16]
    # what curves hold is theirs, whatever the runs ended at; a run that crashed is left out
    finals = {"Name": ["a"], "params (M)": [10], "eval/loss": [3.5], "tokens": [2e8], "_step": [400]}
    joined = runs.join(finals)
    assert joined.loss.tolist() == [4.0, 3.5] and joined.D.tolist() == [1e8, 2e8] and "left out: b" in joined.taken
    path.write_text(path.read_text().replace('"tokens"', '"Step"').replace("1e8", "200").replace("2e8", "400"))
    steps = ps.read_runs(path).join(finals)
    assert steps.D.tolist() == [1e8, 2e8] and steps.loss.tolist() == [4.0, 3.5]  # 5e5 tokens a step
    with pytest.raises(ValueError, match="counts steps, and the table to join lacks"):
        ps.read_runs(path).join({"Name": ["a"], "params (M)": [10], "tokens": [2e8]})
    with pytest.raises(ValueError, match="no label of run"):
        runs.join({"Name": ["z"], "N": [1e7]})


def test_numbers_are_read_to_the_last_bit(tmp_path: Path) -> None:
    n = 100_000  # long enough for pandas
    pd.DataFrame({"N": np.full(n, 1e7), "D": np.full(n, 1e9), "loss": np.linspace(4, 3, n)}).to_csv(
        tmp_path / "long.csv", index=False
    )
    assert np.array_equal(ps.read_runs(tmp_path / "long.csv").loss, np.linspace(4, 3, n))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("runs.json", '{"a": {"N": 1e7, "D": 1e9, "loss": 3.5, "curve": [5, 4]}, "b": {"N": 1e8, "D": 2e9, "loss": 3.0}}'),
        ("runs.json", '{"made": "today", "runs": [{"N": 1e7, "D": 1e9, "loss": 3.5}, {"N": 1e8, "D": 2e9, "loss": 3.0}]}'),
        ("runs.md", "# Runs\n\n| N | **D** | val loss |\n|---|:-:|---:|\n| ~10M | 1B | **3.5** |\n| 100M | 2B | 3.0 |\n\nEnd"),
        ("runs.txt", "| N | D | loss |\n| --- | --- | --- |\n| 1e7 | 1e9 | 3.5 |\n| 1e8 | 2e9 | 3.0 |\n"),
        ("runs.json", '{"N": [1e7, 1e8], "D": [1e9, 2e9], "loss": [3.5, 3.0], "tags": [["a"], []]}'),
    ],
)  # fmt: skip
def test_what_people_paste_and_scripts_nest(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    runs = ps.read_runs(tmp_path / name)
    assert same(runs) and not {"curve", "tags"} & set(runs.columns)
    assert ("left out, for it is not one value a run" in runs.taken) == ("curve" in text or "tags" in text)


def test_remedies_are_those_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("N,D,loss\n1e7,1e9,\n1e8,1e9,3\n")
    with pytest.raises(ValueError, match="--where a condition on its columns"):
        ps.read_runs(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("N,D,loss\n1e7,1e9,\n1e8,1e9,\n")
    with pytest.raises(ValueError, match="No run would be left: is loss in another column"):
        ps.read_runs(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("N,step,loss\n1e7,1000,3\n1e8,1000,2.9\n")
    with pytest.raises(ValueError, match="Steps are no tokens: --column D=STEPS --unit D=BATCH"):
        ps.fit(tmp_path / "a.csv")


def test_a_mark_for_nothing_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "runs.md"
    path.write_text("| N | D | loss |\n|---|---|---|\n| 10M | 1B | 3.5 |\n| 30M | 1B | \\- |\n| 100M | 2B | 3.0 |\n")
    assert same(ps.read_runs(path, drop_missing=True))
