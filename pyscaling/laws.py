"""All scaling laws, as data: an expression, the domain of each parameter, and the source.

    laws.get("chinchilla")
    Law("E + A/N**alpha + B/D**beta", positive=["E", "A", "B", "alpha", "beta"])      # a law of one's own

Variables are columns of the runs: N, D, C, S (steps), or any other name given as `variables`. What a law gives is the
loss unless it names another column as its response.
"""

import ast
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from pyscaling.expression import FUNCTIONS, names_of, parse_expression

USUAL_VARIABLES = ("N", "D", "C", "S")
POSITIVE_VARIABLES = ("N", "D", "C")  # a run may be looked at before its first step


@dataclass(frozen=True)
class Parameter:
    """Domain of a parameter.

    role says what it does in the law, and so where automatic starts look: "exponent"; "floor", a constant of the
    loss; "ceiling", a loss above all; "scale:X", a value of the variable X; "break:X", one among the data; "rate:X",
    the reciprocal of one; "argument:X:k:Y:m", of the size of X**k Y**m; "term:X:p", A in A / X**p ("term:X:-p": in
    A * X**p; "term:X:p:Y:q": in A / (X**p Y**q)); "term", the coefficient of any other summand; "amount", a number. All but
    exponents and floors are fitted as logarithms where positive; exponents and floors as they are, with a bound at zero.
    low, high: box of automatic starts of an exponent, denser near low, or of an amount. unit: what starts are multiples
    of, but for a floor's and a term's; in c in exp(-x*c/1.6e-16) it is 1.6e-16.
    """

    positive: bool = True
    role: str = "exponent"
    low: float = 0.05
    high: float = 1.0
    unit: float = 1.0

    @property
    def logarithmic(self) -> bool:
        return self.positive and self.role not in ("exponent", "floor")


class Law:
    """A scaling law.

    expression: Python arithmetic over parameters and variables, with exp, log, sqrt, max(a, b), min(a, b),
    softplus(x) = log(1 + exp(x)) and saturate(k, alpha), see expression.saturate. positive: parameters that are positive
    (default: all). variables: names that are columns of the runs; by default those of N, D, C and S that occur and are not
    named as positive. name, source: for tables and citations. parameters: name -> Parameter, to set start boxes; by
    default they are inferred from the expression. response: the column that the law gives.
    Raises ValueError if the expression is not plain arithmetic or has no parameter or no variable.
    """

    indicators: Mapping[str, str] = MappingProxyType({})  # of a law of several groups, see fitting.groups

    def __init__(
        self,
        expression: str,
        positive: Sequence[str] | None = None,
        *,
        variables: Sequence[str] | None = None,
        name: str | None = None,
        source: str = "user",
        parameters: Mapping[str, Parameter] | None = None,
        response: str = "loss",
    ) -> None:
        names = names_of(expression)
        declared = {*(positive or ()), *(parameters or ())}
        if variables is None:
            variables = [n for n in names if n in USUAL_VARIABLES and n not in declared]
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
        self.name, self.response = name or expression, response
        if response in names:
            raise ValueError(f"law {expression!r} holds its own response {response!r}; rename one of them.")
        self._unknown, self._positive, self._declared = (
            unknown,
            frozenset(unknown if positive is None else positive),
            dict(parameters or {}),
        )
        self._code = compile(parse_expression(expression), "<law>", "eval")

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """name -> its domain."""
        inferred = {} if self._declared.keys() == set(self._unknown) else _infer(self.expression, self.variables)
        return {
            name: self._declared.get(name) or replace(inferred[name], positive=name in self._positive)
            for name in self._unknown
        }

    @property
    def names(self) -> list[str]:
        """The parameters, in the order of samples' columns."""
        return list(self._unknown)

    def evaluate(self, params: Mapping[str, Any], **variables: Any) -> Any:
        """The law's value by numpy; parameters and variables broadcast."""
        for name in self.variables:
            if name not in variables:
                raise ValueError(
                    f"{name} is missing: the law {self.name} is a function of {', '.join(self.variables)}."
                )
        scope = {**FUNCTIONS, "__builtins__": {}}
        arrays = {k: np.asarray(v, dtype=np.float64) for k, v in (*params.items(), *variables.items())}
        with np.errstate(all="ignore"):  # far from the data a law may overflow: the result says so
            return eval(self._code, scope, arrays)  # the tree holds arithmetic only, see parse_expression

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in self.__dict__.items() if name != "_code"
        }  # code is not for other Pythons

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._code = compile(parse_expression(self.expression), "<law>", "eval")

    def __repr__(self) -> str:
        return f"Law({self.name!r}: {self.expression})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Law) and (self.expression, self.variables, self.parameters, self.response) == (
            other.expression,
            other.variables,
            other.parameters,
            other.response,
        )

    def __hash__(self) -> int:
        return hash((self.expression, self.variables))


