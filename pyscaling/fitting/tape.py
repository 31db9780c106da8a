"""Compiles a law into the tape that the C++ core runs: value, gradient and second derivatives, in that order."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pyscaling._core import Tape
from pyscaling.expression import Graph, Node
from pyscaling.laws import Law

_OPCODES = {
    op: k for k, op in enumerate(("add", "sub", "mul", "exp", "log", "recip", "copy", "max", "less", "fma", "emit"))
}  # the order of Op in csrc/tape.hpp


@dataclass(frozen=True)
class CompiledLaw:
    """A law's tape, and the expressions over data that become its columns."""

    tape: Tape
    data_nodes: tuple[Node, ...]

    def columns(self, variables: Mapping[str, np.ndarray]) -> np.ndarray:
        """The tape's data columns [n_column, n] of the variables' arrays [n]."""
        length = len(next(iter(variables.values())))
        cache: dict[int, np.ndarray | float] = {}
        with np.errstate(all="ignore"):  # what overflows here makes the law's value not finite, which the core reports
            rows = [np.broadcast_to(_evaluate(node, variables, cache), (length,)) for node in self.data_nodes]
        return np.ascontiguousarray(rows, dtype=np.float64).reshape(len(rows), length)


@lru_cache(maxsize=64)
def compile_law(
    law: Law, log_value: bool, units: tuple[float, ...] = (), signed: frozenset[str] = frozenset()
) -> CompiledLaw:
    """The tape of a law, or of its logarithm. Parameters are internal: see `Parameter` for which are logarithms; the others
    are multiples of units [P], if given. signed: variables that are negative somewhere.

    A logarithm that does not simplify is left to the core's link, which spares its derivatives.
    Raises ValueError for a law nested too deep to differentiate.
    """
    try:
        return _compile(law, log_value, units, signed)
    except RecursionError:
        raise ValueError(f"law {law.name[:40]!r}... is nested too deep to differentiate; write it flatter.") from None


def _compile(law: Law, log_value: bool, units: tuple[float, ...], signed: frozenset[str]) -> CompiledLaw:
    logarithmic = {name: p.logarithmic for name, p in law.parameters.items()}
    graph = Graph(logarithmic, law.variables, dict(zip(logarithmic, units, strict=False)), signed)
    value = graph.parse(law.expression)
    log_link = log_value and graph.log(value).op == "log"
    if log_value and not log_link:
        value = graph.log(value)
    count = len(graph.theta)
    gradient = [graph.derivative(value, j) for j in range(count)]
    hessian = [graph.derivative(gradient[i], j) for i in range(count) for j in range(i + 1)]
    return _Emitter(count, [value, *gradient, *hessian]).emit(
        value, gradient, hessian, _dependence(gradient, hessian), log_link
    )


