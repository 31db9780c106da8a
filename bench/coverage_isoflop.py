"""Coverage of the 90 % intervals of `ps.isoflop`, where the optima scatter between budgets.

python bench/coverage_isoflop.py [--tables 1000] [--method parabola akima] [--design even unequal pair] [--rivals | --others]

Budgets C are log-spaced from 6e18 to 1e22. At each the true ln N_opt is 0.5 ln(C / 120) + normal(0, tau); runs lie within
+-1.2 of it, D = C / 6N, and the loss is (2 + 0.08 x^2) e^normal(0, 0.002), x = ln(N / N_opt). tau is what gives a misfit of
1 (none), 2, 4 or 9. Designs: "even", nine runs evenly spaced; "random", nine anywhere; "unequal", 5 to 15 anywhere; "pair",
two budgets of 90 runs among budgets of five. Beside the library stand intervals from the same optima by other rules:
"formal" (weights and normal intervals from the runs' noise alone), "REML, normal", "DL, t" (DerSimonian & Laird's tau),
"REML, t, no floor" (weights by each budget's own error), "OLS, t" (equal weights).

--others: `ps.envelope` and `ps.compute_gain` instead, on laws with noise of each run: curves of a law of N and D whose losses
are each scaled by one e^normal(0, noise); two groups of runs on L(C) = 1.7 + 1.2 (C / 1e19)^-0.16, the second worth 1.7.
"""

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from scipy.stats import norm, t

import pyscaling as ps
from pyscaling.fitting.isoflop import between_variance

LEVEL = 0.9
BEYOND = 1e24  # FLOPs, a hundred times the largest budget
MISFITS = (1.0, 2.0, 4.0, 9.0)
BUDGETS = (4, 6, 8, 10, 12)


def sizes(design: str, budget: int, generator: np.random.Generator) -> np.ndarray:
    """ln N about the optimum."""
    if design == "even":
        return np.linspace(-1.2, 1.2, 9)
    count = {"random": 9, "unequal": generator.integers(5, 16), "pair": 90 if budget in (0, 2) else 5}[design]
    return generator.uniform(-1.2, 1.2, count) if design != "pair" else np.linspace(-1.2, 1.2, count)


def table(design: str, budgets: int, tau: float, generator: np.random.Generator) -> dict[str, np.ndarray]:
    N, C, loss = [], [], []
    for i, budget in enumerate(np.geomspace(6e18, 1e22, budgets)):
        x = sizes(design, i, generator)
        N.append(np.exp(0.5 * np.log(budget / 120) + tau * generator.standard_normal() + x))
        C.append(np.full(len(x), budget))
        loss.append((2 + 0.08 * x**2) * np.exp(0.002 * generator.standard_normal(len(x))))
    return {"N": np.concatenate(N), "C": np.concatenate(C), "loss": np.concatenate(loss)}


def rivals(u: np.ndarray, y: np.ndarray, se: np.ndarray) -> Iterator[tuple[str, float, float]]:
    """(rule, slope, half of its interval)."""
    X, degrees = np.stack([np.ones_like(u), u], axis=-1), len(u) - 2
    z, quantile = norm.ppf((1 + LEVEL) / 2), t.ppf((1 + LEVEL) / 2, degrees)

    def line(variance: np.ndarray) -> tuple[float, float, float]:
        """Slope, its formal error, root of chi^2 a degree of freedom."""
        covariance = np.linalg.inv((X.T / variance) @ X)
        beta = covariance @ (X.T / variance) @ y
        return beta[1], np.sqrt(covariance[1, 1]), np.sqrt(np.sum((y - X @ beta) ** 2 / variance) / degrees)

    v = se**2
    P = np.diag(1 / v) - (X / v[:, None]) @ np.linalg.inv((X.T / v) @ X) @ (X.T / v)
    tau2_moments = max(0.0, (y @ P @ y - degrees) / np.trace(P))
    reml = v + between_variance(X, y, v)
    for name, variance in (("formal", v), ("REML, normal", reml)):
        slope, error, _ = line(variance)
        yield name, slope, z * error
    for name, variance in (("DL, t", v + tau2_moments), ("REML, t, no floor", reml), ("OLS, t", np.ones_like(v))):
        slope, error, scatter = line(variance)
        yield name, slope, quantile * error * scatter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--method", nargs="*", default=["parabola"])
    parser.add_argument("--design", nargs="*", default=["even"])
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--rivals", action="store_true", help="the exponent of N by other rules, too")
    parser.add_argument("--others", action="store_true", help="envelope and compute_gain instead")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.others:
        others(arguments.tables)
        return
    for method in arguments.method:
        for design in arguments.design:
            report(method, design, arguments)


