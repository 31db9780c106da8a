"""What a budget allows, and the best of it: for a compute C the N that minimises L(N, D(N)), for many samples at once.

A budget pays for training and, where it is asked to, for serving: C = 6 N D + 2 N D_inf (Sardana & Frankle 2024, eq. 2), so
that N parameters see D(N) = (C / N - 2 D_inf) / 6 tokens. Chinchilla's optimum without limits has a closed form. Any
other law is minimised along ln D, which resolves also the models that serving leaves hardly a token: a grid finds the
basin, golden section the neighbourhood, and Newton steps on eighth-order differences the optimum to about 1e-11. The
least compute for a loss is Newton's on both ln N and ln C.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyscaling.laws import Law
from pyscaling.planning.identity import parameters_as

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Parameters = Mapping[str, Any]  # name -> float or array [R]
Condition = Callable[[Array, Array, Array, Any], Array]  # of loss, N, C [R, ...] and which samples: falls with C

SMALLEST_N = 768.0  # one layer of width 8, the smallest shape of `accounting.shape_near`
FLOPS_PER_PARAMETER_TOKEN = 6.0  # C = 6ND
SERVING_FLOPS = 2.0  # a parameter and token, forward alone
R_D_STAR, R_N_STAR = 15.387756, 5.309743  # Muennighoff et al. 2023, table 1


@dataclass(frozen=True)
class Repetition:
    """What tokens seen again are worth: U unique ones and R repetitions count as U (1 + R* (1 - exp(-R / R*))).

    Muennighoff et al. 2023, eqs. 5-7. Parameters beyond those that are optimal for U tokens lose value likewise where the
    law is chinchilla's, for there they have a closed form; a law of N, D and U knows of U itself.
    """

    unique_tokens: float
    R_D_star: float = R_D_STAR
    R_N_star: float = R_N_STAR

    def effective(self, law: Law, params: Parameters, N: Any, D: Any) -> tuple[Any, Any]:
        U = self.unique_tokens
        D_effective = _diminished(D, np.minimum(D, U), self.R_D_star)
        names = parameters_as(law, "chinchilla")
        if names is None:
            return N, D_effective
        A, B, alpha, beta = (params[names[name]] for name in ("A", "B", "alpha", "beta"))
        fitting = (alpha * A / (beta * B)) ** (1 / alpha) * U ** (beta / alpha)  # optimal for U tokens
        return _diminished(N, np.minimum(N, fitting), self.R_N_star), D_effective


def _diminished(x: Array, unique: Array, R_star: float) -> Array:
    with np.errstate(all="ignore"):
        return unique * (1 - R_star * np.expm1((1 - x / unique) / R_star))


@dataclass(frozen=True)
class Frontier:
    """The models among which a budget chooses: N from `low` to `high`, D what the budget leaves, `most_tokens` at most."""

    law: Law
    low: float
    high: float
    inference_tokens: float = 0.0
    most_tokens: float = inf
    repetition: Repetition | None = None

    def tokens(self, N: Array, compute: float | Array) -> Array:
        """D(N) of a budget that is spent, or most_tokens."""
        D = (np.asarray(compute) / N - SERVING_FLOPS * self.inference_tokens) / FLOPS_PER_PARAMETER_TOKEN
        return np.minimum(np.maximum(D, 1e-300), self.most_tokens)

    def compute(self, N: Any, D: Any) -> Any:
        return FLOPS_PER_PARAMETER_TOKEN * N * D + SERVING_FLOPS * N * self.inference_tokens

    def loss(self, params: Parameters, N: Array, D: Array) -> Array:
        """L of N, D [R, K] (or [1, K]) with params name -> [R]: [R, K]."""
        columns = {name: np.atleast_1d(np.asarray(value, dtype=np.float64))[:, None] for name, value in params.items()}
        extra = {}
        if "U" in self.law.variables:
            extra["U"] = np.asarray(self.repetition.unique_tokens if self.repetition is not None else 1e300)
        elif self.repetition is not None:
            N, D = self.repetition.effective(self.law, columns, N, D)
        return np.asarray(self.law.evaluate(columns, N=N, D=D, **extra), dtype=np.float64)

    def loss_at(self, params: Parameters, N: Array, compute: float | Array) -> Array:
        """L(N, D(N)) with params name -> [R], N [R, K] (or [1, K]), compute a number or [R, 1]: [R, K]."""
        return self.loss(params, N, self.tokens(N, compute))

    def best_N(self, params: Parameters, compute: float | Array, near: float | None = None) -> Array:
        """N in [low, high] with the least loss at `compute` FLOPs (a number or [R]), one for each sample: [R].

        params: name -> [R]. A sample without an optimum inside gets the better end of the range. near: N of the point
        estimate, from which samples are found fast.
        """
        compute = np.asarray(compute, dtype=np.float64)
        closed = _chinchillas_names(self.law) is not None and not self.inference_tokens
        if near is not None and (self.repetition is not None or not closed):
            N, good = _newton_at(self._without_cap(), params, compute.item(), near)
            if not good.all():
                N[~good] = self.best_N(_of(params, ~good), compute)
            return np.clip(np.maximum(N, self.at_tokens(self.most_tokens, compute)), self.low, self.high)
        high = np.minimum(self.high, self.at_tokens(_LEAST_TOKENS if self.inference_tokens else 0.0, compute))
        N = self._unlimited_best(params, compute, high)
        if self.repetition is not None:
            repeats = self.at_tokens(self.repetition.unique_tokens, compute)  # the N that sees each token once
            again = self._unlimited().tokens(N, compute) > self.repetition.unique_tokens * (1 + 1e-12)
            if again.any():
                with_repeats = _minimise(
                    self._without_cap(), params, compute, self.low, np.clip(repeats, self.low, high)
                )
                N = np.where(again, with_repeats, N)
        return np.clip(np.maximum(N, self.at_tokens(self.most_tokens, compute)), self.low, high)

    def least_compute(
        self, params: Parameters, target: Any, near: tuple[float, float] | None = None, *, exact: bool = True
    ) -> tuple[Array, Array]:
        """(C, N) of the least compute for a loss `target` (a number or [R]): [R]; NaN where it is not to be reached.

        near: (C, N) of the point estimate, from which samples are found fast. exact: a few samples to 1e-10, and not to 1e-4.
        """
        target = np.broadcast_to(np.asarray(target, dtype=np.float64), _size(params))
        floor = self.least_loss(params)
        solvable = np.isfinite(floor) & (target > floor)

        def excess(loss: Array, N: Array, compute: Array, which: Any) -> Array:
            above = (loss.T - floor[which]).T
            return np.log(np.maximum(above, 1e-300).T / (target - floor)[which]).T  # of a power law a line in ln C

        return self._solve(params, excess, solvable, near, exact)

    def total_for_training(
        self, params: Parameters, training: float, near: tuple[float, float] | None = None
    ) -> tuple[Array, Array]:
        """(C, N) of training and serving together whose best division leaves `training` FLOPs to training: [R].

        near: as in least_compute.
        """

        def lacks(loss: Array, N: Array, compute: Array, which: Any) -> Array:
            return np.log(training / (FLOPS_PER_PARAMETER_TOKEN * N * self.tokens(N, compute)))

        return self._solve(params, lacks, np.ones(_size(params), dtype=bool), near)

    def _solve(
        self,
        params: Parameters,
        condition: Condition,
        solvable: Mask,
        near: tuple[float, float] | None,
        exact: bool = True,
    ) -> tuple[Array, Array]:
        """(C, N) on the frontier where the condition, falling with C, is zero; NaN where it is not.

        Newton finds most: within the limits, or along one that binds; the rest, and few samples' last digits, are bracketed.
        """
        C, N = np.full(len(solvable), np.nan), np.full(len(solvable), np.nan)
        near = _roughly(self, params, condition) if near is None else near
        ways = [_newton, _newton_at_most_parameters, _newton_at_most_tokens]
        if near is not None:  # most samples run into the limit that the point estimate does: that way first
            C_near, N_near = near
            at_most_N = N_near >= 0.999 * self.high
            at_most_D = self.tokens(np.asarray(N_near), C_near) >= 0.999 * self.most_tokens
            ways.insert(0, ways.pop(1 if at_most_N else 2 if at_most_D else 0))
        for newton in ways:
            if near is None or not (left := solvable & np.isnan(C)).any():
                break
            C_found, N_found, good = newton(self, _of(params, left), condition, near, left)
            C[left], N[left] = np.where(good, C_found, np.nan), np.where(good, N_found, np.nan)
        left = solvable if exact and len(solvable) <= _FEW else solvable & np.isnan(C)
        if left.any():
            rest = _of(params, left)

            def at_best(compute: Array) -> Array:
                N_best = self.best_N(rest, compute)
                loss = self.loss_at(rest, N_best[:, None], compute[:, None])[:, 0]
                return condition(np.where(np.isfinite(loss), loss, inf), N_best, compute, left)

            rough = np.nan if near is None else near[0]
            unsolved = np.isnan(C[left])
            C[left] = _falling_root(at_best, np.where(unsolved, rough, C[left]), np.where(unsolved, 3.0, 1e-3))
            found = left & np.isfinite(C)
            if found.any():
                N[found] = self.best_N(_of(params, found), C[found])
        return C, N

    def least_loss(self, params: Parameters) -> Array:
        """The loss that no compute gets below, [R]: within the limits on N and on tokens."""
        ends = np.array([min(self.high, 1e60)])
        D = np.array([min(self.most_tokens, 1e60)])
        loss = self.loss(params, ends[None], D[None])[:, 0]
        return np.where(np.isfinite(loss), loss, self.loss(params, np.array([[1e30]]), np.array([[1e30]]))[:, 0])

    def at_tokens(self, tokens: Any, compute: Any) -> Any:
        """N that spends the budget on so many tokens; 0 for infinitely many, infinite for none."""
        with np.errstate(divide="ignore"):
            return np.divide(compute, FLOPS_PER_PARAMETER_TOKEN * tokens + SERVING_FLOPS * self.inference_tokens)

    def _unlimited(self) -> "Frontier":
        return replace(self, most_tokens=inf, repetition=None)

    def _without_cap(self) -> "Frontier":
        return replace(self, most_tokens=inf)

    def _unlimited_best(self, params: Parameters, compute: Array, high: Array) -> Array:
        names = _chinchillas_names(self.law)
        if names is not None and not self.inference_tokens:
            N = chinchilla_optimum({name: params[own] for name, own in names.items()}, compute)
            return np.clip(np.where(np.isfinite(N), N, high), self.low, high)
        return _minimise(self._unlimited(), params, compute, self.low, high)


def best_N(law: Law, params: Parameters, compute: float, low: float, high: float) -> Array:
    """Frontier.best_N without limits on data and without serving."""
    return Frontier(law, low, high).best_N(params, compute)


def _chinchillas_names(law: Law) -> Mapping[str, str] | None:
    """What a law calls the parameters of chinchilla's optimum, if it has that optimum while no token repeats."""
    return parameters_as(law, "chinchilla") or parameters_as(law, "data_constrained")