def _dependence(gradient: list[Node], hessian: list[Node]) -> list[int]:
    """For each parameter the Dependence of csrc/tape.hpp: of a set in whose coefficients the law is linear, all at once."""

    def second(i: int, j: int) -> Node:
        return hessian[max(i, j) * (max(i, j) + 1) // 2 + min(i, j)]

    def is_zero(node: Node) -> bool:
        return node.op == "const" and node.value == 0

    kinds: list[int] = []
    for j, slope in enumerate(gradient):
        apart = not is_zero(slope) and all(is_zero(second(i, j)) for i in range(j) if kinds[i])
        kinds.append((1 if is_zero(second(j, j)) else 2 if second(j, j) == slope else 0) if apart else 0)
    return kinds


class _Emitter:
    """Orders nodes into instructions and gives each a slot: scalars, then columns, then registers."""

    def __init__(self, n_parameter: int, outputs: list[Node]) -> None:
        self.n_parameter = n_parameter
        self.scalars: list[float] = [0.0] * n_parameter
        self.scalar_code: list[tuple[str, ...]] = []
        self.vector_code: list[tuple[str, ...]] = []  # operation, out, operands
        self.data_nodes: list[Node] = []
        self.n_virtual = 0
        self.slots: dict[Node, str] = {}
        self.uses = _count_uses(outputs)

    def emit(
        self, value: Node, gradient: list[Node], hessian: list[Node], dependence: list[int], log_link: bool
    ) -> CompiledLaw:
        value_slot = self._vector(value)
        ends = [len(self.vector_code)]
        gradient_slots = [self._vector(node) for node in gradient]
        ends.append(len(self.vector_code))
        for k, node in enumerate(hessian):
            if node.op != "const" or node.value != 0:
                self.vector_code.append(("emit", f"h{k}", self._vector(node)))
        ends.append(len(self.vector_code))
        # The value is read after level 0, the gradient after level 1.
        kept_until = {value_slot: ends[0]} | dict.fromkeys(gradient_slots, ends[1])
        physical, n_register = _allocate(self.vector_code, kept_until)
        first_column = len(self.scalars)
        base = {"s": 0, "c": first_column, "r": first_column + len(self.data_nodes), "h": 0}

        def number(slot: str) -> int:
            return base[slot[0]] + (physical[slot] if slot[0] == "r" else int(slot[1:]))

        def code(rows: list[tuple[str, ...]]) -> np.ndarray:
            # Operands that an operation does not have repeat its last one.
            table = [(_OPCODES[op], *map(number, (out, *args, *args[-1:] * 2)[:4])) for op, out, *args in rows]
            return np.array(table, dtype=np.int32).reshape(len(table), 5)

        tape = Tape(
            n_parameter=self.n_parameter,
            scalars=self.scalars,
            n_column=len(self.data_nodes),
            n_register=n_register,
            scalar_code=code(self.scalar_code),
            vector_code=code(self.vector_code),
            level_end=ends,
            value=number(value_slot),
            gradient=[number(slot) for slot in gradient_slots],
            dependence=dependence,
            log_link=log_link,
        )
        return CompiledLaw(tape, tuple(self.data_nodes))

    def _vector(self, node: Node) -> str:
        """The slot of a block of points: a scalar is spread over a register of its own."""
        slot = self._slot(node)
        return slot if slot[0] != "s" else self._append("copy", slot)

    def _append(self, op: str, *args: str) -> str:
        self.n_virtual += 1
        self.vector_code.append((op, f"r{self.n_virtual - 1}", *args))
        return f"r{self.n_virtual - 1}"

    def _scalar(self, value: float) -> str:
        self.scalars.append(value)
        return f"s{len(self.scalars) - 1}"

    def _slot(self, node: Node) -> str:
        if node not in self.slots:
            self.slots[node] = self._place(node)
        return self.slots[node]

    def _place(self, node: Node) -> str:
        if node.op == "const":
            return self._scalar(float(node.value))
        if node.op == "parameter":
            return f"s{node.value}"
        if node.kind == "data":
            self.data_nodes.append(node)
            return f"c{len(self.data_nodes) - 1}"
        if node.kind == "scalar":
            args = [self._slot(arg) for arg in node.args]
            self.scalar_code.append((node.op, self._scalar(math.nan), *args))
            return self.scalar_code[-1][1]
        if node.op == "add":
            for product, other in (node.args, node.args[::-1]):
                if product.op == "mul" and product.kind == "vector" and self.uses[product] == 1:
                    return self._append("fma", *self._ordered(product), self._slot(other))
        return self._append(node.op, *self._ordered(node))

    def _ordered(self, node: Node) -> list[str]:
        """The slots of a node's arguments; the core takes a scalar as the second of a commutative pair."""
        args = [self._slot(arg) for arg in node.args]
        return args[::-1] if node.op in ("add", "mul", "max") and args[0][0] == "s" else args


def _count_uses(outputs: list[Node]) -> Counter[Node]:
    uses, seen = Counter(outputs), set()
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            uses.update(node.args)
            stack.extend(node.args)
    return uses


def _allocate(code: list[tuple[str, ...]], kept_until: dict[str, int]) -> tuple[dict[str, int], int]:
    """Registers by linear scan: virtual -> physical, and how many; one whose last use is past is given again."""
    last_use = {slot: k for k, (_, *slots) in enumerate(code) for slot in slots if slot[0] == "r"}
    for slot, k in kept_until.items():
        last_use[slot] = max(last_use.get(slot, k), k)
    physical: dict[str, int] = {}
    free: list[int] = []
    expiring: dict[int, list[str]] = {}
    for slot, k in last_use.items():
        expiring.setdefault(k, []).append(slot)
    count = 0
    for k, (_, out, *_args) in enumerate(code):
        # Operations are elementwise, so a result may take the place of an operand that is read for the last time.
        free += [physical[slot] for slot in expiring.get(k, []) if slot != out and slot in physical]
        if out[0] == "r":
            if free:
                physical[out] = free.pop()
            else:
                physical[out] = count
                count += 1
            if last_use[out] == k:
                free.append(physical[out])
    return physical, count


# Stands for the infinite logarithm and reciprocal of zero, so that 0**p and its derivatives, 0 log 0, come out as zero.
INFINITE = 1e100


def _log(x: np.ndarray) -> np.ndarray:
    return np.where(x == 0, -INFINITE, np.log(x))


def _reciprocal(x: np.ndarray) -> np.ndarray:
    return np.where(x == 0, INFINITE, np.reciprocal(x))


def _evaluate(
    node: Node, variables: Mapping[str, np.ndarray], cache: dict[int, np.ndarray | float]
) -> np.ndarray | float:
    if node.key in cache:
        return cache[node.key]
    if node.op == "const":
        out: np.ndarray | float = float(node.value)
    elif node.op == "column":
        out = np.asarray(variables[str(node.value)], dtype=np.float64)
    else:
        args = [_evaluate(arg, variables, cache) for arg in node.args]
        functions: dict[str, Callable[..., np.ndarray]] = {
            "add": np.add,
            "sub": np.subtract,
            "mul": np.multiply,
            "exp": np.exp,
            "log": _log,
            "recip": _reciprocal,
            "max": np.maximum,
            "less": np.less,
        }
        out = functions[node.op](*args)
    cache[node.key] = out
    return out
