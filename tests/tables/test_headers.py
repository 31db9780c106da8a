"""What headers are taken for, and in which unit: the table of spellings that people publish and loggers write."""

import math

import numpy as np
import pytest

import pyscaling as ps
from pyscaling.tables.headers import meaning, unit_of

PF_DAY = 1e15 * 86400
TAKEN = {
    "N": {
        "N": 1, "params": 1, "num_parameters": 1, "parameter_count": 1, "Model Size": 1, "non-embedding parameters": 1,
        "params (non-embedding)": 1, "N_no_embed": 1, "#params": 1, "nParams": 1, "config.num_params": 1, "active_params": 1,
        "Params (M)": 1e6, "params_M": 1e6, "parameters (billions)": 1e9, "model_params_in_millions": 1e6, "Million params": 1e6,
        "N (B)": 1e9, "trainingparams": None, "embedding_params": None, "params_per_layer": None, "n": None, "size": None,
    },
    "D": {
        "D": 1, "Tokens": 1, "total_tokens": 1, "throughput/total_tokens": 1, "train/tokens_seen": 1, "numTokens": 1,
        "tokens (B)": 1e9, "D [B]": 1e9, "tokens_in_billions": 1e9, "tokens (T)": 1e12, "Dataset size (tokens)": 1,
        "unique_tokens": None, "tokens_per_second": None, "batch_tokens": None, "d": None, "tokens/s": None,
    },
    "C": {
        "C": 1, "compute_budget": 1, "Training compute (FLOP)": 1, "total_train_flops": 1, "total_gflops": 1e9,
        "zettaFLOPs": 1e21, "flops_e18": 1e18, "FLOPs (1e18)": 1e18, "PF-days": PF_DAY,
        "Compute [PFLOP/s-days]": PF_DAY, "C (PF-days)": PF_DAY,
        "c": None, "flops_per_token": None, "teraflops_per_gpu": None, "gpu_flops": None, "C/6ND": None,
    },
    "S": {"S": 1, "_step": 1, "trainer/global_step": 1, "n_steps": 1, "warmup_steps": None, "step_time": None},
    "loss": {
        "loss": 1, "L": 1, "eval/loss": 1, "train_loss": 1, "valid_loss": 1, "summary.eval/loss": 1, "Final_Val_Loss": 1,
        "loss (nats)": 1, "loss (bits)": math.log(2), "xent": 1, "l": None, "loss_scale": None, "aux_loss": None,
        "loss (%)": None, "loss_c4_val": None, "bits per byte": None,
    },
}  # fmt: skip


@pytest.mark.parametrize(("column", "header", "scale"), [(c, h, s) for c, of in TAKEN.items() for h, s in of.items()])
def test_what_a_header_is_taken_for(column: str, header: str, scale: float | None) -> None:
    found = meaning(header)
    if scale is None:
        assert found is None or found.column != column
    else:
        assert found is not None
        assert (found.column, found.unit.scale, found.unit.logarithm) == (column, scale, False)


def test_layers_width_and_context_are_no_loss_tokens_and_compute() -> None:
    table = {
        "L": [4, 8], "d": [256, 512], "c": [1024, 1024], "num_parameters": [3e6, 25e6], "throughput/total_tokens": [1e9, 2e9],
        "eval/loss": [3.9, 3.3], "train/loss": [3.8, 3.2],
    }  # fmt: skip
    runs = ps.Runs(table)
    assert runs.renamed == {"N": "num_parameters", "D": "throughput/total_tokens", "loss": "eval/loss"}
    assert runs.loss.tolist() == [3.9, 3.3] and runs["L"].tolist() == [4, 8] and runs.C.tolist() == [1.8e16, 3e17]
    assert runs.taken == "N = 'num_parameters', D = 'throughput/total_tokens', loss = 'eval/loss', C by C = 6ND"


def test_one_letter_gives_way_where_it_cannot_be_what_it_says() -> None:
    width = {"N": [2, 4], "D": [256, 512], "params": [3e6, 25e6], "tokens": [1e9, 2e9], "L": [3.0, 2.9]}
    runs = ps.Runs(width)
    assert runs.N.tolist() == [3e6, 25e6] and runs.D.tolist() == [1e9, 2e9] and runs.loss.tolist() == [3.0, 2.9]
    assert runs["N_"].tolist() == [2, 4]  # what bore the name is kept under another


