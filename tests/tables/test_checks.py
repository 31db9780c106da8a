"""Tables in units that cannot be right are doubted, and the likely unit is named; tables as people have them are not."""

import numpy as np
import pytest

import pyscaling as ps

N = np.repeat([1e8, 3e8, 1e9], 3)
D = np.tile([2e9, 8e9, 3.2e10], 3)
LOSS = 1.8 + 480 / N**0.35 + 2000 / D**0.365
TRUE = {"N": N, "D": D, "C": 6 * N * D, "loss": LOSS}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"C": 6e-9 * N * D}, "C looks to be in GFLOPs (--unit C=1e9)"),
        ({"C": 6 * N * D / 8.64e19}, "--unit C=PF-days"),
        ({"N": N / 1e6, "D": D / 1e9}, "in millions (--unit N=1e6), D looks to be in billions (--unit D=1e9)"),
        ({"N": N / 1e6, "D": D / 1e9, "C": None}, "in millions (--unit N=1e6), D looks to be in billions (--unit D=1e9)"),
        ({"N": N / 1e9, "D": D / 1e9, "C": None}, "in billions (--unit N=1e9), D looks to be in billions (--unit D=1e9)"),
        ({"N": N / 1e6, "C": None}, "N looks to be in millions (--unit N=1e6)"),
        ({"N": N / 1e3, "C": None}, "N looks to be in thousands (--unit N=1e3)"),
        ({"N": N / 1e6, "D": None, "C": None}, "N looks to be in millions (--unit N=1e6)"),
        ({"D": D / 1e9, "C": None}, "D looks to be in billions (--unit D=1e9)"),
        ({"D": None, "C": 6 * N * D / 1e18}, "C looks to be in EFLOPs (--unit C=1e18)"),
        ({"N": D, "D": N}, "N and D look swapped"),
        ({"D": np.round(D / 2**19)}, "D looks to count steps of 5.24e+05 tokens"),
        ({"D": np.round(D / 2**19), "C": None}, "D looks to count steps"),
        ({"C": 2 * N * D}, "--unit C=3"),
        ({"N": N * 9 / 1e6, "D": D * 9 / 1e6, "C": None}, "--unit N=1e6 --unit D=1e6"),
        ({"N": N * 20, "D": D * 20, "C": None, "loss": np.exp(LOSS - 0.5)}, "--unit loss=perplexity"),
        ({"D": None, "C": 6 * N * D / 8.64e19}, "--unit C=PF-days"),
        ({"N": None, "C": 6 * N * D / 8.64e19}, "--unit C=PF-days"),
        ({"N": None, "D": None, "C": 6 * N * D / 1e18}, "say in which: --unit C=1e18, --unit C=PF-days"),
        ({"loss": np.exp(LOSS)}, "--unit loss=perplexity"),
        ({"loss": LOSS / np.log(2) / 4.5}, "bits per byte"),
        ({"N": np.where(np.arange(9) == 4, 300.0, N), "C": None}, "in row 5"),
        ({"C": np.where(np.arange(9) == 7, 6e-9 * N * D, 6 * N * D)}, "C is far from 6ND in row 8"),
    ],
)  # fmt: skip
def test_units_that_cannot_be_right(wrong: dict[str, np.ndarray | None], said: str) -> None:
    runs = ps.Runs({name: column for name, column in {**TRUE, **wrong}.items() if column is not None})
    assert len(runs.doubts) == 1 and runs.doubts[0].startswith("units: ") and said in runs.doubts[0]


@pytest.mark.parametrize(
    "right",
    [
        TRUE,
        {"N": N, "D": D, "loss": LOSS},
        {**TRUE, "C": 9 * N * D},  # with attention and the head
        {**TRUE, "N": N * 4, "C": 6 * N * D},  # with experts that do not work
        {"N": np.array([1.5e3, 1.5e5]), "D": np.array([1e5, 2e6]), "loss": np.array([4.0, 3.0])},  # small studies
        {
            "N": np.array([6e8, 6e8]),
            "D": np.array([1e12, 4e12]),
            "loss": np.array([2.0, 1.9]),
        },  # small models, long trained
        {"C": 6 * N * D, "loss": LOSS},
        {"x": np.arange(9.0), "loss": LOSS},
    ],
)
def test_tables_as_people_have_them(right: dict[str, np.ndarray]) -> None:
    assert ps.Runs(right).doubts == ()


def test_a_unit_that_is_stated_is_not_doubted() -> None:
    table = {**TRUE, "loss": LOSS / 4.5}
    assert ps.Runs(table).doubts and not ps.Runs(table, units={"loss": "nats"}).doubts
    table = {"N": N / 1e6, "D": D / 1e9, "loss": LOSS}
    runs = ps.Runs(table, units={"N": 1e6, "D": "B"})
    assert not runs.doubts and np.array_equal(runs.N, N) and pytest.approx(D, rel=1e-15) == runs.D
    assert not runs.select(runs.N > 2e8).doubts and not ps.Runs(runs).doubts  # nor in a part of the table


def test_a_doubt_concerns_what_a_law_uses_and_can_be_settled() -> None:
    table = {"N": np.full(12, 400.0), "D": np.geomspace(1e4, 1e6, 12), "kind": ["a", "b"] * 6}
    table["loss"] = 2 + 30 * np.asarray(table["D"]) ** -0.4 + 0.1 * (np.arange(12) % 2)
    assert ps.Runs(table).doubts_about(["D"]) == () and ps.Runs(table).doubts
    settled = ps.Runs(table, units={"D": 1, "N": 1})
    fit = ps.fit(settled, "power_constant_D", group="kind", shared=["alpha"])
    assert not settled.doubts and "units" not in fit.verdict
    assert ps.fit(ps.Runs({**TRUE, "C": 6e-9 * N * D}), "power_constant_C").verdict.startswith(
        "NOT TO BE TRUSTED: units: C"
    )


def test_a_loss_in_bits_per_byte_by_its_name() -> None:
    runs = ps.Runs({"N": N, "D": D, "val_bpb": LOSS}, columns={"loss": "val_bpb"})
    assert "'val_bpb' is in bits, and not per token" in runs.doubts[0]
    assert not ps.Runs({"N": N, "D": D, "val_bpb": LOSS}, columns={"loss": "val_bpb"}, units={"loss": 2.9}).doubts
