"""The spend for a given interval on N_opt: runs chosen by next_runs against a log-uniform grid and against isoFLOP sweeps.

pytest bench/test_design.py -s

Truths: three published fits. A pilot of 16 runs, N 2 M to 20 M and D 40 M to 400 M, is everybody's; the target is ln N_opt at a
thousand times its largest compute, the noise 0.5 % of the loss. Everybody adds runs from the same box: N and D from a quarter of
the pilot's least to 30 times its largest, D/N within four times the pilot's own, none dearer than 100 times the pilot's
dearest. Each set is refitted with the pilot's runs, and its width is half the 90 % bootstrap interval of ln N_opt, the median
over pilots and noises. Of each rival, many layouts compete, and at each spend the one that is best at the truth is taken,
which its user would not know: grids of 3 to 15 sizes a side, over the whole box or around the pilot; sweeps of 5 or 7 sizes, a
factor 1.5, 2 or 3 apart around the pilot's own estimate, at 2 to 8 budgets over a factor 30 or 1000; each with 1, 2 or 4 seeds
and any dearest run. next_runs knows the pilot only.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

import pyscaling as ps
from pyscaling.planning.design import next_runs

TRUTHS = {
    "Hoffmann et al. 2022": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    "Besiroglu et al. 2024": {"E": 1.8172, "A": 477.8, "B": 2143.0, "alpha": 0.3473, "beta": 0.3672},
    "Muennighoff et al. 2023": {
        "E": np.exp(0.6254804), "A": np.exp(6.255414), "B": np.exp(7.3049974), "alpha": 0.3526596, "beta": 0.3526596,
    },
}  # fmt: skip
NOISE, LEVEL, SEEDS, RESAMPLES = 0.005, 0.9, 7, 200
PILOT_N, PILOT_D = (grid.ravel() for grid in np.meshgrid(np.geomspace(2e6, 2e7, 4), np.geomspace(4e7, 4e8, 4)))
LARGEST = float(6 * PILOT_N.max() * PILOT_D.max())
TARGET, CAP = 1000 * LARGEST, 100 * LARGEST
N_RANGE, D_RANGE = (5e5, 6e8), (1e7, 1.2e10)
RATIO = (0.5, 800.0)
MOST_RUNS = 64
WIDTHS = (0.15, 0.1)
REQUIRED = 1 / 3
Layout = tuple[np.ndarray, np.ndarray]


def n_opt(p, C):
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    return G * (C / 6) ** (p["beta"] / (p["alpha"] + p["beta"]))


def inside(N: np.ndarray, D: np.ndarray, cap: float) -> np.ndarray:
    ranges = ((N, N_RANGE), (D, D_RANGE), (D / N, RATIO), (6 * N * D, (0.0, cap * (1 + 1e-9))))
    return np.logical_and.reduce([(low <= values) & (values <= high) for values, (low, high) in ranges])


def grids() -> Iterator[Callable[[dict], Layout]]:
    for sides in (3, 4, 5, 6, 7, 8, 10, 12, 15):
        for cap in np.geomspace(LARGEST / 30, CAP, 14):
            reach = np.sqrt(cap / LARGEST)
            for most_N, most_D in (
                (N_RANGE[1], D_RANGE[1]),
                (min(N_RANGE[1], 2e7 * reach), min(D_RANGE[1], 4e8 * reach)),
            ):
                if most_N <= N_RANGE[0] or most_D <= D_RANGE[0]:
                    continue
                N, D = (
                    g.ravel()
                    for g in np.meshgrid(
                        np.geomspace(N_RANGE[0], most_N, sides), np.geomspace(D_RANGE[0], most_D, sides)
                    )
                )
                kept = inside(N, D, cap)
                for seeds in (1, 2, 4):
                    repeated = np.repeat(N[kept], seeds), np.repeat(D[kept], seeds)
                    yield lambda p, layout=repeated: layout


def sweeps() -> Iterator[Callable[[dict], Layout]]:
    caps, aparts = np.geomspace(LARGEST / 30, CAP, 14), (1.5, 2.0, 3.0)
    for n_budget, sizes, cap, span, apart, seeds in product(range(2, 9), (5, 7), caps, (30, 1000), aparts, (1, 2, 4)):

        def layout(p, n_budget=n_budget, sizes=sizes, cap=cap, span=span, apart=apart, seeds=seeds) -> Layout:
            C = np.geomspace(cap / span, cap, n_budget)[:, None]
            N = n_opt(p, C) * apart ** (np.arange(sizes) - sizes // 2)
            N, D = N.ravel(), (C / 6 / N).ravel()
            kept = inside(N, D, CAP)
            return np.repeat(N[kept], seeds), np.repeat(D[kept], seeds)

        yield layout


def local_width(p: dict, N: np.ndarray, D: np.ndarray) -> float:
    """By the truth's own derivatives, to sort layouts."""
    N, D = np.r_[PILOT_N, N], np.r_[PILOT_D, D]
    x, y = p["A"] / N ** p["alpha"], p["B"] / D ** p["beta"]
    J = np.stack([np.ones_like(N), x, y, -x * np.log(N), -y * np.log(D)], axis=1) / (p["E"] + x + y)[:, None]
    both, log_C, log_N = p["alpha"] + p["beta"], np.log(TARGET / 6), np.log(n_opt(p, TARGET))
    g = np.array([0, 1, -1, 1 / p["alpha"] - log_N, -1 / p["beta"] + log_C - log_N]) / both
    return float(1.645 * NOISE * np.sqrt(g @ np.linalg.solve(J.T @ J, g)))


