"""The profile of a parameter: how well the law can fit with that parameter held elsewhere."""

from typing import TYPE_CHECKING, Any

import numpy as np

from pyscaling.fitting.bootstrap import check_level, student_t
from pyscaling.fitting.covariance import score_moments
from pyscaling.fitting.problem import LARGEST_LOG, LEAST_LOG
from pyscaling.fitting.result import Result, new_axes

if TYPE_CHECKING:
    from pyscaling.fitting.fit import Fit

_FAR = 5.0  # signed roots beyond which a profile is not followed: levels up to 0.999999
_STEPS = 120
_DECADE = float(np.log(10))
_DARK = 20.0  # e-folds a step, there
_FARTHEST_LOG = 230.0  # 1e100: what is still flat there is open


class Profile(Result):
    """Profile of one parameter.

    name; values: [K] ascending, the parameter held there. objective_values: [K], the least objective with the others
    free. roots: [K], signed roots of the likelihood ratio, zero at the estimate and about a Student t if that is true.
    params: name -> [K], the other parameters on the way.
    """

    def __init__(
        self, fit: "Fit", name: str, theta: np.ndarray, objective_values: np.ndarray, roots: np.ndarray
    ) -> None:
        self.fit, self.name, self.objective_values, self.roots = fit, name, objective_values, roots
        self.params = dict(zip(fit.law.names, fit.problem.to_params(theta).T, strict=True))
        self.values = self.params[name]
        self.degrees = max(1, len(fit.runs) - fit.problem.n_free)

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """Where the likelihood ratio stays below its quantile; an end is infinite, or at the domain's edge, if it never leaves.

        Likelihood ratio of least squares (Bates & Watts 1988, section 6.1), pseudo-likelihood of other objectives (Ronchetti
        1982), corrected for runs of unequal noise by the ratio of the variances (Kent 1982).
        """
        check_level(level)
        limit = student_t((1 + level) / 2, self.degrees)
        domain = self.fit.law.parameters[self.name]
        j = self.fit.law.names.index(self.name)
        lower, upper = float(self.fit.problem.lower[j]), float(self.fit.problem.upper[j])
        edges = [lower * self.fit.problem.units[j], upper * self.fit.problem.units[j]]
        if domain.logarithmic:
            edges = [np.exp(lower) if lower > LEAST_LOG else 0.0, np.exp(upper) if upper < LARGEST_LOG else np.inf]
        scale = np.log if domain.logarithmic else np.asarray
        back = np.exp if domain.logarithmic else float
        ends = []
        for sign, edge in ((-1, edges[0]), (1, edges[1])):
            side = sign * self.roots >= 0
            root, x = np.abs(self.roots[side])[::sign], scale(self.values[side])[::sign]
            beyond = np.flatnonzero(root > limit)
            if not len(beyond):
                ends.append(float(edge))
                continue
            k = int(beyond[0])
            share = (limit - root[k - 1]) / (root[k] - root[k - 1]) if k else 1.0
            ends.append(float(back(x[k - 1] + share * (x[k] - x[k - 1]) if k else x[0])))
        return ends[0], ends[1]

    def __str__(self) -> str:
        return self.summary()

    def summary(self, level: float = 0.9) -> str:
        """The estimate and its interval in a line; an open end is said as such."""
        low, high = self.interval(level)
        domain = self.fit.law.parameters[self.name]
        if np.isinf(high) and (low == 0 if domain.positive else np.isinf(low)):
            claim = f"{self.name} is not determined by these runs"
        elif np.isinf(high):
            claim = f"{self.name} > {low:.4g}"
        elif low == 0 if domain.positive else np.isinf(low):
            claim = f"{self.name} < {high:.4g}"
        else:
            claim = f"{low:.5g} < {self.name} < {high:.5g}"
        return f"profile of {self.name} = {self.fit.params[self.name]:.5g}: {claim} ({100 * level:g} %)"

    def to_frame(self) -> Any:
        import pandas as pd

        return pd.DataFrame({**self.params, "objective": self.objective_values, "root": self.roots})

    def to_dict(self) -> dict[str, Any]:
        columns = {name: column.tolist() for name, column in self.params.items()}
        return {
            "parameter": self.name,
            "level": 0.9,
            "interval": list(self.interval()),
            "params": columns,
            "objective": self.objective_values.tolist(),
            "roots": self.roots.tolist(),
        }

    def plot(self, ax: Any = None, level: float = 0.9) -> Any:
        """Size of the signed root against the parameter, the limit of an interval dashed; returns the Axes."""
        ax = new_axes() if ax is None else ax
        ax.plot(self.values, np.abs(self.roots), "k.-", lw=1)
        ax.axhline(student_t((1 + level) / 2, self.degrees), color="black", ls="--", lw=0.8)
        logarithmic = self.fit.law.parameters[self.name].logarithmic
        ax.set(
            xlabel=self.name, xscale="log" if logarithmic else "linear", ylabel="|signed root|", title=self.fit.law.name
        )
        return ax