def chinchilla_optimum(params: Parameters, compute: float | Array) -> Array:
    """N_opt = G (C/6)^(beta/(alpha+beta)), G = (alpha A / (beta B))^(1/(alpha+beta)) (Hoffmann et al. 2022, eq. 4)."""
    A, B, alpha, beta = (np.asarray(params[name], dtype=np.float64) for name in ("A", "B", "alpha", "beta"))
    with np.errstate(all="ignore"):  # a degenerate sample has no optimum: NaN or infinity
        log_G = np.log(alpha * A / (beta * B)) / (alpha + beta)
        return np.exp(log_G + np.log(np.asarray(compute) / FLOPS_PER_PARAMETER_TOKEN) * beta / (alpha + beta))


def region_bounds(
    frontier: Frontier, params: Parameters, compute: float, best: float, limit: float, low: float, high: float
) -> tuple[float, float]:
    """Smallest and largest N around `best` whose loss at `compute` stays below `limit`; the range's end if none is."""
    ends = []
    for outer in (low, high):
        x = np.linspace(np.log(best), np.log(outer), 513)
        inside = frontier.loss_at(params, np.exp(x)[None], compute)[0] <= limit
        inside[0] = True
        if inside.all():
            ends.append(outer)
            continue
        first = int(np.argmin(inside))
        a, b = x[first - 1], x[first]  # inside, outside
        for _ in range(60):
            middle = 0.5 * (a + b)
            within = frontier.loss_at(params, np.exp([[middle]]), compute)[0, 0] <= limit
            a, b = (middle, b) if within else (a, middle)
        ends.append(float(np.exp(a)))
    return ends[0], ends[1]


