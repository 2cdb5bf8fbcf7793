"""A traced graph, forward and backward, in any arithmetic: the gradient at every input as a case distinction.

The rules are PyTorch's own, in its order of operations: a tie in minimum gives each branch half, a clamp lets the
gradient pass at its bounds, what several operations send back is added the latest first. What the numbers are is the
arithmetic's business (``Arithmetic``): polynomials, or terms that stand for rounded results.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rlloss.graph.graph import Graph, Node
from rlloss.graph.tape import Held
from rlloss.prove.diagrams import Diagram, Diagrams


class NotFollowed(Exception):
    """An operation, or its derivative, that an arithmetic has no rule for. The message names it."""


class Arithmetic(Protocol):
    """What ``gradients`` needs of numbers. A value is a diagram; these work on its leaves."""

    cases: Diagrams
    rounds: bool  # whether the order of operations matters

    def constant(self, x: float) -> Any: ...
    def operand(self, x: Any) -> Any: ...
    def near(self, name: str, *values: Any) -> Any: ...
    def add(self, x: Any, y: Any) -> Any: ...
    def neg(self, x: Any) -> Any: ...
    def mul(self, x: Any, y: Any) -> Any: ...
    def div(self, x: Any, y: Any) -> Any: ...
    def power(self, x: Any, exponent: float) -> Any: ...
    def powered(self, x: Any, exponent: Any) -> Any: ...
    def function(self, name: str, x: Any) -> Any: ...
    def order(self, x: Any, y: Any) -> Diagram: ...
    def total(self, name: str, values: Sequence[Diagram], over: str = "") -> Diagram: ...


class Calculator:
    """One arithmetic on diagrams: every operation of a graph, and its derivative."""

    def __init__(self, on: Arithmetic) -> None:
        self.on, self.cases = on, on.cases
        self.zero, self.one, self.half = on.constant(0.0), on.constant(1.0), on.constant(0.5)

    def __getattr__(self, name: str) -> Callable[..., Diagram]:
        """``add``, ``neg``, ``mul``, ``div``: the arithmetic's own, case by case."""
        if name not in ("add", "neg", "mul", "div"):
            raise AttributeError(name)
        return lambda *values: self.cases.apply(getattr(self.on, name), *values, key=name)

    def sub(self, x: Diagram, y: Diagram) -> Diagram:
        return self.add(x, self.neg(y))

    def function(self, name: str, x: Diagram) -> Diagram:
        return self.cases.apply(lambda leaf: self.on.function(name, leaf), x, key=name)

    def power(self, x: Diagram, exponent: float) -> Diagram:
        return self.cases.apply(lambda leaf: self.on.power(leaf, exponent), x, key=("power", exponent))

    def order(self, x: Diagram, y: Diagram) -> Diagram:
        """The sign of x - y."""
        return self.cases.apply(self.on.order, x, y, key="order")

    def choose(self, sign: Diagram, below: Diagram, equal: Diagram, above: Diagram) -> Diagram:
        return self.cases.select(sign, below, equal, above)

    def truth(self, sign: Diagram, *of: int) -> Diagram:
        """1 where a sign is one of these, else 0."""
        return self.choose(sign, *(self.one if s in of else self.zero for s in (-1, 0, 1)))

    def beyond(self, x: Diagram) -> Diagram:
        """The sign of x - 20, beyond which PyTorch's softplus is x itself."""
        return self.order(x, self.on.constant(SOFTPLUS_THRESHOLD))

    def where(self, condition: Diagram, x: Diagram, y: Diagram) -> Diagram:
        return self.choose(self.order(condition, self.zero), x, y, x)

    # ---------------------------------------------------------------------------------------------------- forward

    def value(self, node: Node, a: Sequence[Diagram]) -> Diagram:
        """The result of a node's operation. Raises: NotFollowed."""
        op = node.op
        if op in ("add", "sub", "mul", "div", "neg"):
            return getattr(self, op)(*a)
        if op in COMPARED:
            return self.truth(self.order(a[0], a[1]), *COMPARED[op])
        if op in SAME:
            return a[0]
        if op in NEAR:
            return self.cases.apply(lambda *x: self.on.near(f"{op} {node.over}", *x), *a, key=(op, node.over))
        if op in ("sum", "mean", "amin", "amax", "min", "max", "prod", "cumsum", "logsumexp", "softmax", "log_softmax",
                  *SPREADS):  # fmt: skip
            return self._total(op, a, node.over)
        if op in FORWARD:
            return FORWARD[op](self, *a)
        if op == "pow":
            if isinstance(node.args[1], int):
                return self.cases.apply(self.on.powered, a[0], a[1], key="powered")
            return self.power(a[0], float(node.args[1]))
        return self.function(op, a[0])

    def _total(self, op: str, a: Sequence[Diagram], over: str) -> Diagram:
        if op in ("amin", "min", "amax", "max"):
            best = a[0]
            for x in a[1:]:
                sign = self.order(x, best)
                best = self.choose(sign, x, best, best) if op in ("amin", "min") else self.choose(sign, best, best, x)
            return best
        return self.on.total(op, a, over)

    # --------------------------------------------------------------------------------------------------- backward

    def slopes(self, node: Node, a: Sequence[Diagram], y: Diagram, up: Diagram) -> Sequence[Diagram | None]:
        """What a node sends back to each argument; None: nothing. Raises: NotFollowed."""
        op = node.op
        if self.on.rounds and op in FUSED:
            return [self._fused(f"{op} {node.over}, slope {i}", up, *a) for i in range(len(a))]
        if op in BACKWARD:
            return BACKWARD[op](self, up, y, *a)
        if op == "pow":
            if isinstance(node.args[1], int):
                less = self.cases.apply(self.on.powered, a[0], self.sub(a[1], self.one), key="powered")
                return [self.mul(up, self.mul(a[1], less)), self.mul(up, self.mul(y, self.function("log", a[0])))]
            n = float(node.args[1])
            if n == 0:
                return [self.zero]
            return [self.mul(up, self.mul(self.on.constant(n), self.power(a[0], n - 1)))]
        if op in ("sum", "cumsum"):
            return [up] * len(a)
        if op == "mean":
            return [self.div(up, self.on.constant(float(len(a))))] * len(a)
        if op in ("amin", "amax"):
            hits = [self.truth(self.order(x, y), 0) for x in a]
            count = self.zero
            for hit in hits:
                count = self.add(count, hit)
            return [self.div(self.mul(up, hit), count) for hit in hits]
        if op in ("min", "max"):
            return self._first(up, y, a)
        if op in COMPARED or op in ("and", "or", "not", "isfinite", "isnan", "sign", "nextafter", "number"):
            return [None] * len(a)
        if op in SAME:
            return [up]
        if op == "cast":
            return [self.cases.apply(lambda x: self.on.near("cast back", x), up, key="cast back")]
        return self._spread(op, up, y, a)

    def _fused(self, name: str, *values: Diagram) -> Diagram:
        return self.cases.apply(lambda *x: self.on.near(name, *x), *values, key=name)

    def _first(self, up: Diagram, y: Diagram, a: Sequence[Diagram]) -> list[Diagram]:
        """All of the gradient to the first that is the least (or the greatest)."""
        left, sent = up, []
        for x in a:
            sign = self.order(x, y)
            sent.append(self.choose(sign, self.zero, left, self.zero))
            left = self.choose(sign, left, self.zero, left)
        return sent

    def _spread(self, op: str, up: Diagram, y: Diagram, a: Sequence[Diagram]) -> list[Diagram]:
        n = len(a)
        if op == "prod":
            others = [self._product([*a[:i], *a[i + 1 :]]) for i in range(n)]
            return [self.mul(up, x) for x in others]
        if op in SPREADS:
            mean, divisor = self.on.total("mean", a), self.on.constant(float(n if op.endswith("_n") else n - 1))
            twice = self.on.constant(2.0 if op.startswith("var") else 1.0)
            sent = [self.mul(self.div(self.mul(up, twice), divisor), self.sub(x, mean)) for x in a]
            return sent if op.startswith("var") else [self.div(x, y) for x in sent]
        if op == "logsumexp":
            return [self.mul(up, self.function("exp", self.sub(x, y))) for x in a]
        if op in ("softmax", "log_softmax"):
            shares = [self.on.total("softmax", [x, *a[1:]]) for x in a[1:]]
            if op == "log_softmax":
                return [up, *(self.neg(self.mul(up, share)) for share in shares)]
            return [self.mul(up, y), *(self.neg(self.mul(up, self.mul(y, share))) for share in shares)]
        raise NotFollowed(f"the derivative of {op}")

    def _product(self, values: Sequence[Diagram]) -> Diagram:
        result = self.one
        for x in values:
            result = self.mul(result, x)
        return result

    def share(self, up: Diagram, x: Diagram, y: Diagram, *, least: bool) -> Diagram:
        """minimum's and maximum's gradient at x beside y: all, half on a tie, or none."""
        half = self.mul(up, self.half)
        ends = (up, half, self.zero) if least else (self.zero, half, up)
        return self.choose(self.order(x, y), *ends)

    def inside(self, up: Diagram, x: Diagram, low: Diagram | None, high: Diagram | None) -> Diagram:
        """clamp's gradient: all of it within the bounds and on them."""
        if low is not None:
            up = self.choose(self.order(x, low), self.zero, up, up)
        return up if high is None else self.choose(self.order(x, high), up, up, self.zero)


