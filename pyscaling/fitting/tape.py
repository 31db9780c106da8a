"""Compiles a law into the tape that the C++ core runs: value, gradient and second derivatives, in that order."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pyscaling._core import Tape
from pyscaling.expression import Graph, Node
from pyscaling.laws import Law

_OPCODES = {"add": 0, "sub": 1, "mul": 2, "exp": 3, "log": 4, "recip": 5, "copy": 6}


@dataclass(frozen=True)
class CompiledLaw:
    """A law's tape, and the expressions over data that become its columns."""

    tape: Tape
    data_nodes: tuple[Node, ...]

    def columns(self, variables: Mapping[str, np.ndarray]) -> np.ndarray:
        """The tape's data columns [n_column, n] of the variables' arrays [n]."""
        length = len(next(iter(variables.values())))
        cache: dict[int, np.ndarray | float] = {}
        rows = [np.broadcast_to(_evaluate(node, variables, cache), (length,)) for node in self.data_nodes]
        return np.ascontiguousarray(rows, dtype=np.float64).reshape(len(rows), length)


@lru_cache(maxsize=64)
def compile_law(law: Law, log_value: bool) -> CompiledLaw:
    """The tape of a law, or of its logarithm. Parameters are internal: see `Parameter` for which are logarithms."""
    graph = Graph({name: p.logarithmic for name, p in law.parameters.items()}, law.variables)
    value = graph.parse(law.expression)
    if log_value:
        value = graph.log(value)
    count = len(graph.theta)
    gradient = [graph.derivative(value, j) for j in range(count)]
    hessian = [graph.derivative(gradient[i], j) for i in range(count) for j in range(i + 1)]
    return _Emitter(count).emit(value, gradient, hessian)


class _Emitter:
    """Orders nodes into instructions and gives each a slot: scalars, then columns, then registers."""

    def __init__(self, n_parameter: int) -> None:
        self.n_parameter = n_parameter
        self.scalars: list[float] = [0.0] * n_parameter
        self.scalar_code: list[tuple[int, str, str, str]] = []
        self.vector_code: list[tuple[int, str, str, str]] = []
        self.data_nodes: list[Node] = []
        self.n_register = 0
        self.slots: dict[Node, str] = {}

    def emit(self, value: Node, gradient: list[Node], hessian: list[Node]) -> CompiledLaw:
        outputs, ends = [], []
        for level in ([value], gradient, hessian):
            outputs.append([self._output(node) for node in level])
            ends.append(len(self.vector_code))
        first_column = len(self.scalars)
        first_register = first_column + len(self.data_nodes)
        base = {"s": 0, "c": first_column, "r": first_register}

        def number(slot: str) -> int:
            return base[slot[0]] + int(slot[1:])

        def code(rows: list[tuple[int, str, str, str]]) -> np.ndarray:
            table = [(op, number(out), number(a), number(b)) for op, out, a, b in rows]
            return np.array(table, dtype=np.int32).reshape(len(table), 4)

        tape = Tape(
            n_parameter=self.n_parameter,
            scalars=self.scalars,
            n_column=len(self.data_nodes),
            n_register=self.n_register,
            scalar_code=code(self.scalar_code),
            vector_code=code(self.vector_code),
            level_end=ends,
            value=number(outputs[0][0]),
            gradient=[number(slot) for slot in outputs[1]],
            hessian=[number(slot) for slot in outputs[2]],
        )
        return CompiledLaw(tape, tuple(self.data_nodes))

    def _output(self, node: Node) -> str:
        """Outputs are blocks of points: a scalar one is spread over a register of its own."""
        slot = self._slot(node)
        if slot[0] != "s":
            return slot
        copied = self._register()
        self.vector_code.append((_OPCODES["copy"], copied, slot, slot))
        return copied

    def _register(self) -> str:
        self.n_register += 1
        return f"r{self.n_register - 1}"

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
        args = [self._slot(arg) for arg in node.args]
        if node.kind == "scalar":
            out = self._scalar(math.nan)
            self.scalar_code.append((_OPCODES[node.op], out, args[0], args[-1]))
            return out
        if node.op in ("add", "mul") and args[0][0] == "s":
            args.reverse()  # the core takes a scalar as its second operand
        out = self._register()
        self.vector_code.append((_OPCODES[node.op], out, args[0], args[-1]))
        return out


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
        functions = {
            "add": np.add,
            "sub": np.subtract,
            "mul": np.multiply,
            "exp": np.exp,
            "log": np.log,
            "recip": np.reciprocal,
        }
        out = functions[node.op](*args)
    cache[node.key] = out
    return out