_LEAST_TOKENS = 1e-3  # far below any run, so that an optimum there is seen to be none
_GOLDEN = 0.5 * (np.sqrt(5.0) - 1.0)
_STEP = 0.02
# Eighth-order central differences for f' and f'' at offsets -4..4 (Fornberg 1988, table 1).
_OFFSETS = np.arange(-4, 5)
_FIRST = np.array([1 / 280, -4 / 105, 1 / 5, -4 / 5, 0, 4 / 5, -1 / 5, 4 / 105, -1 / 280]) / _STEP
_SECOND = np.array([-1 / 560, 8 / 315, -1 / 5, 8 / 5, -205 / 72, 8 / 5, -1 / 5, 8 / 315, -1 / 560]) / _STEP**2
_FEW = 16  # samples that may take their time: at a kink only the golden section is exact


def _minimise(frontier: Frontier, params: Parameters, compute: Array, low: Any, high: Any) -> Array:
    """N between low and high; compute, low, high: numbers or [R]."""
    size = max(np.size(value) for value in (*params.values(), compute, low, high))
    C = np.broadcast_to(compute, size)[:, None]
    first, last = (np.broadcast_to(np.log(frontier.tokens(end, compute)), size) for end in (high, low))

    def f(x: Array) -> Array:
        D = np.exp(x)
        values = frontier.loss(params, frontier.at_tokens(D, C), D)
        return np.where(np.isfinite(values), values, np.inf)

    share = np.linspace(0.0, 1.0, max(24, int(2 * np.max(last - first))))
    grid = first[:, None] + (last - first)[:, None] * share
    row = np.arange(size)
    start = f(grid).argmin(axis=1)
    at_end = (start == 0) | (start == len(share) - 1)
    a, b = grid[row, np.maximum(start - 1, 0)], grid[row, np.minimum(start + 1, len(share) - 1)]  # [R]
    f_ends = f(np.stack([first, last], axis=1))
    end, f_end = np.where(f_ends[:, 0] < f_ends[:, 1], first, last), f_ends.min(axis=1)
    left, right = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
    f_left, f_right = f(left[:, None])[:, 0], f(right[:, None])[:, 0]
    for narrowed in (14, 36):
        for _ in range(narrowed):
            lower = f_left < f_right
            a, b = np.where(lower, a, left), np.where(lower, right, b)
            new = np.where(lower, b - _GOLDEN * (b - a), a + _GOLDEN * (b - a))
            f_new = f(new[:, None])[:, 0]
            left, right = np.where(lower, new, right), np.where(lower, left, new)
            f_left, f_right = np.where(lower, f_new, f_right), np.where(lower, f_left, f_new)
        x = np.where(f_left < f_right, left, right)
        best = np.minimum(f_left, f_right)
        newton, step = x.copy(), np.zeros(size)
        for _ in range(4):
            around = f(newton[:, None] + _STEP * _OFFSETS)
            with np.errstate(divide="ignore", invalid="ignore"):
                slope, curvature = around @ _FIRST, around @ _SECOND
                step = np.where(curvature > 0, slope / curvature, np.nan)
            newton = newton - np.clip(np.nan_to_num(step), -0.5, 0.5)
        newton = _across_a_start(frontier, f, newton)
        # A kink or a flat valley can mislead differences: the golden section's point stands unless Newton's is as good.
        refined = f(newton[:, None])[:, 0]
        keep = (refined <= best * (1 + 1e-12)) & (newton > a - 0.5) & (newton < b + 0.5)
        keep &= (newton >= first) & (newton <= last)
        at_end &= ~keep & (f_end <= best)
        if size > _FEW or np.all((keep & (np.abs(step) < 1e-6)) | at_end):
            break
    x = np.where(keep, newton, np.where(at_end, end, x))
    N = frontier.at_tokens(np.exp(np.clip(x, first, last)), C[:, 0])
    return np.asarray(np.clip(N, low, high))


