"""Long tables: the search for minima on a sample of the runs, the minima themselves on all."""

import numpy as np

from pyscaling.fitting.problem import Problem

LONG = 50_000  # runs; a full search over fewer takes less than half a second
SAMPLE = 10_000
_CLOSE = 1e-6  # relative difference of objectives of one minimum
_TRIED = 4  # minima of the sample that are solved for on all runs


def sample_of(problem: Problem) -> Problem:
    """The problem of some 10,000 runs: some of each group, and each variable's extremes."""
    n = len(problem.y)
    order = np.random.default_rng(0).permutation(n)
    rows = [order[:SAMPLE]]
    flags = problem.law.indicators.values()
    for name, column in problem.variables.items():
        rows.append(np.array([column.argmin(), column.argmax()]))
        if name in flags:
            rows.append(order[column[order] > 0][: SAMPLE // len(flags)])
    return problem.select(np.unique(np.concatenate(rows)))


def solve_from_sample(problem: Problem, starts: np.ndarray) -> dict[str, np.ndarray]:
    """As Problem.solve: a start's minimum of the sample, solved for again on all runs if it is among the best.

    Of the others the objective is told relative to the best, as the sample has it.
    """
    found = sample_of(problem).solve(starts)
    value = np.where(np.isfinite(found["value"]) & (found["status"] != 3), found["value"], np.inf)
    lowest = float(value.min())
    if not np.isfinite(lowest):
        return problem.solve(starts)
    order = np.argsort(value, kind="stable")
    distinct: list[int] = []
    minimum = np.full(len(value), -1)  # start -> place in distinct
    for k in order:
        if not distinct or value[k] > value[distinct[-1]] * (1 + _CLOSE):
            if len(distinct) == _TRIED or value[k] > 1.5 * lowest:
                break
            distinct.append(int(k))
        minimum[k] = len(distinct) - 1
    solved = problem.solve(found["theta"][distinct])
    scale = float(solved["value"][0]) / lowest if lowest > 0 else 1.0
    out = {key: column.copy() for key, column in found.items()}
    out["value"] = found["value"] * scale
    told = minimum >= 0
    for key, column in solved.items():
        out[key][told] = column[minimum[told]]
    return out


def solve_from_parts(problem: Problem, starts: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Points [R, P] that fit halves of the runs, and where they lead on all of them, begun near: of a robust objective.

    A few runs that are far off, where a law leans on few, draw every start to a minimum of their own while residuals still
    count as squares (see csrc/solver.hpp). Some halves hold none or few of them.
    """
    n, generator = len(problem.y), np.random.default_rng(0)
    size = max(n // 2, min(n, 3 * len(starts[0])))
    found = []
    for _ in range(12):
        part = problem.select(np.sort(generator.permutation(n)[:size])).solve(starts[:4])
        value = np.where(np.isfinite(part["value"]) & (part["status"] != 3), part["value"], np.inf)
        found.append(part["theta"][int(np.argmin(value))])
    points = np.array(found)
    size_of = [float(np.median(np.abs(problem.y - problem.value_and_jacobian(point)[0]))) for point in points]
    return points, problem.solve(points, spread=max(problem.core_delta, min(filter(np.isfinite, size_of), default=0.0)))
