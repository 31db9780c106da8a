"""Leverage, correlation and joint regions against closed forms; plots that show what they say; a table for a paper."""

import matplotlib as mpl
import numpy as np
import pytest

import pyscaling as ps

mpl.use("Agg")
GENERATOR = np.random.default_rng(0)
X = np.linspace(1.0, 5.0, 30)
STRAIGHT = ps.fit(
    {"x": X, "y": 2 + 0.5 * X + 0.05 * GENERATOR.standard_normal(30)},
    law=ps.Law("a + b*x", positive=[], variables=["x"], response="y"),
    objective="gaussian",
    residual="raw",
)
N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
LOSS = (1.8 + 480 / N**0.35 + 2100 / D**0.37) * np.exp(2e-3 * GENERATOR.standard_normal(25))


def test_leverage_and_correlation_of_a_straight_line() -> None:
    design = np.stack([np.ones(30), X], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    assert STRAIGHT.leverage() == pytest.approx(np.diag(design @ inverse @ design.T), rel=1e-9)
    rho = inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1])
    assert STRAIGHT.correlation(robust=False)[0, 1] == pytest.approx(rho, rel=1e-9)
    assert np.diag(STRAIGHT.correlation()) == pytest.approx(1)


def test_the_joint_region_of_a_straight_line_is_an_ellipse() -> None:
    ax = STRAIGHT.plot_contours("a", "b", levels=(0.9,), points=41, robust=False)
    path = (
        max(ax.collections, key=lambda c: len(c.get_paths()[0].vertices) if c.get_paths() else 0)
        .get_paths()[0]
        .vertices
    )
    off = path - np.array([STRAIGHT.params["a"], STRAIGHT.params["b"]])
    squares = np.sum(off @ np.linalg.inv(STRAIGHT.covariance(robust=False)) * off, axis=1)
    assert squares == pytest.approx(-2 * np.log(0.1), rel=0.02)  # chi-square of two degrees, to the grid
    with pytest.raises(ValueError, match="'c' is not a parameter"):
        STRAIGHT.plot_contours("a", "c")


def test_a_plot_tells_runs_apart_and_shows_residuals() -> None:
    fit = ps.fit({"N": N, "D": D, "loss": LOSS})
    ax = fit.plot()
    main, below = ax.figure.axes
    assert main is ax and ax.get_ylabel() == "loss, nats per token" and "N, non-embedding" in below.get_xlabel()
    labels = ax.get_legend_handles_labels()[1]
    assert len(labels) == 5 and labels[0] == "D = 1 B" and labels[-1] == "D = 100 B"
    shown = np.sort(np.concatenate([line.get_ydata() for line in below.lines if line.get_marker() == "o"]))
    assert shown == pytest.approx(np.sort(100 * fit.residuals))
    ax.figure.canvas.draw()
    assert all("10^" not in tick.get_text() for tick in [*ax.get_yticklabels(), *below.get_xticklabels()])
    assert len(fit.plot_leverage().lines) == 3


def test_groups_are_told_apart() -> None:
    table = {"N": np.tile(N, 2), "D": np.tile(D, 2), "loss": np.r_[LOSS, LOSS + 0.1], "corpus": np.repeat([1, 2], 25)}
    fit = ps.fit(table, group="corpus", shared=["A", "B", "alpha", "beta"])
    labels = fit.plot().get_legend_handles_labels()[1]
    assert labels == [f"{g}, D = {d}" for g in "12" for d in ("1 B", "10 B", "100 B")]
    assert len(fit.plot(group=2).get_legend_handles_labels()[1]) == 5
    with pytest.raises(ValueError, match="group='3' is unknown|group=3 is unknown"):
        fit.plot(group=3)


def test_a_table_for_a_paper() -> None:
    fit = ps.fit({"N": N, "D": D, "loss": LOSS})
    text = fit.to_latex()
    low, high = fit.intervals(0.9)["alpha"]
    assert f"$\\alpha$ & ${fit.params['alpha']:.4g}$ & ${low:.4g}$ & ${high:.4g}$" in text and "\\toprule" in text