def _newton_step(f: Callable[[Array], Array], x: Array) -> Array:
    """To be subtracted from x [R] for the minimum of f [R, K], by short second-order differences."""
    step = 2e-3
    with np.errstate(all="ignore"):
        below, at, above = f(x[:, None] + step * np.array([-1, 0, 1])).T
        return np.asarray((above - below) / (above - 2 * at + below) * (step / 2))


def _across_a_start(frontier: Frontier, f: Callable[[Array], Array], x: Array) -> Array:
    """x, corrected where long differences are wrong: across the D, or N, at which repetition begins to tell."""
    for _ in range(3 if frontier.repetition is not None else 0):
        step = np.nan_to_num(_newton_step(f, x))
        x = x - np.where(np.abs(step) > 1e-5, np.clip(step, -0.1, 0.1), 0.0)
    return x


def _newton_at(frontier: Frontier, params: Parameters, compute: float, near: float) -> tuple[Array, Mask]:
    """(N, which are good) by Newton steps on ln N from `near`, the last of them on eighth-order differences.

    Good is what has come to rest within the range, and is no worse than a coarse grid over it.
    """
    size, C = _size(params), np.array([[compute]])

    def f(x: Array) -> Array:
        return frontier.loss_at(params, np.exp(x), C)

    with np.errstate(all="ignore"):
        x = np.full(size, np.log(near))
        for _ in range(4):
            moved = _newton_step(f, x)
            x = x - np.clip(moved, -1, 1)
        around = f(x[:, None] + _STEP * _OFFSETS)
        step, curvature = around @ _FIRST / (around @ _SECOND), around @ _SECOND
        x, best = _across_a_start(frontier, f, x - step), around[:, 4]
        last = float(np.minimum(frontier.high, frontier.at_tokens(_LEAST_TOKENS, compute)))
        grid = f(np.linspace(np.log(frontier.low), np.log(last), 12)[None])
        inside = (frontier.low < np.exp(x)) & (np.exp(x) < last)
        good = (
            inside
            & (curvature > 0)
            & (np.abs(step) + np.abs(moved) < 1e-3)
            & ~(grid < best[:, None] * (1 - 1e-9)).any(axis=1)
        )
    return np.exp(x), good


