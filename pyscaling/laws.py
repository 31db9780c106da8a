"""All scaling laws, as data: an expression, the domain of each parameter, and the source.

    laws.get("chinchilla")
    Law("E + A/N**alpha + B/D**beta", positive=["E", "A", "B", "alpha", "beta"])      # a law of one's own

Variables are columns of the runs: N, D, C, S (steps), or any other name given as `variables`.
"""

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyscaling.expression import names_of, parse_expression

_USUAL_VARIABLES = ("N", "D", "C", "S")


@dataclass(frozen=True)
class Parameter:
    """Domain of a parameter.

    role says what it does in the law, and so where automatic starts look: "exponent"; "floor", a constant of the
    loss; "scale:X", a value of the variable X; "term:X:p", A in A / X**p
    ("term:X:-p": in A * X**p). All roles but
    exponents are fitted as logarithms where positive; a positive exponent is fitted as it is, with a bound at zero.
    low, high: box of automatic starts of an exponent.
    """

    positive: bool = True
    role: str = "exponent"
    low: float = 0.05
    high: float = 1.0

    @property
    def logarithmic(self) -> bool:
        return self.positive and self.role not in ("exponent", "floor")


class Law:
    """A scaling law.

    expression: Python arithmetic over parameters and variables, with exp, log and sqrt. positive: parameters that are
    positive and so fitted as logarithms (default: all). variables: names that are columns of the runs; by default those of
    N, D, C and S that occur and are not named as positive. name, source: for tables and citations.
    parameters: name -> Parameter, to set start boxes; by default they are inferred from the expression.
    Raises ValueError if the expression is not plain arithmetic or has no parameter or no variable.
    """

    def __init__(
        self,
        expression: str,
        positive: Sequence[str] | None = None,
        *,
        variables: Sequence[str] | None = None,
        name: str | None = None,
        source: str = "user",
        parameters: Mapping[str, Parameter] | None = None,
    ) -> None:
        names = names_of(expression)
        declared = {*(positive or ()), *(parameters or ())}
        if variables is None:
            variables = [n for n in names if n in _USUAL_VARIABLES and n not in declared]
        missing = [n for n in (*declared, *variables) if n not in names]
        if missing:
            raise ValueError(f"law {expression!r} does not contain {missing[0]!r}; its names are {', '.join(names)}.")
        unknown = [n for n in names if n not in variables]
        if not variables or not unknown:
            raise ValueError(
                f"law {expression!r} has {'no variable' if not variables else 'no parameter'}; variables are N, D, C, S "
                "or those given as variables=[...]."
            )
        self.expression, self.variables, self.source = expression, tuple(variables), source
        self.name = name or expression
        roles = _roles(expression, self.variables)
        self.parameters: dict[str, Parameter] = {
            n: parameters[n]
            if parameters and n in parameters
            else Parameter(positive=positive is None or n in positive, role=roles.get(n, "exponent"))
            for n in unknown
        }
        self._code = compile(parse_expression(expression), "<law>", "eval")

    @property
    def names(self) -> list[str]:
        """The parameters, in the order of samples' columns."""
        return list(self.parameters)

    def evaluate(self, params: Mapping[str, Any], **variables: Any) -> Any:
        """The law's value by numpy; parameters and variables broadcast."""
        for name in self.variables:
            if name not in variables:
                raise ValueError(
                    f"{name} is missing: the law {self.name} is a function of {', '.join(self.variables)}."
                )
        scope = {"exp": np.exp, "log": np.log, "sqrt": np.sqrt, "__builtins__": {}}
        arrays = {k: np.asarray(v, dtype=np.float64) for k, v in (*params.items(), *variables.items())}
        return eval(self._code, scope, arrays)  # the tree holds arithmetic only, see parse_expression

    def __repr__(self) -> str:
        return f"Law({self.name!r}: {self.expression})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Law) and (self.expression, self.variables, self.parameters) == (
            other.expression,
            other.variables,
            other.parameters,
        )

    def __hash__(self) -> int:
        return hash((self.expression, self.variables))