def _infer(expression: str, variables: tuple[str, ...]) -> dict[str, Parameter]:
    """The domain of each parameter of an expression: its role, and its unit, which follows the constants beside it."""
    tree = parse_expression(expression).body
    roles, places = _roles(tree, variables), _places(tree, variables)
    stripped = {n: "term" if r.startswith("term") else r for n, r in _roles(_stripped(tree), variables).items()}
    found = {}
    for name in names_of(expression):
        if name in variables:
            continue
        place, unit = places.get(name, ("exponent", 1.0))
        role = roles.get(name) or stripped.get(name) or place
        low, high = (1e-3, 1e3) if role == "amount" else (Parameter.low, Parameter.high)
        found[name] = Parameter(role=role, low=low, high=high, unit=unit)
    return found


class _Monomial:
    """A product as its constant's logarithm, the powers of its names, and factors that are none of these, with theirs."""

    def __init__(self, tree: ast.expr) -> None:
        self.log_constant, self.powers = 0.0, dict[str, float]()
        self.others: list[tuple[ast.expr, float]] = []
        self._take(tree, 1.0)

    def _take(self, tree: ast.expr, power: float) -> None:
        value = _constant(tree)
        if value is not None or isinstance(tree, ast.Constant):
            self.log_constant += power * math.log(abs(value)) if value else 0.0
        elif isinstance(tree, ast.Name):
            self.powers[tree.id] = self.powers.get(tree.id, 0.0) + power
        elif isinstance(tree, ast.UnaryOp):
            self._take(tree.operand, power)
        elif isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult | ast.Div):
            self._take(tree.left, power)
            self._take(tree.right, power if isinstance(tree.op, ast.Mult) else -power)
        elif isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Pow) and (exponent := _constant(tree.right)):
            self._take(tree.left, power * exponent)
        else:
            self.others.append((tree, power))


_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def _constant(tree: ast.expr) -> float | None:
    """The value of an expression without names; None of any other, and where it is not a finite number."""
    if isinstance(tree, ast.Name):
        return None
    children = [node for node in ast.iter_child_nodes(tree) if isinstance(node, ast.expr)]
    arguments = [_constant(node) for node in (children[1:] if isinstance(tree, ast.Call) else children)]
    if None in arguments:
        return None
    try:
        if isinstance(tree, ast.Constant):
            value = float(tree.value)  # type: ignore[arg-type]
        elif isinstance(tree, ast.UnaryOp):
            value = -arguments[0] if isinstance(tree.op, ast.USub) else arguments[0]  # type: ignore[operator,assignment]
        elif isinstance(tree, ast.Call):
            with np.errstate(all="ignore"):
                value = float(FUNCTIONS[tree.func.id](*arguments))  # type: ignore[attr-defined]
        else:
            value = float(_ARITHMETIC[type(tree.op)](*arguments))  # type: ignore[attr-defined]
    except (ArithmeticError, TypeError):
        return None
    return value if math.isfinite(value) else None