def report(method: str, design: str, arguments: argparse.Namespace) -> None:
    # The error of one optimum, which tau is measured in.
    one = ps.isoflop(table(design, 40, 0.0, np.random.default_rng(1)), method=method, n=400).optima
    error = float(np.median(one["N_se"] / one.N))
    header = ["budgets", "tau", "misfit", "exponent_N", "width", f"N({BEYOND:.0e})", f"D({BEYOND:.0e})", "N(1e20)"]
    extra = ["formal", "REML, normal", "DL, t", "REML, t, no floor", "OLS, t"] if arguments.rivals else []
    print(
        f"\n{method}, runs {design}, {arguments.tables} tables a row, {LEVEL:.0%} intervals; error of an optimum {error:.3g}"
    )
    print("| " + " | ".join([*header, *extra]) + " |\n" + "|---" * len(header + extra) + "|")
    started = time.perf_counter()
    for budgets in arguments.budgets:
        for target in MISFITS:
            tau = error * np.sqrt(target**2 - 1)
            generator = np.random.default_rng([arguments.seed, budgets, round(target)])
            hits: dict[str, list[bool]] = defaultdict(list)
            misfit, width = [], []
            for seed in range(arguments.tables):
                runs = table(design, budgets, tau, generator)
                try:
                    result = ps.isoflop(runs, method=method, n=arguments.resamples, seed=seed)
                except ValueError:  # fewer than two budgets have an optimum inside their runs
                    continue
                if not result.degrees:
                    continue
                low, high = result.interval("exponent_N", LEVEL)
                hits["exponent_N"].append(low <= 0.5 <= high)
                width.append(high - low)
                misfit.append(result.misfit)
                for name, C, law in ((header[5], BEYOND, "N"), (header[6], BEYOND, "D"), (header[7], 1e20, "N")):
                    at = getattr(result, law)(C, level=LEVEL)
                    true = np.sqrt(C / 120) if law == "N" else C / 6 / np.sqrt(C / 120)
                    hits[name].append(at.low <= true <= at.high)
                if extra:
                    optima = result.optima
                    for name, slope, half in rivals(
                        np.log(optima.C / 1e20), np.log(optima.N), optima["N_se"] / optima.N
                    ):
                        hits[name].append(abs(slope - 0.5) <= half)
            left_out = arguments.tables - len(misfit)
            share = [f"{100 * np.mean(hits[name]):.1f} %" for name in [header[3], *header[5:], *extra]]
            cells = [
                f"{budgets}",
                f"{tau:.3g}",
                f"{np.sqrt(np.mean(np.square(misfit))):.2g}",
                share[0],
                f"{np.mean(width):.2g}",
            ]
            print(
                "| " + " | ".join([*cells, *share[1:]]) + f" |{f' {left_out} without' if left_out else ''}", flush=True
            )
    print(f"{time.perf_counter() - started:.0f} s")


def others(tables: int) -> None:
    alpha, beta, D = 0.34, 0.28, np.geomspace(1e8, 5e11, 100)
    print("| envelope of | noise of a run | exponent_N | half width | 1.645 x its true spread |\n|---|---|---|---|---|")
    for sizes in (8, 12, 25, 50):
        for noise in (0.0, 0.002, 0.01):
            generator = np.random.default_rng([sizes, round(1000 * noise)])
            rows = []
            for seed in range(tables):
                N = np.exp(np.linspace(np.log(1e7), np.log(1e10), sizes) + 0.1 * generator.standard_normal(sizes))
                loss = 1.69 + 406.4 / N[:, None] ** alpha + 410.7 / D**beta
                loss *= np.exp(noise * generator.standard_normal((sizes, 1)))
                curves = {"N": np.repeat(N, 100), "D": np.tile(D, sizes), "loss": loss.ravel()}
                try:
                    found = ps.envelope(curves, points=300, n=100, seed=seed)
                except ValueError:  # fewer than two points between the smallest and the largest N
                    continue
                rows.append((*found.interval("exponent_N", LEVEL), found.exponent_N))
            low, high, value = np.array(rows).T
            true = beta / (alpha + beta)
            cells = [f"{np.mean((low <= true) & (true <= high)):.1%}", f"{np.mean(high - low) / 2:.2g}"]
            print(f"| {sizes} sizes | {noise:g} | {' | '.join(cells)} | {1.645 * np.std(value):.2g} |", flush=True)
    print("\n| gain: runs a group | noise | gain |\n|---|---|---|")
    for budgets, repeats, noise in ((6, 1, 0.002), (9, 1, 0.002), (9, 1, 0.01), (20, 1, 0.002), (9, 3, 0.005)):
        C = np.repeat(np.geomspace(1e18, 1e21, budgets), repeats)
        generator, hits = np.random.default_rng([budgets, repeats]), []
        for seed in range(tables):
            loss = np.concatenate([1.7 + 1.2 * (g * C / 1e19) ** -0.16 for g in (1.0, 1.7)])
            loss *= np.exp(noise * generator.standard_normal(len(loss)))
            runs = {"C": np.tile(C, 2), "loss": loss, "group": np.repeat(["A", "B"], len(C))}
            try:
                found = ps.compute_gain(runs, "group", n=300, seed=seed, starts=16)
            except ValueError:  # fewer than four runs on a frontier
                continue
            hits.append(found.low <= 1.7 <= found.high)
        print(f"| {budgets} budgets of {repeats} | {noise:g} | {np.mean(hits):.1%} |", flush=True)


if __name__ == "__main__":
    main()
