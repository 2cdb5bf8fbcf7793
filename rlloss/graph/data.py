"""A computation graph as data: its inputs, its numbers, and what flows between them."""

from dataclasses import dataclass, field

from rlloss.graph.tape import Arg


@dataclass(frozen=True)
class Input:
    """A number to vary: where its slider starts, its ends and step. ``number``: a Python float, as ``clip_coef``."""

    name: str
    label: str
    value: float
    low: float
    high: float
    step: float = 0.01
    grad: bool = False
    number: bool = False


@dataclass(frozen=True)
class Edge:
    """An argument's way into an operation: its local derivative, and what flows back along it.

    ``outgoing`` = incoming gradient × ``local``, as autograd multiplies. Both are None where no gradient can pass:
    comparisons, constants, and cut edges.
    """

    source: int
    target: int
    position: int
    local: float | None
    outgoing: float | None
    cut: bool


@dataclass(frozen=True)
class Node:
    """One number: an input, or the result of one operation.

    ``gradient`` is that of the loss with respect to it, by autograd; None where there is no path. ``cut``: the author
    stopped the gradient here. ``number``: computed by Python, not by PyTorch. ``formula``: in terms of named numbers.
    """

    id: int
    op: str
    args: tuple[Arg, ...]
    value: float
    gradient: float | None
    requires_grad: bool
    cut: bool
    number: bool
    name: str
    formula: str
    scope: str
    line: str
    over: str = ""  # of a reduction: how its numbers lie in memory; of a cast: to which dtype


@dataclass(frozen=True)
class Graph:
    """A traced expression. The first ``len(inputs)`` nodes are the inputs; ``loss`` is the node of the result."""

    title: str
    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    loss: int
    edges: tuple[Edge, ...] = field(default=())
    formats: tuple[str, ...] = ()  # the floating dtypes in which something was computed
    promotes: bool = False  # whether an operation had tensors of two floating dtypes

    def cuts(self) -> frozenset[int]:
        """The nodes at which no gradient passes: the author's cuts, and inputs that are data."""
        data = {i for i, given in enumerate(self.inputs) if not given.grad}
        return frozenset(data | {node.id for node in self.nodes if node.cut})

    def consumers(self, node: int) -> list[tuple[int, int]]:
        """(operation, position) of every use, in autograd's order of accumulation: the latest first."""
        uses = [(other.id, i) for other in self.nodes for i, arg in enumerate(other.args) if _is_node(arg, node)]
        return uses[::-1]


def _is_node(arg: Arg, node: int) -> bool:
    return isinstance(arg, int) and arg == node