def test_headers_that_are_equally_sure_are_named() -> None:
    runs = ps.Runs({"N": [1e7], "D": [1e9], "eval/loss": [3.0], "val_loss": [3.1]})
    with pytest.raises(ValueError, match=r"'loss' is missing .*'eval/loss' and 'val_loss' could each be it"):
        runs.loss
    assert ps.Runs(runs.to_dict(), columns={"loss": "val_loss"}).loss.tolist() == [3.1]
    with pytest.raises(ValueError, match=r"'loss' is missing .*columns=\{\"loss\": \"loss_c4_val\"\}"):
        ps.Runs({"N": [1e7], "loss_c4_val": [3.0]}).loss


def test_perplexity_becomes_a_loss_and_says_so() -> None:
    runs = ps.Runs({"N": [1e7, 1e8], "D": [1e9, 1e9], "val_ppl": np.exp([3.0, 2.5])})
    assert runs.loss == pytest.approx([3.0, 2.5], rel=1e-15) and "loss is ln of a perplexity" in runs.taken


@pytest.mark.parametrize(
    ("column", "unit", "scale"),
    [("N", 1e6, 1e6), ("N", "M", 1e6), ("D", "billions", 1e9), ("C", "EFLOPs", 1e18), ("C", "PF-days", PF_DAY),
     ("loss", "bits", math.log(2)), ("N", "1e6", 1e6), ("D", "524288", 524288.0), ("C", "10^18", 1e18)],
)  # fmt: skip
def test_units_that_a_user_names(column: str, unit: object, scale: float) -> None:
    assert unit_of(column, unit).scale == scale
    table = {"N": [2.0], "D": [3.0], "C": [5.0], "loss": [7.0]}
    assert ps.Runs(table, units={column: unit})[column] == pytest.approx(scale * table[column][0], rel=1e-15)


@pytest.mark.parametrize(
    ("column", "unit"), [("N", "parsecs"), ("N", -1), ("loss", "GFLOPs"), ("C", "FLOPS/s"), ("Q", 1)]
)
def test_what_is_no_unit(column: str, unit: object) -> None:
    with pytest.raises(ValueError, match=rf"unit of {column}|'Q' is missing"):
        ps.Runs({"N": [2.0], "D": [3.0], "C": [5.0], "loss": [7.0]}, units={column: unit})


def test_numbers_are_taken_before_names_of_sizes() -> None:
    table = {"model_size": ["tiny", "small"], "num_params": [3e6, 2.5e7], "tokens_per_second": [1e5, 1e5]}
    runs = ps.Runs(table)
    assert runs.N.tolist() == [3e6, 2.5e7]
    with pytest.raises(ValueError, match="its name there"):  # a rate is no suggestion for D
        runs.D
    nominal = ps.Runs({"model_size": ["135M", "1B"], "total_params": [157_600_000, 1.2e9]})
    assert nominal.N.tolist() == [157_600_000, 1.2e9]


def test_a_column_keeps_its_own_numbers_under_its_own_name() -> None:
    """A law of perplexity is fitted to perplexity, though the loss that it gives is read from it, too."""
    size = np.geomspace(1e7, 1e10, 12)
    runs = ps.Runs({"params (M)": size / 1e6, "perplexity": 900 * size**-0.2})
    assert runs["N"] == pytest.approx(size) and runs["params (M)"] == pytest.approx(size / 1e6)
    assert runs.loss == pytest.approx(np.log(900) - 0.2 * np.log(size))
    fit = ps.fit(runs, law=ps.Law("a*N**-b", response="perplexity"))
    assert fit.params == pytest.approx({"a": 900, "b": 0.2}, rel=1e-6)


def test_the_unit_of_a_cell_has_the_last_word() -> None:
    runs = ps.Runs(
        {"Params (M)": ["123.4M", "20", "1,300"], "tokens (B)": ["12.3B tokens", "1e1", "2"], "loss": [3, 3.1, 2.9]}
    )
    assert runs.N.tolist() == [123.4e6, 20e6, 1300e6] and pytest.approx([12.3e9, 10e9, 2e9]) == runs.D
    raw = ps.Runs({"Params (M)": [1e8, 3e8], "D": [2e9, 6e9], "loss": [3.0, 2.9]})
    assert "the header's unit of N looks wrong (--unit N=1)" in raw.doubts[0]
    assert not ps.Runs({"Params (M)": [1e8, 3e8], "D": [2e9, 6e9], "loss": [3.0, 2.9]}, units={"N": 1}).doubts