def _roles(expression: str, variables: tuple[str, ...]) -> dict[str, str]:
    """What each parameter of an expression does, as far as its place tells.

    A summand alone is a floor of the loss; c in c / X**p, c * X**p is the coefficient of a term; c in (c/X)**p is a scale.
    """
    roles: dict[str, str] = {}

    def power_of(tree: ast.expr) -> tuple[str, str] | None:
        if isinstance(tree, ast.Name) and tree.id in variables:
            return tree.id, ""
        if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Pow) and isinstance(tree.left, ast.Name):
            negative = isinstance(tree.right, ast.UnaryOp) and isinstance(tree.right.op, ast.USub)
            exponent = tree.right.operand if isinstance(tree.right, ast.UnaryOp) else tree.right
            if tree.left.id in variables:
                return tree.left.id, ("-" if negative else "") + exponent.id if isinstance(exponent, ast.Name) else ""
        return None

    def visit(tree: ast.expr, top: bool) -> None:
        if isinstance(tree, ast.Name) and top and tree.id not in variables:
            roles.setdefault(tree.id, "floor")
        elif isinstance(tree, ast.BinOp):
            if isinstance(tree.op, ast.Mult | ast.Div):
                for coefficient, other in ((tree.left, tree.right), (tree.right, tree.left)):
                    power = power_of(other)
                    if isinstance(coefficient, ast.Name) and coefficient.id not in variables and power:
                        variable, exponent = power
                        divides = isinstance(tree.op, ast.Div)
                        if divides and coefficient is tree.right:
                            continue
                        falls = divides != exponent.startswith("-")
                        term = f"term:{variable}:{'' if falls else '-'}{exponent.lstrip('-')}"
                        roles.setdefault(
                            coefficient.id, term if exponent else f"scale:{variable}" if divides else "floor"
                        )
            inner = top and isinstance(tree.op, ast.Add | ast.Sub)
            visit(tree.left, inner)
            visit(tree.right, inner)
        elif isinstance(tree, ast.UnaryOp):
            visit(tree.operand, False)
        elif isinstance(tree, ast.Call):
            for argument in tree.args:
                visit(argument, False)

    visit(parse_expression(expression).body, True)
    return roles


_KAPLAN = "Kaplan et al. 2020, arXiv:2001.08361"
_HENIGHAN = "Henighan et al. 2020, arXiv:2010.14701, eq. 1.1"


def _power(x: str) -> list[Law]:
    return [
        Law(f"({x}_c/{x})**alpha_{x}", variables=[x], name=f"kaplan_{x}", source=f"{_KAPLAN}, eqs. 1.1-1.3"),
        Law(f"E + A/{x}**alpha", variables=[x], name=f"power_constant_{x}", source=_HENIGHAN),
    ]


LAWS: dict[str, Law] = {
    law.name: law
    for law in [
        *_power("N"),
        *_power("D"),
        *_power("C"),
        Law(
            "E + A/N**alpha + B/D**beta",
            variables=["N", "D"],
            name="chinchilla",
            source="Hoffmann et al. 2022, arXiv:2203.15556, eq. 2",
        ),
        Law(
            "((N_c/N)**(alpha_N/alpha_D) + D_c/D)**alpha_D",
            variables=["N", "D"],
            name="kaplan_ND",
            source=f"{_KAPLAN}, eq. 1.5",
        ),
        Law(
            "(N_c/N)**alpha_N + (S_c/S)**alpha_S",
            variables=["N", "S"],
            name="kaplan_NS",
            source=f"{_KAPLAN}, eq. 1.6",
        ),
        Law(
            "E + ((N_c/N)**(alpha_N/alpha_D) + D_c/D)**alpha_D",
            variables=["N", "D"],
            name="kaplan_ND_constant",
            source=f"{_KAPLAN}, eq. 1.5, over an irreducible loss as in {_HENIGHAN}",
        ),
    ]
}


def get(law: "str | Law") -> Law:
    """A law by name, or the law itself; a text with an operator in it is taken as an expression.

    Raises ValueError for an unknown name.
    """
    if isinstance(law, Law):
        return law
    if law in LAWS:
        return LAWS[law]
    if any(sign in law for sign in "+*/("):
        return Law(law)
    raise ValueError(
        f"law {law!r} is unknown; known are {', '.join(LAWS)}. A law of your own is an expression over N, D, C, S."
    )


def names() -> Iterable[str]:
    """Names of the laws that are built in."""
    return LAWS.keys()