def one_sided(fit: "Fit", name: str, level: float) -> tuple[float, float]:
    """Interval of a parameter that ended at a bound: from there to where its profile leaves the one-sided quantile of t."""
    low, high = fit.profile(name).interval(max(2 * level - 1, 1e-6))
    domain, bounds = fit.law.parameters[name], fit.bounds(name)
    if domain.logarithmic and bounds[0] == 0 and fit.theta[fit.law.names.index(name)] <= LEAST_LOG / 2:
        low = 0.0
    return low, high


def profile(fit: "Fit", name: str, cluster: Any, robust: bool | None) -> Profile:
    """See Fit.profile."""
    if name not in fit.law.parameters:
        raise ValueError(f"{name!r} is not a parameter of {fit.law.name}; those are {', '.join(fit.law.names)}.")
    problem, j = fit.problem, fit.law.names.index(name)
    if problem.lower[j] == problem.upper[j]:
        raise ValueError(f"{name} is fixed at {fit.params[name]:g}; only a free parameter has a profile.")
    s, v = score_moments(fit)
    scale = problem.objective_scale()
    lowest = fit.objective_value / scale
    plain = float(fit.covariance(robust=False, units="theta")[j, j])
    if robust is None:
        robust = problem.objective != "gaussian" or cluster is not None
    variance = float(fit.covariance(cluster, robust, units="theta")[j, j])
    # Near the estimate the likelihood ratio is theta's distance over its plain variance, whatever the true one is.
    correction = plain / variance if np.isfinite(plain) and variance > 0 else 1.0

    def signed_root(value: float) -> float:
        ratio = 2 * s / v * (value - lowest) / problem.weights.mean() if v > 0 else np.inf
        return float(np.sqrt(max(0.0, correction * ratio)))

    error = float(np.sqrt(variance))
    # A term that vanished does nothing until its coefficient is out of the dark.
    vanished = fit.law.parameters[name].logarithmic and name in fit.evidence.at_bound
    first = 0.25 * error if 0 < error < 1 + abs(fit.theta[j]) else 0.1 * (1 + abs(fit.theta[j]))
    first = _DECADE / 4 if vanished else first
    path = [(fit.theta, lowest, 0.0)]
    logarithmic = fit.law.parameters[name].logarithmic
    for sign in (-1.0, 1.0):
        step, theta, root, flat = first, fit.theta, 0.0, 0
        for _ in range(_STEPS):
            dark = vanished and sign > 0 and root < 0.2
            if dark:
                step = _DARK
            edge = problem.lower[j] if sign < 0 else problem.upper[j]
            held = theta[j] + sign * min(step, sign * (edge - theta[j]))
            if held == theta[j] or (logarithmic and sign * held > _FARTHEST_LOG):
                break
            start = theta.copy()
            start[j] = held
            solved = problem.holding(j, held).solve(start)
            theta, value = solved["theta"][0], float(solved["value"][0])
            if not np.isfinite(value):
                break
            before, root = root, signed_root(value)
            path.append((theta, value, sign * root))
            # What stays flat for three decades is open; farther out rounding would speak.
            flat = flat + 1 if step >= _DECADE and abs(root - before) < 1e-3 and not dark else 0
            if root > _FAR or (logarithmic and flat == 3):
                break
            if dark and root >= 0.2 and step > first:  # went past: once more, with care
                step, theta, root = first, path[-2][0], path[-2][2]
                path.pop()
                vanished = False
                continue
            # About a quarter of a standard error a step, doubled while the profile is flat.
            step *= 2.0 if root - before < 0.2 else 1.0
            if logarithmic:
                step = min(step, max(first, _DECADE))
    path.sort(key=lambda point: point[0][j])
    thetas, values, roots = zip(*path, strict=True)
    return Profile(fit, name, np.array(thetas), np.array(values) * scale, np.array(roots))
