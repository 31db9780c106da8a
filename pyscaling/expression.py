"""Expressions as a graph of shared nodes: parsing, exact derivatives, and the identities that make laws cheap.

Nodes are hash-consed, so that a common subexpression is one node. Positive parameters enter as exp(theta); powers and
products of exponentials fold into one exponential of a linear form, e.g. A / N**alpha = exp(a - alpha log N).
"""

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["const", "data", "scalar", "vector"]  # scalar: of parameters alone; vector: of data and parameters


@dataclass(frozen=True)
class Node:
    """A value; compared by identity of `key`.

    op: "const", "column", "parameter", "add", "sub", "mul", "exp", "log", "recip", "max" or "less", 1 where a < b, else 0.
    """

    key: int
    op: str
    args: tuple["Node", ...]
    value: float | str | int
    kind: Kind
    positive: bool

    def __hash__(self) -> int:
        return self.key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.key == other.key


class Graph:
    """Builds nodes.

    parameters: name -> whether it enters as exp of its theta (it is positive), or as theta itself, in its unit.
    signed: variables that are negative somewhere.
    """

    def __init__(
        self,
        parameters: Mapping[str, bool],
        variables: tuple[str, ...],
        units: Mapping[str, float] | None = None,
        signed: frozenset[str] = frozenset(),
    ) -> None:
        self._nodes: dict[tuple[object, ...], Node] = {}
        self._derivatives: dict[tuple[int, int], Node] = {}
        self._logits: dict[Node, tuple[Node, Node]] = {}  # roots that `saturate` unrolled, with what defines them
        self.variables, self._signed = variables, signed
        self.theta = [self._make("parameter", (), j, "scalar", False) for j in range(len(parameters))]
        self._names = {
            name: self.exp(theta) if logarithmic else self.mul(self.const((units or {}).get(name, 1.0)), theta)
            for (name, logarithmic), theta in zip(parameters.items(), self.theta, strict=True)
        }

    def _make(self, op: str, args: tuple[Node, ...], value: float | str | int, kind: Kind, positive: bool) -> Node:
        key = (op, tuple(arg.key for arg in args), value)
        if key not in self._nodes:
            self._nodes[key] = Node(len(self._nodes), op, args, value, kind, positive)
        return self._nodes[key]

    def _combine(self, op: str, args: tuple[Node, ...], positive: bool) -> Node:
        kinds = {arg.kind for arg in args} - {"const"}
        kind: Kind = "vector" if len(kinds) > 1 or "vector" in kinds else kinds.pop()
        return self._make(op, args, "", kind, positive)

    def const(self, value: float) -> Node:
        if not math.isfinite(value):
            raise ValueError("the law holds a number beyond the range of a double; rescale its constants.")
        return self._make("const", (), float(value), "const", value > 0)

    def column(self, name: str) -> Node:
        return self._make("column", (), name, "data", name not in self._signed)

    def add(self, a: Node, b: Node) -> Node:
        if a.op == "const" and b.op == "const":
            return self.const(_number(a) + _number(b))
        if _is(a, 0):
            return b
        if _is(b, 0):
            return a
        if b.op == "mul" and _is(b.args[0], -1):
            return self.sub(a, b.args[1])
        if a.op == "mul" and _is(a.args[0], -1):
            return self.sub(b, a.args[1])
        a, b = sorted((a, b), key=lambda node: node.key)
        return self._combine("add", (a, b), a.positive and b.positive)

    def sub(self, a: Node, b: Node) -> Node:
        if a.op == "const" and b.op == "const":
            return self.const(_number(a) - _number(b))
        if _is(b, 0):
            return a
        if a == b:
            return self.const(0)
        if _is(a, 0):
            return self.mul(self.const(-1), b)
        if b.op == "mul" and b.kind != "data" and "data" in (b.args[0].kind, b.args[1].kind):
            return self.add(a, self.mul(self.const(-1), b))
        return self._combine("sub", (a, b), False)

    def mul(self, a: Node, b: Node) -> Node:
        if a.op == "const" and b.op == "const":
            return self.const(_number(a) * _number(b))
        if b.op == "const":
            a, b = b, a
        if _is(a, 0):
            return a
        if _is(a, 1):
            return b
        if a.op == "const" and b.op == "mul" and b.args[0].op == "const":
            return self.mul(self.const(_number(a) * _number(b.args[0])), b.args[1])
        if a.op == "const" and b.op == "mul":
            # A constant joins the data, where it is multiplied once and for all.
            for data, other in (b.args, b.args[::-1]):
                if data.kind == "data" and other.kind != "data":
                    return self.mul(self.mul(a, data), other)
        if a.op == "exp" and b.op == "exp":
            return self.exp(self.add(a.args[0], b.args[0]))
        if a.op != "const":
            # A constant moves outwards, to meet others of its kind.
            if b.op == "mul" and b.args[0].op == "const" and b.kind != "data":
                return self.mul(b.args[0], self.mul(a, b.args[1]))
            if a.op == "mul" and a.args[0].op == "const" and a.kind != "data":
                return self.mul(a.args[0], self.mul(a.args[1], b))
            a, b = sorted((a, b), key=lambda node: node.key)
        return self._combine("mul", (a, b), a.positive and b.positive)

    def recip(self, a: Node) -> Node:
        if a.op == "const":
            if _number(a) == 0:
                raise ValueError("the law divides by zero.")
            return self.const(1 / _number(a) if abs(_number(a)) > _SMALLEST else math.inf)
        if a.op == "exp":
            return self.exp(self.mul(self.const(-1), a.args[0]))
        if a.op == "recip":
            return a.args[0]
        return self._combine("recip", (a,), a.positive)

    def div(self, a: Node, b: Node) -> Node:
        return self.const(1) if a == b and not _is(a, 0) else self.mul(a, self.recip(b))

    def exp(self, a: Node) -> Node:
        if a.op == "const":
            return self.const(math.exp(_number(a)) if _number(a) < _LARGEST_LOG else math.inf)
        if a.op == "log" and a.args[0].positive:
            return a.args[0]
        return self._combine("exp", (a,), True)

    def log(self, a: Node) -> Node:
        if a.op == "const":
            if _number(a) <= 0:
                raise ValueError(f"the law takes the logarithm of {_number(a):g}.")
            return self.const(math.log(_number(a)))
        if a.op == "exp":
            return a.args[0]
        if a.op == "mul" and all(arg.positive for arg in a.args):
            return self.add(self.log(a.args[0]), self.log(a.args[1]))
        if a.op == "recip":
            return self.mul(self.const(-1), self.log(a.args[0]))
        return self._combine("log", (a,), False)

    def pow(self, a: Node, b: Node) -> Node:
        if b.op == "const":
            exponent = _number(b)
            if exponent == 0:
                return self.const(1)
            # A logarithm would be cheaper from 5 on, but knows no negative numbers.
            if exponent == int(exponent) and abs(exponent) <= (4 if a.positive else 64):
                power = a
                for _ in range(abs(int(exponent)) - 1):
                    power = self.mul(power, a)
                return power if exponent > 0 else self.recip(power)
        return self.exp(self.mul(b, self.log(a)))

    def max(self, a: Node, b: Node) -> Node:
        if a.op == "const" and b.op == "const":
            return a if _number(a) > _number(b) else b
        return a if a == b else self._combine("max", (a, b), a.positive or b.positive)

    def min(self, a: Node, b: Node) -> Node:
        minus = self.const(-1)
        return self.mul(minus, self.max(self.mul(minus, a), self.mul(minus, b)))

    def less(self, a: Node, b: Node) -> Node:
        return self._combine("less", (a, b), False)

    def saturate(self, k: Node, alpha: Node) -> Node:
        """The share v of (0, 1) that solves v = k (1 - v)^alpha; see `saturate` for the equation in s = logit(v).

        Its Newton steps are unrolled, its derivatives are those of the implicit function.
        """
        one, zero, log_k = self.const(1), self.const(0), self.log(k)
        s = self.add(self.min(log_k, zero), self.div(self.max(log_k, zero), alpha))
        for _ in range(_NEWTON_STEPS):
            softplus, slope = self._softplus_and_slope(s, alpha)
            excess = self.sub(self.add(s, self.mul(self.sub(alpha, one), softplus)), log_k)
            s = self.sub(s, self.div(excess, slope))
        self._logits[s] = log_k, alpha
        return self._logistic(s)

    def _logistic(self, s: Node) -> Node:
        return self.recip(self.add(self.const(1), self.exp(self.mul(self.const(-1), s))))

    def _softplus_and_slope(self, s: Node, alpha: Node) -> tuple[Node, Node]:
        one = self.const(1)
        slope = self.add(one, self.mul(self.sub(alpha, one), self._logistic(s)))
        return self.log(self.add(one, self.exp(s))), slope

    def softplus(self, s: Node) -> Node:
        """log(1 + exp(s)) = max(s, 0) + log(1 + exp(-|s|)), which never overflows."""
        one, zero = self.const(1), self.const(0)
        above = self.max(s, zero)
        size = self.sub(self.add(above, above), s)
        return self.add(above, self.log(self.add(one, self.exp(self.mul(self.const(-1), size)))))

    def parse(self, text: str) -> Node:
        """The node of an expression in Python's notation. Raises ValueError for all but arithmetic and FUNCTIONS."""
        return self._build(parse_expression(text).body)

    def _build(self, tree: ast.expr) -> Node:
        if isinstance(tree, ast.Constant):
            return self.const(_finite_or_inf(tree.value))  # type: ignore[arg-type]
        if isinstance(tree, ast.Name):
            return self.column(tree.id) if tree.id in self.variables else self._names[tree.id]
        if isinstance(tree, ast.UnaryOp):
            operand = self._build(tree.operand)
            return self.mul(self.const(-1), operand) if isinstance(tree.op, ast.USub) else operand
        if isinstance(tree, ast.BinOp):
            a, b = self._build(tree.left), self._build(tree.right)
            build = {ast.Add: self.add, ast.Sub: self.sub, ast.Mult: self.mul, ast.Div: self.div, ast.Pow: self.pow}
            return build[type(tree.op)](a, b)
        assert isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)
        if tree.func.id == "sqrt":
            return self.pow(self._build(tree.args[0]), self.const(0.5))
        call: Callable[..., Node] = getattr(self, tree.func.id)  # a name of FUNCTIONS, see parse_expression
        return call(*map(self._build, tree.args))

    def derivative(self, node: Node, j: int) -> Node:
        """d node / d theta_j."""
        if node.kind in ("const", "data"):
            return self.const(0)
        if node.op == "parameter":
            return self.const(1.0 if node.value == j else 0.0)
        key = (node.key, j)
        if key not in self._derivatives:
            self._derivatives[key] = self._differentiate(node, j)
        return self._derivatives[key]

    def _differentiate(self, node: Node, j: int) -> Node:
        if node in self._logits:
            d_log_k, d_alpha = (self.derivative(arg, j) for arg in self._logits[node])
            softplus, slope = self._softplus_and_slope(node, self._logits[node][1])
            return self.div(self.sub(d_log_k, self.mul(softplus, d_alpha)), slope)
        if node.op == "less":
            return self.const(0)
        d = [self.derivative(arg, j) for arg in node.args]
        if node.op == "add":
            return self.add(*d)
        if node.op == "sub":
            return self.sub(*d)
        if node.op == "mul":
            a, b = node.args
            return self.add(self.mul(d[0], b), self.mul(a, d[1]))
        if node.op == "exp":
            return self.mul(node, d[0])
        if node.op == "log":
            return self.mul(self.recip(node.args[0]), d[0])
        if node.op == "max":
            a, b = node.args
            return self.add(self.mul(self.less(b, a), self.sub(d[0], d[1])), d[1]) if d[0] != d[1] else d[0]
        return self.mul(self.const(-1), self.mul(self.mul(node, node), d[0]))  # recip