def simulated(p: dict, N: np.ndarray, D: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    loss = p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"]
    return loss * np.exp(NOISE * generator.standard_normal(len(N)))


@dataclass
class Pilot:
    """The pilot of a seed, its fit, and what becomes of it with further runs."""

    truth: dict
    seed: int

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed)
        self.loss = simulated(self.truth, PILOT_N, PILOT_D, generator)
        self.fit = self._fitted(PILOT_N, PILOT_D, self.loss)

    def _fitted(self, N: np.ndarray, D: np.ndarray, loss: np.ndarray) -> ps.Fit:
        return ps.fit({"N": N, "D": D, "loss": loss}, objective="gaussian", starts=[self.truth], threads=1)

    def with_runs(self, N: np.ndarray, D: np.ndarray) -> tuple[float, float]:
        """(half the interval of ln N_opt, error of ln N_opt) after a refit."""
        generator = np.random.default_rng([self.seed, 1])
        loss = np.r_[self.loss, simulated(self.truth, N, D, generator)]
        fit = self._fitted(np.r_[PILOT_N, N], np.r_[PILOT_D, D], loss)
        boot = fit.bootstrap(RESAMPLES, seed=self.seed, starts=1, resample="residuals")
        low, high = boot.interval(lambda p: n_opt(p, TARGET), LEVEL)
        return float(np.log(high / low) / 2), float(abs(np.log(n_opt(fit.params, TARGET) / n_opt(self.truth, TARGET))))


@dataclass
class Outcome:
    """Medians over the pilots."""

    spend: float
    runs: float
    width: float
    error: float


def outcome(pilots: list[Pilot], layouts: list[Layout]) -> Outcome:
    rows = [
        (float(np.sum(6 * N * D)), len(N), *pilot.with_runs(N, D))
        for pilot, (N, D) in zip(pilots, layouts, strict=True)
    ]
    return Outcome(*np.median(rows, axis=0).tolist())


def rival(p: dict, pilots: list[Pilot], family: Iterator[Callable[[dict], Layout]]) -> list[Outcome]:
    """What the layouts that are best for their spend come to, by spend, until the least of WIDTHS is reached."""
    options = []
    for layout in family:
        N, D = layout(p)
        if len(N):
            options.append((float(np.sum(6 * N * D)), local_width(p, N, D), layout))
    options.sort(key=lambda option: option[0])
    found: list[Outcome] = []
    best = np.inf
    for _, width, layout in options:
        if width < best:
            best = width
            if width < 2 * max(WIDTHS):  # not those that are far from it
                found.append(outcome(pilots, [layout(pilot.fit.params) for pilot in pilots]))
                if found[-1].width <= min(WIDTHS):
                    break
    return found


def designed(pilots: list[Pilot], spend: float) -> Outcome:
    layouts = []
    for pilot in pilots:
        plan = next_runs(
            pilot.fit, spend, target="N_opt", compute=TARGET, N_range=N_RANGE, D_range=D_RANGE, tokens_per_parameter=RATIO,
            max_run=CAP, n_runs=MOST_RUNS, average=16,
        )  # fmt: skip
        layouts.append((plan.N, plan.D))
    return outcome(pilots, layouts)


def least_designed(pilots: list[Pilot], width: float) -> Outcome:
    """By bisection over spends a factor of 1.2 apart."""
    spends = LARGEST * 0.02 * 1.2 ** np.arange(32)
    low, high = 0, len(spends) - 1
    reached = designed(pilots, spends[high])
    assert reached.width <= width
    while low < high:
        middle = (low + high) // 2
        tried = designed(pilots, spends[middle])
        if tried.width <= width:
            high, reached = middle, tried
        else:
            low = middle + 1
    return reached


@pytest.mark.parametrize("name", TRUTHS)
def test_spend_for_an_interval(name: str) -> None:
    warnings.simplefilter("ignore")
    p = TRUTHS[name]
    pilots = [Pilot(p, seed) for seed in range(SEEDS)]
    rivals = {"log-uniform grid": rival(p, pilots, grids()), "isoFLOP sweeps": rival(p, pilots, sweeps())}
    print(
        f"\n{name}: half the {LEVEL:.0%} interval of ln N_opt at {TARGET:.2g} FLOPs, {SEEDS} pilots; "
        f"the pilot's alone is {outcome(pilots, [(np.empty(0), np.empty(0))] * SEEDS).width:.2f}"
    )
    print(
        f"{'':>18} {'to reach':>8} {'spend, FLOPs':>13} {'runs':>5} {'width':>6} {'error':>6} {'next_runs spends':>17}"
    )
    ratios = {}
    for width in WIDTHS:
        ours = least_designed(pilots, width)
        print(
            f"{'next_runs':>18} {width:>8} {ours.spend:>13.3g} {ours.runs:>5.0f} {ours.width:>6.3f} {ours.error:>6.3f}"
        )
        for rival_name, outcomes in rivals.items():
            reached = [other for other in outcomes if other.width <= width]
            if not reached:  # at no spend under the caps
                print(f"{rival_name:>18} {width:>8} {'not reached':>13}, least {min(o.width for o in outcomes):.3f}")
                continue
            other = min(reached, key=lambda o: o.spend)
            ratios[width, rival_name] = ours.spend / other.spend
            print(
                f"{rival_name:>18} {width:>8} {other.spend:>13.3g} {other.runs:>5.0f} {other.width:>6.3f} {other.error:>6.3f} "
                f"{ours.spend / other.spend:>13.3f} of it"
            )
    assert max(ratios.values()) <= REQUIRED, ratios
