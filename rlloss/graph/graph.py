"""The computation graph of a PyTorch expression, as data: what was computed, and the gradients that autograd gave it.

``trace`` runs the author's own function once, on one sample in float64, and asks autograd for the gradient of the
result with respect to every intermediate tensor. ``replay`` computes a graph again elsewhere, with PyTorch, operation
by operation; the page does the same in the browser. A graph is checked against its function before it is handed out.
"""

import inspect
import itertools
import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlloss.errors import PASSED_ON, GraphError, LossError
from rlloss.graph.data import Edge, Graph, Input, Node
from rlloss.graph.expressions import EXPRESSIONS
from rlloss.graph.follow import ProofListener
from rlloss.graph.listen import Listener, recording
from rlloss.graph.ops import ATOM, FOLLOWED, write
from rlloss.graph.tape import Operation, Tape
from rlloss.losses.formulation import ZOO, Formulation, describe, load_function, resolve, unknown

__all__ = ["Edge", "Graph", "GraphError", "Input", "Node", "Replay", "replay", "trace", "trace_batch"]

TOKENS = [[True, True], [True, False]]  # the mask of a sequence loss: two answers, of two tokens and of one
RATIOS = (0.5, 0.79, 0.9, 1.0, 1.1, 1.21, 1.5, 3.5)  # at which a graph is checked, on both signs of the advantage
ANYWHERE = 40  # other places at which it is checked, anywhere between the sliders' ends
DIGITS = 1e-12
LONG = 120  # letters: a number whose formula is longer stands as a dot in other formulas


@dataclass(frozen=True)
class _Subject:
    """Something to trace: its inputs, and how to call it with one value for each."""

    title: str
    inputs: tuple[Input, ...]
    function: Callable[..., Any]
    call: Callable[[Sequence[Any]], Tensor]  # tensors of one number, in the order of ``inputs``
    groups: tuple[tuple[int, ...], ...] = ()  # the shapes of the tensors that the function takes
    dtype: torch.dtype = torch.float64
    proving: bool = False


def trace(loss: str | Callable[..., Any], *, incoming: float = 1.0, clip_coef: float = 0.2) -> Graph:
    """The graph of a loss of the zoo, an expression, ``file.py:function``, ``module:function`` or a function.

    A function all of whose parameters have numbers as defaults is an expression: those are its starting point, and
    keyword-only ones are data. Anything else is a loss (``rlloss.formulation``): one sample, or for a sequence loss two
    answers of two tokens and of one. ``incoming`` is the gradient that arrives at the loss, 1/N for a mean over N.

    Raises: LossError for no such loss, GraphError for an operation that a graph cannot hold and for a function whose
        trace does not tell the whole story, one with a Python ``if`` on a value, say.
    """
    subject = _subject(loss, clip_coef)
    start = [given.value for given in subject.inputs]
    graph = _trace_at(subject, start, incoming)
    _check(graph, subject, incoming)
    return graph


def _subject(loss: str | Callable[..., Any], clip_coef: float) -> _Subject:
    title = loss if isinstance(loss, str) else getattr(loss, "__name__", "expression")
    if isinstance(loss, str) and ":" not in loss:
        if loss in EXPRESSIONS:
            return _expression(EXPRESSIONS[loss], title)
        if loss not in ZOO:
            raise unknown(loss, [*ZOO, *EXPRESSIONS])
    function = load_function(loss) if isinstance(loss, str) and ":" in loss else loss
    if callable(function) and _has_numbers(function):
        return _expression(function, title)
    formulation = replace(resolve(function), name=title)
    if formulation.sequence:
        return _sequence(formulation, clip_coef)
    inputs = (
        Input("logp", "logp", -0.9, -5.0, 0.0, grad=True),
        Input("old_logp", "old_logp", -1.0, -5.0, 0.0),
        Input("advantages", "A", 1.3, -3.0, 3.0),
        Input("clip_coef", "ε", clip_coef, 0.01, 0.99, number=True),
    )

    def call(values: Sequence[Any]) -> Tensor:
        logp, old_logp, advantages, eps = values
        return formulation(logp, old_logp, advantages, clip_coef=eps)

    return _Subject(formulation.name, inputs, formulation.function, call, groups=((1,), (1,), (1,), ()))