SPREADS = ("std", "var", "std_n", "var_n")
SAME = ("detach", "number", "same")
SOFTPLUS_THRESHOLD = 20.0
FUSED = (  # whose derivatives PyTorch computes in one kernel, in an order of its own
    "sigmoid", "logsigmoid", "softplus", "tanh", "expm1", "log1p", "pow", "rdiv", "div", "prod", "logsumexp", "softmax",
    "log_softmax", *SPREADS,
)  # fmt: skip
NEAR = ("cast", "nextafter")  # the same number, but for its rounding
COMPARED = {"gt": (1,), "ge": (0, 1), "lt": (-1,), "le": (-1, 0), "eq": (0,), "ne": (-1, 1)}

FORWARD: dict[str, Callable[..., Diagram]] = {
    "rdiv": lambda c, x, k: c.mul(c.div(c.one, x), k),
    "abs": lambda c, x: c.choose(c.order(x, c.zero), c.neg(x), c.zero, x),
    "sign": lambda c, x: c.choose(c.order(x, c.zero), c.neg(c.one), c.zero, c.one),
    "relu": lambda c, x: c.choose(c.order(x, c.zero), c.zero, c.zero, x),
    "clamp_min": lambda c, x, low: c.choose(c.order(x, low), low, x, x),
    "clamp_max": lambda c, x, high: c.choose(c.order(x, high), x, x, high),
    "clamp": lambda c, x, low, high: FORWARD["clamp_max"](c, FORWARD["clamp_min"](c, x, low), high),
    "minimum": lambda c, x, y: c.choose(c.order(x, y), x, x, y),
    "maximum": lambda c, x, y: c.choose(c.order(x, y), y, x, x),
    "where": lambda c, test, x, y: c.where(test, x, y),
    "and": lambda c, x, y: c.where(x, c.where(y, c.one, c.zero), c.zero),
    "or": lambda c, x, y: c.where(x, c.one, c.where(y, c.one, c.zero)),
    "not": lambda c, x: c.where(x, c.zero, c.one),
    "softplus": lambda c, x: c.choose(c.beyond(x), (y := c.function("softplus", x)), y, x),
    "isfinite": lambda c, x: c.one,
    "isnan": lambda c, x: c.zero,
}