def _size(params: Parameters) -> int:
    return max(np.size(value) for value in params.values())


def _of(params: Parameters, which: Mask) -> dict[str, Array]:
    """The parameters of some samples."""
    return {name: np.broadcast_to(value, len(which))[which] for name, value in params.items()}


_LEAST_COMPUTE, _MOST_COMPUTE = np.log(1.0), np.log(1e60)  # less and more than any run takes


def _roughly(frontier: Frontier, params: Parameters, condition: Condition) -> tuple[float, float] | None:
    """(C, N) near where the first sample meets the condition, by grids over ln C and, within the limits, ln N."""
    first = np.arange(_size(params)) == 0
    params = _of(params, first)
    c, share = np.linspace(_LEAST_COMPUTE, _MOST_COMPUTE, 64), np.linspace(0.0, 1.0, 49)[:, None]
    narrow, wide = -np.inf, np.inf
    with np.errstate(all="ignore"):
        for _ in range(3):
            C = np.exp(c)
            last = np.minimum(frontier.high, frontier.at_tokens(_LEAST_TOKENS, C))
            x_low, x_high = (np.log(np.clip(end, np.exp(narrow), np.exp(wide))) for end in (frontier.low, last))
            x = x_low + (x_high - x_low) * share  # [49, C]
            shape = 1, x.size
            loss = frontier.loss_at(
                params, np.exp(x).reshape(shape), np.broadcast_to(C, x.shape).reshape(shape)
            ).reshape(x.shape)
            loss = np.where(np.isfinite(loss), loss, inf)
            j = loss.argmin(axis=0)
            best, x_best = (np.take_along_axis(values, j[None], axis=0) for values in (loss, x))  # [1, C]
            over = np.asarray(condition(best, np.exp(x_best), C[None], first))[0] > 0
            i = int(np.argmin(over))
            if i == 0 or over[i]:
                return None
            spacing = (x_high - x_low)[i] / 24 + 1
            narrow, wide = x_best[0, i - 1] - spacing, x_best[0, i] + spacing
            found = float(C[i]), float(np.exp(x_best[0, i]))
            c = np.linspace(c[i - 1], c[i], 9)
    return found