# Quadratic from the nearer asymptote: alpha in [0.2, 5] takes five to reach rounding.
_NEWTON_STEPS = 6


def saturate(k: Any, alpha: Any) -> Any:
    """The share v of (0, 1) that solves v = k (1 - v)^alpha, alpha > 0; arrays broadcast.

    With v = 1 / (1 + exp(-s)) it reads s + (alpha - 1) log(1 + exp(s)) = log(k), which is monotone, of slope between 1 and
    alpha, and convex or concave throughout, so that Newton's method from the nearer asymptote approaches from one side.
    """
    log_k = np.log(k)
    s = np.minimum(log_k, 0) + np.maximum(log_k, 0) / alpha
    for _ in range(_NEWTON_STEPS):
        s = s - (s + (alpha - 1) * np.log1p(np.exp(s)) - log_k) / (1 + (alpha - 1) / (1 + np.exp(-s)))
    return 1 / (1 + np.exp(-s))


# What an expression may call, as numpy knows it; Graph has a method of the same name for each but sqrt.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "max": np.maximum,
    "min": np.minimum,
    "softplus": lambda s: np.logaddexp(0.0, s),
    "saturate": saturate,
}
_TWO_ARGUMENTS = ("max", "min", "saturate")
_SMALLEST, _LARGEST_LOG = 1e-308, 709.0  # what a reciprocal and an exponential take without overflow
_DEEPEST = 100
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.UAdd, ast.USub)
_ALLOWED = (ast.Expression, ast.Name, ast.Load, ast.BinOp, ast.UnaryOp, *_OPERATORS)