def trace_batch(
    loss: Formulation,
    shape: tuple[int, ...],
    mask: Sequence[Sequence[bool]] | None = None,
    *,
    clip_coef: float = 0.2,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
) -> Graph:
    """The graph of a loss's mean on a whole batch: ``shape`` is (samples,), or (sequences, tokens) with a ``mask``.

    For proofs: it follows more operations than a page shows, and it is refused where a value decides something that
    no graph holds. The inputs are those of ``trace``, sample by sample, and the mask's numbers as data that is fixed.
    Hold it against the function yourself: unlike that of ``trace``, it is not checked. It is that of the first of the
    ``dtypes`` that the loss takes.

    Raises: LossError, GraphError, as ``trace``.
    """
    reasons: list[Exception] = []
    for dtype in dtypes:  # a loss may refuse one
        subject = _batch(loss, shape, mask, clip_coef, dtype)
        start = [given.value for given in subject.inputs]
        try:
            with warnings.catch_warnings():  # of a deviation of one number, say, which is refused elsewhere
                warnings.simplefilter("ignore")
                return _trace_at(subject, start, 1.0)
        except (LossError, GraphError) as error:
            reasons.append(error)
    raise reasons[0]


def _batch(
    loss: Formulation,
    shape: tuple[int, ...],
    mask: Sequence[Sequence[bool]] | None,
    clip_coef: float,
    dtype: torch.dtype,
) -> _Subject:
    places = list(itertools.product(*map(range, shape)))
    names = [f"[{','.join(map(str, place))}]" for place in places]
    draw = random.Random(1)
    inputs = [Input(f"logp{at}", f"logp{at}", draw.uniform(-1.5, -0.5), -5.0, 0.0, grad=True) for at in names]
    inputs += [Input(f"old_logp{at}", f"old{at}", draw.uniform(-1.5, -0.5), -5.0, 0.0) for at in names]
    of_advantages = shape if loss.per_token else shape[:1]
    inputs += [
        Input(f"advantages[{at}]", f"A[{at}]", draw.uniform(0.5, 2) * (-1) ** i, -3.0, 3.0)
        for i, at in enumerate(",".join(map(str, p)) for p in itertools.product(*map(range, of_advantages)))
    ]
    groups: list[tuple[int, ...]] = [shape, shape, of_advantages]
    if mask is not None:
        flat = [float(mask[i][j]) for i, j in places]
        inputs += [Input(f"mask{at}", f"mask{at}", x, x, x) for at, x in zip(names, flat, strict=True)]
        groups.append(shape)
    inputs.append(Input("clip_coef", "ε", clip_coef, 0.01, 0.99, number=True))

    def call(values: Sequence[Any]) -> Tensor:
        *tensors, eps = values
        return loss(*tensors, clip_coef=eps).mean()

    return _Subject(loss.name, tuple(inputs), loss.function, call, (*groups, ()), dtype=dtype, proving=True)