BACKWARD: dict[str, Callable[..., Sequence[Diagram | None]]] = {
    "add": lambda c, up, y, *a: [up, up],
    "sub": lambda c, up, y, *a: [up, c.neg(up)],
    "mul": lambda c, up, y, a, b: [c.mul(up, b), c.mul(up, a)],
    "div": lambda c, up, y, a, b: [c.div(up, b), c.mul(c.neg(up), c.div(c.div(a, b), b))],
    "rdiv": lambda c, up, y, x, k: [c.neg(c.mul(c.mul(up, k), c.mul(c.div(c.one, x), c.div(c.one, x)))), None],
    "neg": lambda c, up, y, x: [c.neg(up)],
    "exp": lambda c, up, y, x: [c.mul(up, y)],
    "expm1": lambda c, up, y, x: [c.mul(up, c.add(y, c.one))],
    "log": lambda c, up, y, x: [c.div(up, x)],
    "log1p": lambda c, up, y, x: [c.div(up, c.add(x, c.one))],
    "sqrt": lambda c, up, y, x: [c.div(up, c.mul(c.add(c.one, c.one), y))],
    "abs": lambda c, up, y, x: [c.mul(up, FORWARD["sign"](c, x))],
    "sigmoid": lambda c, up, y, x: [c.mul(c.mul(up, c.sub(c.one, y)), y)],
    "logsigmoid": lambda c, up, y, x: [c.mul(up, c.function("sigmoid", c.neg(x)))],
    "softplus": lambda c, up, y, x: [c.choose(c.beyond(x), (s := c.mul(up, c.function("sigmoid", x))), s, up)],
    "tanh": lambda c, up, y, x: [c.mul(up, c.sub(c.one, c.mul(y, y)))],
    "relu": lambda c, up, y, x: [c.choose(c.order(x, c.zero), c.zero, c.zero, up)],
    "clamp": lambda c, up, y, x, low, high: [c.inside(up, x, low, high), None, None],
    "clamp_min": lambda c, up, y, x, low: [c.inside(up, x, low, None), None],
    "clamp_max": lambda c, up, y, x, high: [c.inside(up, x, None, high), None],
    "minimum": lambda c, up, y, a, b: [c.share(up, a, b, least=True), c.share(up, b, a, least=True)],
    "maximum": lambda c, up, y, a, b: [c.share(up, a, b, least=False), c.share(up, b, a, least=False)],
    "where": lambda c, up, y, test, a, b: [None, c.where(test, up, c.zero), c.where(test, c.zero, up)],
}


