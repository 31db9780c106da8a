"""One law for several groups against separate fits and known truths."""

import numpy as np
import pytest

import pyscaling as ps

TRUTH = {"web text": {"E": 1.8, "A": 480.0, "B": 2100.0}, "code": {"E": 0.9, "A": 300.0, "B": 900.0}}
ALPHA, BETA = 0.35, 0.37


def runs(noise: float = 0.0) -> ps.Runs:
    generator = np.random.default_rng(0)
    N, D = np.exp(generator.uniform(np.log([1e7, 1e9]), np.log([1e10, 1e11]), (120, 2))).T
    label = np.repeat(list(TRUTH), 60)
    law = ps.laws.get("chinchilla")
    loss = [
        float(law.evaluate({**TRUTH[g], "alpha": ALPHA, "beta": BETA}, N=n, D=d))
        for g, n, d in zip(label, N, D, strict=True)
    ]
    return ps.Runs(
        {"N": N, "D": D, "corpus": label, "loss": np.array(loss) * np.exp(noise * generator.standard_normal(120))}
    )


def test_shared_exponents_are_recovered() -> None:
    fit = ps.fit(runs(), law="chinchilla", group="corpus", shared=["alpha", "beta"])
    assert set(fit.params) == {
        "alpha",
        "beta",
        *(f"{name}_{group}" for name in "EAB" for group in ("web_text", "code")),
    }
    for group, truth in TRUTH.items():
        assert fit.params_of(group) == pytest.approx({**truth, "alpha": ALPHA, "beta": BETA}, rel=1e-5)
        expected = ps.laws.get("chinchilla").evaluate({**truth, "alpha": ALPHA, "beta": BETA}, N=1e11, D=1e12)
        assert fit.predict(N=1e11, D=1e12, group=group, n=50).value == pytest.approx(float(expected), rel=1e-6)


def test_nothing_shared_is_separate_fits() -> None:
    table = runs(0.005)
    together = ps.fit(table, law="chinchilla", group="corpus", objective="gaussian")
    alone = [ps.fit(table.select(table["corpus"] == g), law="chinchilla", objective="gaussian") for g in TRUTH]
    assert together.objective_value == pytest.approx(sum(fit.objective_value for fit in alone), rel=1e-9)
    for group, fit in zip(TRUTH, alone, strict=True):
        assert together.params_of(group) == pytest.approx(fit.params, rel=1e-4)


def test_sharing_narrows_the_errors() -> None:
    table = runs(0.005)
    known = {"law": "chinchilla", "objective": "gaussian", "noise": 0.005}
    shared = ps.fit(table, group="corpus", shared=["alpha", "beta"], **known).standard_errors(robust=False)
    for group in TRUTH:
        alone = ps.fit(table.select(table["corpus"] == group), **known).standard_errors(robust=False)
        assert shared["alpha"] < alone["alpha"]
        assert shared["beta"] < alone["beta"]


def test_settings_of_every_group() -> None:
    fit = ps.fit(runs(0.005), law="chinchilla", group="corpus", fixed={"alpha": ALPHA, "E_code": 0.9})
    assert fit.params["alpha_code"] == fit.params["alpha_web_text"] == pytest.approx(ALPHA)
    assert fit.params["E_code"] == pytest.approx(0.9)


def test_errors() -> None:
    table = runs(0.005)
    with pytest.raises(ValueError, match=r"shared=\['alpha'\] needs group="):
        ps.fit(table, law="chinchilla", shared=["alpha"])
    with pytest.raises(ValueError, match="shared names 'gamma', not a parameter of chinchilla"):
        ps.fit(table, law="chinchilla", group="corpus", shared=["gamma"])
    with pytest.raises(ValueError, match="group has the single value 'code'"):
        ps.fit(table.select(table["corpus"] == "code"), law="chinchilla", group="corpus")
    with pytest.raises(
        ValueError, match="shared names every parameter of chinchilla, so that the groups do not differ"
    ):
        ps.fit(table, group="corpus", shared=["E", "A", "B", "alpha", "beta"])
    fit = ps.fit(table, law="chinchilla", group="corpus", shared=["alpha", "beta"])
    assert ps.fit(table, group="corpus", shared="alpha").law.shared == ("alpha",)
    with pytest.raises(ValueError, match="Q=2.0 is not a variable of chinchilla; those are N, D"):
        fit.predict(N=1e9, D=1e10, group="code", Q=2.0)
    with pytest.raises(ValueError, match="group is missing: this fit is of web text, code"):
        fit.predict(N=1e9, D=1e10)
    with pytest.raises(ValueError, match="group='book' is unknown; the groups are web text, code"):
        fit.predict(N=1e9, D=1e10, group="book")
    with pytest.raises(ValueError, match="this fit has no groups"):
        ps.fit(table, law="chinchilla").params_of("code")


@pytest.mark.parametrize("missing", [None, "", " ", float("nan"), "nan"])
def test_a_missing_label_is_no_group(missing: object) -> None:
    table = runs(0.005).to_dict()
    corpus = table["corpus"].astype(object)
    corpus[[4, 9]] = missing
    for argument in ("group", "cluster"):
        message = rf"{argument} 'corpus' has no label in row 5 of the table \(2 such rows\). Fill it in or drop the row"
        with pytest.raises(ValueError, match=message):
            fit = ps.fit({**table, "corpus": corpus}, starts=4, group="corpus" if argument == "group" else None)
            fit.bootstrap(10, cluster="corpus")
    with pytest.raises(ValueError, match="group has no label in row 5"):
        ps.fit(table, group=corpus)


def test_whole_numbers_are_labels_as_they_are() -> None:
    table = runs(0.005).to_dict()
    number = np.where(table["corpus"] == "code", 2, 1)
    for labels in (number, number.astype(float), number.astype(str)):
        fit = ps.fit({**table, "set": labels}, group="set", shared=["alpha", "beta"], starts=8)
        assert fit.law.labels == ("1", "2") and "E_2" in fit.params
        for label in (2, 2.0, "2", np.int64(2), np.float64(2)):
            assert fit.params_of(label)["E"] == fit.params["E_2"]
            assert fit.predict(N=1e10, D=1e11, group=label, n=20).value == pytest.approx(1.2, abs=0.3)


def test_the_law_is_printed_once() -> None:
    fit = ps.fit(runs(0.005), group="corpus", shared=["alpha", "beta"])
    lines = str(fit).splitlines()
    assert lines[1] == "  loss = E + A/N**alpha + B/D**beta, E, A, B of each group its own, alpha, beta shared"
    assert "**in_" not in str(fit) and sum("E_web_text" in line for line in lines) == 1
    own = ps.fit(runs(0.005), group="corpus")
    assert own.formula == "loss = E + A/N**alpha + B/D**beta, E, A, alpha, B, beta of each group its own"