def _has_numbers(function: Callable[..., Any]) -> bool:
    try:
        defaults = [p.default for p in inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        return False
    return bool(defaults) and all(isinstance(d, int | float) and not isinstance(d, bool) for d in defaults)


def _expression(function: Callable[..., Any], title: str) -> _Subject:
    parameters = inspect.signature(function).parameters.values()
    for p in parameters:
        if not math.isfinite(p.default):
            raise LossError(f"{title}: its slider cannot start at {p.name}={p.default}; give {p.name} a finite default")
    inputs = tuple(
        Input(p.name, p.name, float(p.default), *_range(float(p.default)), grad=p.kind is not p.KEYWORD_ONLY)
        for p in parameters
    )
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    def call(values: Sequence[Any]) -> Tensor:
        split = len(values) - len(named)
        try:
            result = function(*values[:split], **dict(zip(named, values[split:], strict=True)))
        except (GraphError, *PASSED_ON):
            raise
        except BaseException as error:
            raise LossError(f"{title} raised {describe(error)}, given a tensor for each of its parameters") from error
        if not isinstance(result, Tensor) or result.numel() != 1:
            raise LossError(f"{title} must return one number as a tensor, it returned {type(result).__name__}")
        if not result.requires_grad:
            raise LossError(f"{title} has no gradient: its result depends on no parameter in a way that autograd sees")
        return result

    return _Subject(title, inputs, function, call, groups=((),) * len(inputs))


def _range(value: float) -> tuple[float, float, float]:
    """A slider's ends and its step: from -3 to 3 by hundredths, or as many powers of ten as a value needs."""
    reach = 3.0 if 0.1 <= abs(value) <= 2.5 or value == 0 else 10.0 ** math.ceil(math.log10(2 * abs(value)))
    return -reach, reach, 10.0 ** (math.floor(math.log10(reach)) - 2)


def _sequence(formulation: Formulation, clip_coef: float) -> _Subject:
    mask = torch.tensor(TOKENS)
    places = [f"[{i},{j}]" for i in range(2) for j in range(2)]
    logps, olds = (-0.9, -1.1, -0.7, -1.0), (-1.0, -1.0, -1.0, -1.0)
    inputs = (
        *(Input(f"logp{at}", f"logp{at}", x, -5.0, 0.0, grad=True) for at, x in zip(places, logps, strict=True)),
        *(Input(f"old_logp{at}", f"old{at}", x, -5.0, 0.0) for at, x in zip(places, olds, strict=True)),
        *(Input(f"advantages[{i}]", f"A[{i}]", x, -3.0, 3.0) for i, x in enumerate((1.3, -0.7))),
        Input("clip_coef", "ε", clip_coef, 0.01, 0.99, number=True),
    )

    def call(values: Sequence[Any]) -> Tensor:
        logp, old_logp, advantages, eps = values
        return formulation(logp, old_logp, advantages, mask, clip_coef=eps)

    return _Subject(formulation.name, inputs, formulation.function, call, groups=((2, 2), (2, 2), (2,), ()))


def _tensors(subject: _Subject, values: Sequence[float], tape: Tape | None) -> list[Any]:
    """The function's arguments; with a tape, known to it, one node for each number."""
    arguments: list[Any] = []
    at = 0
    for shape in subject.groups:
        size = math.prod(shape)
        mine, numbers = subject.inputs[at : at + size], values[at : at + size]
        if mine[0].number:
            operation = Operation("input", (), numbers[0], number=True, name=mine[0].label)
            arguments.append(tape.symbol(operation) if tape else numbers[0])
        else:
            dtype = torch.bool if mine[0].name.startswith("mask") else subject.dtype
            tensor = torch.tensor(numbers, dtype=dtype).reshape(shape).requires_grad_(mine[0].grad)
            if tape is not None:
                nodes = [
                    tape.add(Operation("input", (), x, i.grad, name=i.label, fixed=dtype == torch.bool))
                    for i, x in zip(mine, numbers, strict=True)
                ]
                tape.bind(tensor, torch.tensor(nodes).reshape(shape))
                tape.holds(nodes, tensor)
                tape.made.append((tensor, torch.tensor(nodes).reshape(shape)))
            arguments.append(tensor)
        at += size
    return arguments


def _trace_at(subject: _Subject, values: Sequence[float], incoming: float) -> Graph:
    tape = Tape(subject.title, getattr(inspect.unwrap(subject.function), "__code__", None), subject.proving)
    arguments = _tensors(subject, values, tape)
    try:
        with recording((ProofListener if subject.proving else Listener)(tape)):
            result = subject.call(arguments)
    except LossError as error:
        if isinstance(error.__cause__, GraphError):  # ours, met inside the user's function
            raise error.__cause__ from None
        raise
    if tape.decisions:
        raise tape.decisions[0]
    (loss,) = tape.nodes(result).flatten().tolist()
    if loss < 0:
        raise GraphError(
            f"LOSS={subject.title}: the graph cannot follow what makes its result, as torch.autograd.grad; it can "
            "follow torch's own operations on what the function is given"
        )
    if subject.proving:
        return _assemble(subject, tape, {}, loss)
    made = [(tensor, nodes) for tensor, nodes in tape.made if tensor.requires_grad]
    gradients = torch.autograd.grad(result, [t for t, _ in made], torch.full_like(result, incoming), allow_unused=True)
    by_node: dict[int, float] = {}
    for (_, nodes), gradient in zip(made, gradients, strict=True):
        if gradient is not None:
            by_node.update(zip(nodes.flatten().tolist(), gradient.flatten().tolist(), strict=True))
    return _assemble(subject, tape, by_node, loss)


def _assemble(subject: _Subject, tape: Tape, gradients: Mapping[int, float], loss: int) -> Graph:
    """Number the nodes that lead to the loss anew, inputs first, and write their formulas."""
    wanted, todo = set(range(len(subject.inputs))), [loss]
    while todo:
        node = todo.pop()
        if node in tape.refusals:
            raise tape.refusals[node]
        if node not in wanted or node == loss:
            wanted.add(node)
            todo += [arg for arg in tape.operations[node].args if isinstance(arg, int) and arg not in wanted]
    number = {old: new for new, old in enumerate(sorted(wanted))}
    nodes: list[Node] = []
    short: list[tuple[str, int]] = []
    for old in number:
        operation = tape.operations[old]
        args = tuple(number[a] if isinstance(a, int) else a for a in operation.args)
        name = operation.name
        if operation.op == "detach" and isinstance(args[0], int) and nodes[args[0]].name == name:
            name = ""  # ratio = ratio.detach() has no name of its own
        formula = (name, ATOM) if operation.op == "input" else write(
            operation.op, [short[a] if isinstance(a, int) else (f"{a:g}".replace("-", "−"), ATOM) for a in args]
        )  # fmt: skip
        nodes.append(
            Node(
                id=len(nodes),
                op=operation.op,
                args=args,
                value=operation.value,
                gradient=gradients.get(old),
                requires_grad=operation.requires_grad,
                cut=operation.cut,
                number=operation.number,
                name=name,
                formula=formula[0],
                scope=operation.scope,
                line=operation.line,
                over=operation.over,
            )
        )
        short.append((name, ATOM) if name else formula if len(formula[0]) <= LONG else ("·", ATOM))
    graph = Graph(
        subject.title,
        subject.inputs,
        tuple(nodes),
        number[loss],
        formats=tuple(sorted(tape.formats)),
        promotes=tape.promotes,
    )
    return graph if subject.proving else replace(graph, edges=_edges(graph))


def _edges(graph: Graph) -> tuple[Edge, ...]:
    """Every edge with its local derivative, from the operation alone, and autograd's product with what comes in."""
    edges = []
    for node in graph.nodes:
        slopes = _slopes(node, graph, 1.0)
        flows = _slopes(node, graph, node.gradient) if node.gradient is not None else [None] * len(node.args)
        for i, arg in enumerate(node.args):
            if isinstance(arg, int):
                wants = graph.nodes[arg].requires_grad
                flow = flows[i] if wants and node.requires_grad else None
                edges.append(Edge(arg, node.id, i, None if node.cut else slopes[i], flow, node.cut and wants))
    return tuple(edges)


def _slopes(node: Node, graph: Graph, incoming: float) -> list[float | None]:
    """incoming × local derivative with respect to each argument, by autograd on this operation alone."""
    if node.op == "input" or node.number:
        return [None] * len(node.args)
    rule = FOLLOWED[node.op]
    values = [graph.nodes[a].value if isinstance(a, int) else a for a in node.args]
    wanted = [isinstance(a, int) and not graph.nodes[a].number and rule.has_slope(i) for i, a in enumerate(node.args)]
    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=w) for v, w in zip(values, wanted, strict=True)]
    if not any(wanted):
        return [None] * len(node.args)
    result = rule.apply(*leaves)
    asked = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(result, asked, torch.full_like(result, incoming), allow_unused=True))
    out: list[float | None] = []
    for want in wanted:
        slope = next(found) if want else None
        out.append(None if slope is None else float(slope))
    return out