def parse_expression(text: str) -> ast.Expression:
    """Checks that a text is plain arithmetic over names, numbers and calls of FUNCTIONS, and returns its syntax tree."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"law {text!r} is not an expression: {getattr(error, 'msg', error)}.") from None
    if _depth(tree) > _DEEPEST:
        raise ValueError(
            f"law {text[:40]!r}... is nested more than {_DEEPEST} deep; a long sum nests with each term: split it by parentheses."
        )
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if (
                not isinstance(node.func, ast.Name)
                or node.func.id not in FUNCTIONS
                or len(node.args) != 1 + (node.func.id in _TWO_ARGUMENTS)
                or node.keywords
            ):
                raise ValueError(
                    f"law {text!r}: only {', '.join(name for name in FUNCTIONS if name not in _TWO_ARGUMENTS)} of one "
                    f"argument and {', '.join(_TWO_ARGUMENTS)} of two may be called."
                )
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, bool) or not isinstance(node.value, int | float):
                raise ValueError(f"law {text!r}: {node.value!r} is not a number.")
        elif not isinstance(node, _ALLOWED):
            raise ValueError(
                f"law {text!r}: {type(node).__name__} is not part of a law; use + - * / ** and {', '.join(FUNCTIONS)}"
                f"{'; a power is **, not ^' if isinstance(node, ast.BitXor) else ''}."
            )
    return tree


def names_of(text: str) -> list[str]:
    """The names in an expression, in the order of first appearance, functions left out."""
    tree = parse_expression(text)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called]
    return list(dict.fromkeys(node.id for node in sorted(found, key=lambda n: (n.lineno, n.col_offset))))


def _depth(tree: ast.AST) -> int:
    depth, level = 0, [tree]
    while level:
        depth, level = depth + 1, [child for node in level for child in ast.iter_child_nodes(node)]
    return depth


def _finite_or_inf(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf


def _number(node: Node) -> float:
    return float(node.value)


def _is(node: Node, value: float) -> bool:
    return node.op == "const" and node.value == value