def _stripped(tree: ast.expr) -> ast.expr:
    """The expression without the constants that multiply or divide."""
    if isinstance(tree, ast.BinOp):
        left, right = _stripped(tree.left), _stripped(tree.right)
        if isinstance(tree.op, ast.Mult) and _constant(left) is not None and _constant(right) is None:
            return right
        if isinstance(tree.op, ast.Mult | ast.Div) and _constant(right) is not None and _constant(left) is None:
            return left
        return ast.BinOp(left, tree.op, right)
    if isinstance(tree, ast.UnaryOp):
        return ast.UnaryOp(tree.op, _stripped(tree.operand))
    if isinstance(tree, ast.Call):
        return ast.Call(tree.func, [_stripped(argument) for argument in tree.args], [])
    return tree


_PLACES = ("exponent", "argument", "amount", "term", "floor")  # the first counts where a parameter has several


def _places(tree: ast.expr, variables: tuple[str, ...]) -> dict[str, tuple[str, float]]:
    """name -> role and unit by the product of which a parameter is a factor.

    At the top it is a coefficient ("term"). Elsewhere its product is taken to be of order one, or of the order of what it is
    added to: it is an "argument" of the variables in it, an "amount" without any; of a power without any, an exponent.
    """
    found: dict[str, tuple[str, float]] = {}

    def data_in(product: _Monomial) -> dict[str, float]:
        """The powers of variables; (X + c)**p counts as one of X."""
        powers = {name: power for name, power in product.powers.items() if name in variables}
        for other, power in product.others:
            inside = {node.id for node in ast.walk(other) if isinstance(node, ast.Name) and node.id in variables}
            if len(inside) == 1 and isinstance(other, ast.BinOp) and not isinstance(other.op, ast.Pow):
                name = inside.pop()
                powers[name] = powers.get(name, 0.0) + power
        return powers

    def place(product: _Monomial, name: str, beside: _Monomial | None, where: str) -> tuple[str, float]:
        if where == "top":
            return ("floor" if len(product.powers) == 1 and not product.others else "term"), 1.0
        data, log_unit, power = data_in(product), -product.log_constant, product.powers[name]
        if beside is not None and beside is not product:
            log_unit += beside.log_constant
            for variable, of in data_in(beside).items():
                data[variable] = data.get(variable, 0.0) - of
        arguments = [f"{variable}:{-of / power:g}" for variable, of in data.items() if of]
        unit = float(f"{math.exp(min(max(log_unit / power, -690.0), 690.0)):.12g}")
        return ":".join(["argument", *arguments]) if arguments else where, unit

    def visit(where: str, *trees: ast.expr) -> None:
        """Of a sum, or of what a minimum or a maximum compares."""
        products = [_Monomial(summand) for tree in trees for summand in _summands(tree)]
        beside = next((p for p in products if data_in(p) and not set(p.powers) - set(variables)), None)
        for product in products:
            for name in (name for name, power in product.powers.items() if power and name not in variables):
                at = place(product, name, beside, where)
                rank = [_PLACES.index(role.split(":")[0]) for role, _ in (at, found.get(name, ("floor", 1.0)))]
                if name not in found or rank[0] < rank[1]:
                    found[name] = at
            for other, _ in product.others:
                if isinstance(other, ast.Call):
                    visit("amount", *other.args)
                elif isinstance(other, ast.BinOp) and isinstance(other.op, ast.Pow):
                    visit("amount", other.left)
                    visit("exponent", other.right)
                else:
                    visit("amount" if where == "top" else where, other)

    visit("top", tree)
    return found


def _summands(tree: ast.expr) -> list[ast.expr]:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add | ast.Sub):
        return [*_summands(tree.left), *_summands(tree.right)]
    return _summands(tree.operand) if isinstance(tree, ast.UnaryOp) else [tree]