@dataclass(frozen=True)
class Replay:
    """A graph computed at other inputs. ``gradients`` has those that autograd gives; at a cut, what is lost there."""

    values: tuple[float, ...]
    gradients: tuple[float | None, ...]


def replay(
    graph: Graph, inputs: Sequence[float], cuts: AbstractSet[int] | None = None, incoming: float = 1.0
) -> Replay:
    """Compute a graph with PyTorch, operation by operation, with the gradient cut at ``cuts`` (default: the graph's).

    A cut node is a leaf of its own: the gradient that arrives there is the one that is lost.

    Raises: ValueError for a number of inputs that is not the graph's.
    """
    if len(inputs) != len(graph.inputs):
        raise ValueError(f"{graph.title} has {len(graph.inputs)} inputs, got {len(inputs)}")
    cuts = graph.cuts() if cuts is None else cuts
    tensors: list[Tensor] = []
    for node in graph.nodes:
        if node.op == "input":
            value = torch.tensor(inputs[node.id], dtype=torch.float64)
        else:
            args = [tensors[a] if isinstance(a, int) else torch.tensor(a, dtype=torch.float64) for a in node.args]
            value = FOLLOWED[node.op].apply(*args)
        if node.number:
            value = value.detach()
        elif node.op == "input" or node.id in cuts:
            value = value.detach().requires_grad_()
        tensors.append(value)
    asked = [t for t in tensors if t.requires_grad]
    loss = tensors[graph.loss]
    found = iter(torch.autograd.grad(loss, asked, torch.full_like(loss, incoming), allow_unused=True))
    gradients = [next(found) if t.requires_grad else None for t in tensors]
    return Replay(tuple(float(t.detach()) for t in tensors), tuple(None if g is None else float(g) for g in gradients))