OPERATIONS = ("add", "sub", "mul", "div", "rdiv", "pow")  # which compute with a Python number as it is
LINEAR = ("add", "sub", "neg", "sum", "mean", "cumsum", "cast", *SAME)  # whose slopes need no value


class Gradients:
    """A graph's gradients in an arithmetic. Values are computed when they are first needed: a sum of many tokens,
    each with its cases, would have the cases of all, and no gradient needs it."""

    def __init__(self, graph: Graph, on: Arithmetic, inputs: Mapping[int, Any]) -> None:
        self.graph, self.on, self.calculator = graph, on, Calculator(on)
        self._values: dict[int, Diagram] = dict(inputs)

    def value(self, arg: int | float) -> Diagram:
        """The value of a node, or a constant. Raises: NotFollowed, TooManyCases."""
        if not isinstance(arg, int):
            return self.on.constant(arg)
        todo = [arg]
        while todo:
            node = self.graph.nodes[todo[-1]]
            missing = [a for a in node.args if isinstance(a, int) and a not in self._values]
            if node.id not in self._values and not missing:
                self._values[node.id] = self.calculator.value(node, [self.argument(node, a) for a in node.args])
            if node.id in self._values:
                todo.pop()
            todo += missing
        return self._values[arg]

    def argument(self, node: Node, arg: int | float) -> Diagram:
        """An argument's value, as this operation takes it."""
        value = self._values[arg] if isinstance(arg, int) else self.on.constant(arg)
        of_python = self.graph.nodes[arg].number if isinstance(arg, int) else not isinstance(arg, Held)
        if node.op in OPERATIONS and of_python:
            return self.calculator.cases.apply(self.on.operand, value)
        return value

    def slopes(self, node: Node, up: Diagram) -> Sequence[Diagram | None]:
        wanted = [isinstance(a, int) and self.graph.nodes[a].requires_grad for a in node.args]
        if not any(wanted):
            return []
        c = self.calculator
        unused: Any = None
        if node.op in LINEAR:
            return c.slopes(node, [unused] * len(node.args), unused, up)
        if node.op == "mul":
            others = zip(wanted, node.args[::-1], strict=True)
            return [c.mul(up, self.needed(node, x)) if want else None for want, x in others]
        if node.op == "div" and not wanted[1]:
            return [c.div(up, self.needed(node, node.args[1])), None]
        if node.op == "where":
            return BACKWARD["where"](c, up, unused, self.value(node.args[0]), unused, unused)
        return c.slopes(node, [self.needed(node, a) for a in node.args], self.value(node.id), up)

    def needed(self, node: Node, arg: int | float) -> Diagram:
        """An argument's value, computed now if it was not before."""
        self.value(arg)
        return self.argument(node, arg)

    def at_inputs(self, incoming: Any) -> list[Diagram]:
        """The gradient at every input that has one, in their order. Raises: NotFollowed, TooManyCases."""
        graph, c = self.graph, self.calculator
        sent: dict[int, Diagram] = {graph.loss: incoming}
        cuts = graph.cuts()
        for node in reversed(graph.nodes):
            up = sent.get(node.id)
            if up is None or node.op == "input" or node.number or not node.requires_grad or node.id in cuts:
                continue
            for arg, slope in zip(node.args, self.slopes(node, up), strict=False):
                if isinstance(arg, int) and graph.nodes[arg].requires_grad:
                    if slope is None and node.op.startswith("clamp"):
                        raise NotFollowed(f"the gradient of {node.op}'s bounds")
                    if slope is not None:
                        sent[arg] = c.add(sent[arg], slope) if arg in sent else slope
        return [sent.get(i, c.zero) for i, given in enumerate(graph.inputs) if given.grad]


def gradients(graph: Graph, on: Arithmetic, inputs: Mapping[int, Any], incoming: Any) -> list[Diagram]:
    """The gradient at every input that has one, in their order.

    ``inputs``: a leaf for each of the graph's, and for any other node that has its value from elsewhere.

    Raises: NotFollowed, TooManyCases.
    """
    return Gradients(graph, on, inputs).at_inputs(incoming)