def _roles(tree: ast.expr, variables: tuple[str, ...]) -> dict[str, str]:
    """What each parameter of an expression does, as far as its place tells.

    A summand alone is a floor of the loss; c in c / X**p, c * X**p is the coefficient of a term; c in (c/X)**p, (X/c)**p is a
    scale; c in X + c, min(X, c), max(X, c) and elsewhere in X/c is a break; in c*X inside a call, a rate.
    """
    roles: dict[str, str] = {}

    def power_of(tree: ast.expr) -> tuple[str, str] | None:
        if isinstance(tree, ast.Name) and tree.id in variables:
            return tree.id, ""
        if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Pow):
            negative = isinstance(tree.right, ast.UnaryOp) and isinstance(tree.right.op, ast.USub)
            exponent = tree.right.operand if isinstance(tree.right, ast.UnaryOp) else tree.right
            within = (
                tree.left.args if isinstance(tree.left, ast.Call) else [tree.left]
            )  # min(X, c)**p is a power of X, too
            base = next((leaf.id for leaf in within if isinstance(leaf, ast.Name) and leaf.id in variables), None)
            if base is not None:
                return base, ("-" if negative else "") + exponent.id if isinstance(exponent, ast.Name) else ""
        return None

    def name_of(tree: ast.expr) -> str | None:
        while isinstance(tree, ast.UnaryOp):
            tree = tree.operand
        return tree.id if isinstance(tree, ast.Name) else None

    def compare(left: ast.expr, right: ast.expr, kind: str) -> None:
        """A variable beside a parameter."""
        for variable, parameter in ((name_of(left), name_of(right)), (name_of(right), name_of(left))):
            if variable in variables and parameter is not None and parameter not in variables:
                roles.setdefault(parameter, f"{kind}:{variable}")

    def visit(tree: ast.expr, top: bool, called: bool = False) -> None:
        if isinstance(tree, ast.Name) and top and tree.id not in variables:
            roles.setdefault(tree.id, "floor")
        elif isinstance(tree, ast.BinOp):
            if isinstance(tree.op, ast.Pow) and isinstance(tree.left, ast.BinOp) and isinstance(tree.left.op, ast.Div):
                compare(tree.left.left, tree.left.right, "scale")
            if isinstance(tree.op, ast.Add | ast.Sub) and not top:
                compare(tree.left, tree.right, "break")
            if isinstance(tree.op, ast.Div) and name_of(tree.left) in variables:
                compare(tree.left, tree.right, "break")
            if isinstance(tree.op, ast.Mult) and called:
                compare(tree.left, tree.right, "rate")
            if isinstance(tree.op, ast.Mult | ast.Div):
                for coefficient, other in ((tree.left, tree.right), (tree.right, tree.left)):
                    power = power_of(other)
                    if isinstance(coefficient, ast.Name) and coefficient.id not in variables and power:
                        variable, exponent = power
                        divides = isinstance(tree.op, ast.Div)
                        if divides and coefficient is tree.right:
                            continue
                        falls = divides != exponent.startswith("-")
                        if exponent:
                            roles.setdefault(
                                coefficient.id, f"term:{variable}:{'' if falls else '-'}{exponent.lstrip('-')}"
                            )
                        elif divides:
                            roles.setdefault(coefficient.id, f"scale:{variable}")
            inner = top and isinstance(tree.op, ast.Add | ast.Sub)
            visit(tree.left, inner, called)
            visit(tree.right, inner, called)
        elif isinstance(tree, ast.UnaryOp):
            visit(tree.operand, False, called)
        elif isinstance(tree, ast.Call):
            if len(tree.args) == 2:
                compare(tree.args[0], tree.args[1], "break")
            for argument in tree.args:
                visit(argument, False, True)

    visit(tree, True)
    return roles