def _check(graph: Graph, subject: _Subject, incoming: float) -> None:
    """Hold the graph against the function at other inputs, since a branch not taken at the start leaves no trace.

    On both sides of the clip with both signs of the advantage, at each slider's ends, and anywhere between them.
    """
    start = [given.value for given in subject.inputs]
    places = [
        [_moved(given, ratio, sign, i) for given in subject.inputs]
        for i, ratio in enumerate(RATIOS)
        for sign in (1.0, -1.0)
    ]
    for i, given in enumerate(subject.inputs):
        places += [[*start[:i], end, *start[i + 1 :]] for end in (given.low, given.high)]
    draw = random.Random(0)
    places += [[draw.uniform(given.low, given.high) for given in subject.inputs] for _ in range(ANYWHERE)]
    for values in places:
        arguments = _tensors(subject, values, None)
        result = subject.call(arguments)
        leaves = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
        found = torch.autograd.grad(result, leaves, torch.full_like(result, incoming), allow_unused=True)
        theirs = [float(result.detach())]
        for leaf, gradient in zip(leaves, found, strict=True):
            theirs += (torch.zeros_like(leaf) if gradient is None else gradient).flatten().tolist()
        again = replay(graph, values, None, incoming)
        ours = [again.values[graph.loss]]
        ours += [again.gradients[n] or 0.0 for n, given in enumerate(graph.inputs) if given.grad]
        if not all(map(_close, ours, theirs)):
            at = ", ".join(f"{g.label} {v:.4g}" for g, v in zip(graph.inputs, values, strict=True))
            raise untrue(graph.title, at)


def untrue(title: str, at: str) -> GraphError:
    """The error for a trace that does not tell the whole story of its function."""
    return GraphError(
        f"LOSS={title}: at {at} its operations, as they were traced, do not compute what it does; a graph follows "
        "torch's own operations: use torch.where instead of a Python if on a value, no .item(), no NumPy, no hook, no "
        "scripted function, no vmap, no autograd.Function of your own"
    )


def _moved(given: Input, ratio: float, sign: float, i: int) -> float:
    """Another place for an input: logp so that the ratio moves, advantages so that the sign does."""
    if given.name.startswith("logp"):
        return min(given.high, -1.5 + math.log(ratio))
    if given.name.startswith("old_logp"):
        return -1.5
    if given.number:
        return given.value * (1.0 if i % 2 else 0.75)
    return sign * given.value * (1 + i / 8)


def _close(ours: float, theirs: float) -> bool:
    return ours == theirs or abs(ours - theirs) <= DIGITS * max(1.0, abs(theirs)) or (ours != ours and theirs != theirs)
