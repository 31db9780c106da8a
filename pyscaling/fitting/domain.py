"""Rows at which a law is not defined, whatever its parameters: named, with the part of the law that fails there."""

import ast

import numpy as np

from pyscaling.expression import FUNCTIONS, parse_expression
from pyscaling.fitting.problem import Problem
from pyscaling.fitting.tape import INFINITE
from pyscaling.tables import Runs

_MOST = 10_000  # rows that are tried
_FEW = 16  # points at which a law is tried; what is not finite at any of them is taken to be so everywhere


def check_domain(problem: Problem, theta: np.ndarray, runs: Runs, always: bool = False) -> None:
    """Raises ValueError that names the first row at which the law is not finite at any of the points theta [count, P].

    Unless `always`, only where a column of the law's data shows a zero or a negative number that it cannot take.
    """
    fails = ~np.all(np.abs(problem.columns) < INFINITE / 10, axis=0)  # true for NaN, too
    rows = np.arange(min(len(fails), _MOST)) if always else np.flatnonzero(fails)[:_MOST]
    if not len(rows):
        return
    law, params = problem.law, problem.to_params(theta[:_FEW])
    names = [name for name in law.variables if name not in law.indicators.values()]
    scope = {name: column[:, None] for name, column in zip(law.names, params.T, strict=True)}
    scope |= {name: column[rows] for name, column in problem.variables.items()}

    def complain(bad: np.ndarray, node: ast.expr, what: str) -> None:
        bad = np.all(np.broadcast_to(bad, (len(params), len(rows))), axis=0)
        within = {leaf.id for leaf in ast.walk(node) if isinstance(leaf, ast.Name)}
        if not (bad.any() and within & set(names)) or (always and bad.all()):  # all rows: the starts are to blame
            return
        row, others = int(rows[np.flatnonzero(bad)[0]]), int(np.count_nonzero(bad))
        at = ", ".join(f"{name}={problem.variables[name][row]:g}" for name in names if name in within)
        part = ast.get_source_segment(law.expression, node)
        more = f" ({others} such rows)" if others > 1 else ""
        raise ValueError(f"{at} in row {runs.rows[row] + 1} of {runs.source}: {part} {what}{more}.")

    with np.errstate(all="ignore"):
        values = [(node, _value(node, scope)) for node in _inner_first(parse_expression(law.expression).body)]
        whole, value = values[-1]
        for node, part in values:
            complain(
                ~(np.isfinite(part) | np.isfinite(value)),
                node,
                "is not finite there; drop the row, or take a law that is, as with x + c for x",
            )
        if problem.residual == "log":
            complain(
                value <= 0, whole, 'is not positive there, and has no logarithm; drop the row or take residual="raw"'
            )


def _inner_first(tree: ast.expr) -> list[ast.expr]:
    inner = [
        node for child in ast.iter_child_nodes(tree) if isinstance(child, ast.expr) for node in _inner_first(child)
    ]
    return [*inner, tree]


def _value(tree: ast.expr, scope: dict[str, np.ndarray]) -> np.ndarray:
    if isinstance(tree, ast.Name) and tree.id not in scope:
        return np.zeros(())  # a function's name
    code = compile(ast.Expression(tree), "<law>", "eval")
    return np.asarray(eval(code, {**FUNCTIONS, "__builtins__": {}}, scope), dtype=np.float64)