def bnsl(k: int, variable: str = "D") -> Law:
    """The broken neural scaling law with k >= 0 smooth breaks (Caballero et al. 2022, arXiv:2210.14891, eq. 1).

    d_i is where in `variable` break i lies, f_i its width on a logarithmic axis, c_i the change of slope, of either
    sign; f_i -> 0 is a sharp break. Breaks may come out in any order. Raises ValueError for k < 0.
    """
    if k < 0:
        raise ValueError(f"k must be at least 0, got {k}; it counts the breaks of the law, and 1 is usual.")
    # (1 + (D/d)**(1/f))**(-c f) of the paper, which overflows where a break is sharp
    breaks = [f"*exp(-c_{i}*f_{i}*softplus(log({variable}/d_{i})/f_{i}))" for i in range(1, k + 1)]
    return Law(
        f"a + b*{variable}**-c_0{''.join(breaks)}",
        variables=[variable],
        name=f"bnsl{k}" if variable == "D" else f"bnsl{k}_{variable}",
        source="Caballero et al. 2022, arXiv:2210.14891, eq. 1",
        parameters={
            domain: parameter
            for i in range(1, k + 1)
            for domain, parameter in (
                (f"c_{i}", Parameter(positive=False, low=-0.2, high=0.8)),
                (f"d_{i}", Parameter(role=f"break:{variable}")),
                (f"f_{i}", Parameter(role="amount", low=0.1, high=1.0)),
            )
        },
    )


def _data_constrained() -> Law:
    """Tokens and parameters lose value as they exceed the unique tokens U and the N that is optimal for these.

    N_opt minimises chinchilla's loss for the compute at which D_opt = min(D, U) (Hoffmann et al. 2022, eq. 4). Exactly at
    D = U or N = N_opt the law has a kink.
    """
    unique_D = "min(D, U)"
    unique_N = f"min(N, (alpha*A/(beta*B))**(1/alpha)*{unique_D}**(beta/alpha))"

    def effective(x: str, unique: str) -> str:
        return f"{unique}*(1 + R_{x}_star*(1 - exp((1 - {x}/{unique})/R_{x}_star)))"

    return Law(
        f"E + A/({effective('N', unique_N)})**alpha + B/({effective('D', unique_D)})**beta",
        variables=["N", "D", "U"],
        name="data_constrained",
        source="Muennighoff et al. 2023, arXiv:2305.16264, eqs. 5-7; U unique tokens",
        parameters={
            "E": Parameter(role="floor"),
            "A": Parameter(role="term:N:alpha"),
            "B": Parameter(role="term:D:beta"),
            "R_N_star": Parameter(role="amount", low=0.5, high=100.0),
            "R_D_star": Parameter(role="amount", low=0.5, high=100.0),
        },
    )