def _newton(
    frontier: Frontier, params: Parameters, condition: Condition, near: tuple[float, float], which: Mask
) -> tuple[Array, Array, Mask]:
    """(C, N, which are good) by Newton steps on ln N and ln C together from `near`, with second-order differences.

    Good is what has come to rest at a minimum within the limits; N then is right to about 1e-4, C to its square.
    """
    size, step, free = _size(params), 2e-3, frontier._without_cap()
    c_of, x_of = np.full(size, np.log(near[0])), np.full(size, np.log(near[1]))
    moved_of, curvature_of = np.full(size, np.inf), np.zeros(size)
    i_x, i_c = (axis.ravel() * step for axis in np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"))
    active, of_all = np.ones(size, dtype=bool), np.flatnonzero(which)
    with np.errstate(all="ignore"):
        for _ in range(6):
            c, x, several = c_of[active], x_of[active], (int(active.sum()), 3, 3)
            N, C = np.exp(x[:, None] + i_x), np.exp(c[:, None] + i_c)  # [R, 9]
            loss = free.loss_at(_of(params, active), N, C)
            L = loss.reshape(several)
            g = np.asarray(condition(loss, N, C, of_all[active])).reshape(several)
            L_x, L_xx = (L[:, 2, 1] - L[:, 0, 1]) / (2 * step), (L[:, 2, 1] - 2 * L[:, 1, 1] + L[:, 0, 1]) / step**2
            L_xc = (L[:, 2, 2] - L[:, 2, 0] - L[:, 0, 2] + L[:, 0, 0]) / (4 * step**2)
            g_x, g_c = (g[:, 2, 1] - g[:, 0, 1]) / (2 * step), (g[:, 1, 2] - g[:, 1, 0]) / (2 * step)
            determinant = L_xx * g_c - L_xc * g_x
            dx = (-L_x * g_c + L_xc * g[:, 1, 1]) / determinant
            dc = (-L_xx * g[:, 1, 1] + L_x * g_x) / determinant
            moved = np.maximum(np.abs(dx), np.abs(dc))
            x_of[active], c_of[active] = x + np.clip(dx, -1, 1), c + np.clip(dc, -2, 2)
            moved_of[active], curvature_of[active] = moved, L_xx
            active[active] = (moved >= 1e-4) & np.isfinite(moved)
            if not active.any():
                break
        N, C = np.exp(x_of), np.exp(c_of)
        inside = (frontier.low < N) & (frontier.high > N) & (free.tokens(N, C) <= frontier.most_tokens)
    return C, N, inside & (moved_of < 1e-3) & (curvature_of > 0)


def _newton_at_most_parameters(
    frontier: Frontier, params: Parameters, condition: Condition, near: tuple[float, float], which: Mask
) -> tuple[Array, Array, Mask]:
    """As `_newton` for what has as many parameters as are allowed, and would rather have more."""
    C, good = _newton_along(frontier, params, condition, near, which, lambda C: np.full_like(C, frontier.high), -1)
    N = np.full_like(C, frontier.high)
    return C, N, good & (frontier.tokens(N, C) < frontier.most_tokens)


def _newton_at_most_tokens(
    frontier: Frontier, params: Parameters, condition: Condition, near: tuple[float, float], which: Mask
) -> tuple[Array, Array, Mask]:
    """As `_newton` for what sees as many tokens as are allowed, and would rather see more."""

    def N_of(C: Array) -> Array:
        return np.asarray(frontier.at_tokens(frontier.most_tokens, C))

    C, good = _newton_along(frontier, params, condition, near, which, N_of, +1)
    N = N_of(C)
    return C, N, good & (frontier.low < N) & (frontier.high > N)


def _newton_along(
    frontier: Frontier,
    params: Parameters,
    condition: Condition,
    near: tuple[float, float],
    which: Mask,
    N_of: Callable[[Array], Array],
    inner: int,
) -> tuple[Array, Mask]:
    """C where the condition is zero along N_of(C), and whether the loss there rises towards `inner`, smaller or larger N."""
    step = 2e-3
    c = np.full(_size(params), np.log(near[0]))
    moved = np.full(_size(params), np.inf)
    with np.errstate(all="ignore"):
        for _ in range(8):
            C = np.exp(c[:, None] + step * np.array([-1, 0, 1]))  # [R, 3]
            N = N_of(C)
            g = np.asarray(condition(frontier.loss_at(params, N, C), N, C, which))
            dc = -g[:, 1] * 2 * step / (g[:, 2] - g[:, 0])
            moved, c = np.abs(dc), c + np.clip(dc, -2, 2)
            if np.all((moved < 1e-7) | ~np.isfinite(moved)):
                break
        C = np.exp(c)
        N = N_of(C)[:, None] * np.exp([0.0, 1e-4 * inner])
        at, inside = frontier.loss_at(params, N, C[:, None]).T
    return C, (moved < 1e-5) & (inside > at)


def _falling_root(f: Callable[[Array], Array], near: Array, reach: Array) -> Array:
    """C [R] at which f, falling with C, is zero, on ln C by the Illinois rule (Dowell & Jarratt 1971); NaN where there is
    none up to 1e60, and 1 where f is below zero there. near: where ln C is looked for first, to within
    reach, or NaN."""
    with np.errstate(all="ignore"):
        size, wide = len(near), np.isnan(near)
        for _ in range(2):
            a = np.where(wide, _LEAST_COMPUTE, np.log(near) - reach)
            b = np.where(wide, _MOST_COMPUTE, np.log(near) + reach)
            f_a, f_b = f(np.exp(a)), f(np.exp(b))
            if np.all((f_a > 0) & (f_b < 0) | wide):
                break
            wide |= ~((f_a > 0) & (f_b < 0))
        at_once = wide & (f_a <= 0)
        c, side = 0.5 * (a + b), np.zeros(size)
        enough = 1e-12 if size <= _FEW else 1e-6
        for _ in range(80):
            step = a - f_a * (b - a) / (f_b - f_a)
            before, c = c, np.where(np.isfinite(step), np.clip(step, a, b), 0.5 * (a + b))
            f_c = f(np.exp(c))
            above = f_c > 0
            f_a = np.where(above, f_c, np.where(side < 0, 0.5 * f_a, f_a))
            f_b = np.where(above, np.where(side > 0, 0.5 * f_b, f_b), f_c)
            a, b, side = np.where(above, c, a), np.where(above, b, c), np.where(above, 1.0, -1.0)
            if np.all((np.abs(f_c) < enough) | (np.abs(c - before) < enough) | (b - a < 1e-14 * np.abs(b))):
                break
    C = np.where(c >= _MOST_COMPUTE - 1e-9, np.nan, np.exp(c))
    return np.where(at_once, np.exp(_LEAST_COMPUTE), C)
