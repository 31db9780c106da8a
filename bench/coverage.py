"""Coverage of nominal 90 % intervals at the Chinchilla design: simulated data sets whose truth is known.

python bench/coverage.py [--sims 1000] [--resamples 600] [--noise gaussian t3 outliers clustered] [--seed 20]

The truth is the law fitted to the 240 points of Hoffmann et al. (digitised by Besiroglu et al. 2024), or a law like it
where they are absent; N and D are theirs. Noise is added to log loss: Gaussian of 0.005 (what the middle half of the real
residuals show); Student t with 3 degrees times 0.005; Gaussian with 5 % of it ten times as large; or clustered: 0.005
shared by runs of one N, and 0.0025 of each run's own. Clustered noise is analysed with cluster=.
"""

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from chinchilla_points import runs_240

import pyscaling as ps

LEVEL = 0.9
SIZE = 0.005


def n_opt(p, C: float):
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    return G * (C / 6) ** (p["beta"] / (p["alpha"] + p["beta"]))


def noises(cluster: np.ndarray) -> dict[str, Callable[[np.random.Generator], np.ndarray]]:
    n, clusters = len(cluster), cluster.max() + 1
    return {
        "gaussian": lambda g: SIZE * g.standard_normal(n),
        "t3": lambda g: SIZE * g.standard_t(3, n),
        "outliers": lambda g: SIZE * g.standard_normal(n) * np.where(g.random(n) < 0.05, 10, 1),
        "clustered": lambda g: SIZE * g.standard_normal(clusters)[cluster] + SIZE / 2 * g.standard_normal(n),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sims", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=600)
    parser.add_argument("--noise", nargs="*", default=["gaussian", "t3", "outliers", "clustered"])
    parser.add_argument("--seed", type=int, default=20, help="of the noise; another gives other data sets")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    design = runs_240()
    truth = ps.fit(design, law="chinchilla").params
    log_loss = np.log(ps.Law("E + A/N**alpha + B/D**beta").evaluate(truth, N=design.N, D=design.D))
    _, cluster = np.unique(np.round(np.log(design.N), 2), return_inverse=True)
    C = 10 * design.C.max()
    at = {"N": n_opt(truth, C), "D": C / 6 / n_opt(truth, C)}
    quantities: dict[str, Callable] = {
        "alpha": lambda p: p["alpha"],
        "beta": lambda p: p["beta"],
        "E": lambda p: p["E"],
        "N_opt(1e24)": lambda p: n_opt(p, 1e24),
        "loss at 10 C": lambda p: p["E"] + p["A"] / at["N"] ** p["alpha"] + p["B"] / at["D"] ** p["beta"],
    }
    true = {name: float(quantity(truth)) for name, quantity in quantities.items()}
    print(
        f"nominal {LEVEL:.0%} intervals, {arguments.sims} data sets of {len(design)} runs, {arguments.resamples} resamples each"
    )
    print(f"{'noise':>10} {'interval':>22} " + " ".join(f"{name:>12}" for name in quantities) + f" {'a run there':>12}")
    for noise in arguments.noise:
        started, generator = time.perf_counter(), np.random.default_rng(arguments.seed)
        draw = noises(cluster)[noise]
        labels = cluster if noise == "clustered" else None
        hits: dict[str, list[list[bool]]] = defaultdict(list)
        for seed in range(arguments.sims):
            fit = ps.fit(
                {"N": design.N, "D": design.D, "loss": np.exp(log_loss + draw(generator))},
                law="chinchilla",
                starts=truth,
            )
            boot = fit.bootstrap(arguments.resamples, cluster=labels, seed=seed, starts=1)
            for method in ("t", "percentile", "bc"):
                ends = {name: boot.interval(quantity, LEVEL, method) for name, quantity in quantities.items()}
                hits[f"pairs, {method}"].append([low <= true[name] <= high for name, (low, high) in ends.items()])
            run = fit.predict(**at, level=LEVEL, kind="run", cluster=labels, n=arguments.resamples, seed=seed)
            hits["pairs, t"][-1].append(run.low <= true["loss at 10 C"] * np.exp(draw(generator)[0]) <= run.high)
            other = fit.bootstrap(
                arguments.resamples,
                cluster=labels,
                seed=seed,
                starts=1,
                resample="residuals" if labels is None else "wild",
            )
            ends = {name: other.interval(quantity, LEVEL) for name, quantity in quantities.items()}
            hits["residuals or wild, t"].append([low <= true[name] <= high for name, (low, high) in ends.items()])
            errors = fit.standard_errors(cluster=labels)
            reach = 1.645
            hits["sandwich"].append(
                [abs(fit.params[name] - true[name]) <= reach * errors[name] for name in ("alpha", "beta", "E")]
            )
            if labels is None:
                profiles = [fit.profile(name, robust=False).interval(LEVEL) for name in ("alpha", "beta", "E")]
                hits["profile"].append(
                    [
                        low <= true[name] <= high
                        for name, (low, high) in zip(("alpha", "beta", "E"), profiles, strict=True)
                    ]
                )
        for method, rows in hits.items():
            shares = " ".join(f"{100 * share:>11.1f}%" for share in np.mean(rows, axis=0))
            print(f"{noise:>10} {method:>22} {shares}", flush=True)
        print(f"{'':>10} {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