_KAPLAN = "Kaplan et al. 2020, arXiv:2001.08361"
_HENIGHAN = "Henighan et al. 2020, arXiv:2010.14701, eq. 1.1"
_ALABDULMOHSIN = "Alabdulmohsin et al. 2022, arXiv:2209.06640"
_LI = "Li et al. 2025, arXiv:2503.04715"
_NEGATIVE = Parameter(positive=False, low=-0.05, high=-0.8)
# Effective experts: E_start for a dense model, E_max for infinitely many (Clark et al. 2022)
_EXPERTS = "(1/(1/(experts - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max))"


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
        Law(
            "E + A/N**alpha + B/D**alpha",
            variables=["N", "D"],
            name="chinchilla_tied",
            source="chinchilla with beta = alpha, as in Muennighoff et al. 2023, arXiv:2305.16264",
        ),
        _data_constrained(),
        # Gadre et al. write it in N and M = D/N; b is negative, b = -2 eta. They fit it by residual="raw", "gaussian".
        Law(
            "alpha*N**b + beta*6**(b/2)*D**b + E",
            variables=["N", "D"],
            name="gadre",
            source="Gadre et al. 2024, arXiv:2403.08540, with M N = D",
            parameters={"b": _NEGATIVE, "beta": Parameter(role="term:D:-b")},
        ),
        # A is alpha N_e0**p_e N_d0**p_d of the paper, whose factors no data can tell apart.
        Law(
            "L_inf + A/(N_e**p_e*N_d**p_d)",
            variables=["N_e", "N_d"],
            name="encoder_decoder",
            source="Ghorbani et al. 2021, arXiv:2109.07740",
            parameters={"A": Parameter(role="term:N_e:p_e:N_d:p_d")},
        ),
        Law(
            "(L_inf**(1/alpha) + (N_C/N)**(alpha_N/alpha) + (D_C/D)**(alpha_D/alpha))**alpha",
            variables=["N", "D"],
            name="acoustic",
            source="Droppo & Elibol 2021, arXiv:2106.09488",
            parameters={
                "L_inf": Parameter(role="floor"),
                "N_C": Parameter(role="break:N"),
                "D_C": Parameter(role="break:D"),
            },
        ),
        # The floor of M3 is beta gamma**c. M1 is kaplan_D, M2 is power_constant_D.
        Law(
            "beta*(1/D + gamma)**c",
            variables=["D"],
            name="M3",
            source=_ALABDULMOHSIN,
            parameters={"beta": Parameter(role="term:D:c"), "gamma": Parameter(role="rate:D")},
        ),
        # (L - eps_inf) / (eps_0 - L)**alpha = beta D**-c, solved for L; eps_0 is the loss before any training.
        Law(
            "eps_inf + (eps_0 - eps_inf)*saturate(beta*D**-c*(eps_0 - eps_inf)**(alpha - 1), alpha)",
            variables=["D"],
            name="M4",
            source=_ALABDULMOHSIN,
            parameters={
                "eps_inf": Parameter(role="floor"),
                "eps_0": Parameter(role="ceiling"),
                "alpha": Parameter(low=0.3, high=3.0),
            },
        ),
        bnsl(1),
        bnsl(2),
        # a, b, c, d are of decimal logarithms: log10 L = a log10 N + b log10 E_hat + c log10 N log10 E_hat + d.
        Law(
            f"10**d*N**(a + c*log({_EXPERTS})/log(10))*{_EXPERTS}**b",
            variables=["N", "experts"],
            name="routed",
            source="Clark et al. 2022, arXiv:2202.01169",
            parameters={
                "a": _NEGATIVE,
                "b": _NEGATIVE,
                "c": Parameter(positive=False, low=0.0, high=0.05),
                "d": Parameter(positive=False, low=0.5, high=3.0),
                "E_start": Parameter(role="amount", low=1.0, high=5.0),
                "E_max": Parameter(role="amount", low=50.0, high=1000.0),
            },
        ),
        Law(
            "c*N**alpha*D**beta",
            variables=["N", "D"],
            name="step_law_learning_rate",
            source=_LI,
            parameters={"alpha": _NEGATIVE},
            response="learning_rate",
        ),
        Law("d*D**gamma", variables=["D"], name="step_law_batch", source=f"{_LI}, in tokens", response="batch"),
        # lambda, a word that Python keeps for itself, takes an underscore.
        Law(
            "lambda_*log(N/N_c)",
            variables=["N"],
            name="information",
            source='Henighan et al. 2020, arXiv:2010.14701; in nats, fit it with residual="raw"',
            parameters={"N_c": Parameter(role="break:N")},
            response="information",
        ),
        Law(
            "B_star/loss**(1/alpha_B)",
            variables=["loss"],
            name="kaplan_B_crit",
            source=f"{_KAPLAN}, eq. 1.4, in tokens",
            parameters={"B_star": Parameter(role="term:loss:alpha_B")},
            response="B_crit",
        ),
    ]
}


def get(law: "str | Law") -> Law:
    """A law by name, or the law itself; "bnsl" and a number is `bnsl`; a text with an operator is an expression.

    Raises ValueError for an unknown name.
    """
    if isinstance(law, Law):
        return law
    if law in LAWS:
        return LAWS[law]
    if law.startswith("bnsl") and law[4:].isdecimal():
        return bnsl(int(law[4:]))
    if any(sign in law for sign in "+*/("):
        return Law(law)
    raise ValueError(
        f"law {law!r} is unknown; known are {', '.join(LAWS)}. A law of your own is an expression over N, D, C, S."
    )


def names() -> Iterable[str]:
    """Names of the laws that are built in."""
    return LAWS.keys()
