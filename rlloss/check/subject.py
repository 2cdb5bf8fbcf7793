"""A loss on a whole batch, traced and differentiated: what proofs ask about."""

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from rlloss.check.measure import measure, nodes_of
from rlloss.check.numbers import numbers_of, sample_counts
from rlloss.check.probes import Probe
from rlloss.check.result import SIZES, TOKENS
from rlloss.errors import GraphError, LossError
from rlloss.graph.graph import Graph, trace_batch, untrue
from rlloss.losses.formulation import Formulation
from rlloss.prove import polynomials as poly
from rlloss.prove.backward import SAME, Gradients, NotFollowed, gradients
from rlloss.prove.diagrams import Diagram
from rlloss.prove.exact import EPSILON, Exact, value_at
from rlloss.prove.rounded import Rounded, named

DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
CHECK_WITHIN = ((0.5, 2.0), (1.0, 2.0), (1.0, 1e3), (3.0, 2.0), (8.0, 2.0))
"""Of log-probabilities and advantages, at which what was found is held against autograd."""
LARGER = (5, 9, 33, 129)  # samples, of which a loss may compute something else

PASSED_ON = ("input", "cast", *SAME)  # which compute nothing
Shape = tuple[int, ...]
Mask = tuple[tuple[bool, ...], ...]


@dataclass(frozen=True)
class Batch:
    """What is traced: so many samples, or sequences with a mask."""

    shape: Shape
    mask: Mask | None = None

    def __str__(self) -> str:
        if self.mask is None:
            return f"{self.shape[0]} sample{'s' if self.shape[0] > 1 else ''}"
        return "mask " + " / ".join("".join("01"[t] for t in row) for row in self.mask)


def masks(largest: Shape = TOKENS) -> Iterator[Batch]:
    """Every mask of every size, the smallest first, full ones before others."""
    for shape in itertools.product(*(range(1, n + 1) for n in largest)):
        for bits in itertools.product((True, False), repeat=shape[0] * shape[1]):
            rows = tuple(tuple(bits[i * shape[1] : (i + 1) * shape[1]]) for i in range(shape[0]))
            yield Batch(shape, rows)


class Subject:
    """One loss, traced and differentiated where it is asked.

    Raises: GraphError, LossError, NotFollowed, TooManyCases.
    """

    def __init__(self, loss: Formulation, on: Exact, rounded: Rounded, clip_coef: float) -> None:
        self.loss, self.on, self.rounded, self.clip_coef = loss, on, rounded, clip_coef
        self.graphs: dict[Batch, Graph] = {}
        self.found: dict[tuple[Batch, int], list[Diagram]] = {}
        self.rounded_found: dict[Batch, list[Diagram]] = {}

    def graph(self, batch: Batch) -> Graph:
        if batch not in self.graphs:
            self.graphs[batch] = trace_batch(self.loss, batch.shape, batch.mask, clip_coef=self.clip_coef)
        return self.graphs[batch]

    def gradients(self, batch: Batch, first: int = 0) -> list[Diagram]:
        """The gradient at every logp. ``first``: the sample that is called number 0, and sample 0 by its number."""
        if (batch, first) not in self.found:
            graph = self.graph(batch)
            inputs = {
                i: self.on.constant(given.value)
                if given.name.startswith("mask")
                else poly.variable(_swapped(given.label, first))
                for i, given in enumerate(graph.inputs)
            }
            self.found[batch, first] = gradients(graph, self.on, inputs, poly.ONE)
            if not first:
                self.hold_against_function(batch)
        return self.found[batch, first]

    def roundings(self, batch: Batch) -> list[Diagram]:
        """The gradient at every logp in rounded arithmetic, for any gradient that comes in."""
        if batch not in self.rounded_found:
            graph, on = self.graph(batch), self.rounded
            if graph.promotes:  # what is float64 here is rounded elsewhere where inputs are shorter
                raise NotFollowed("tensors of two dtypes in one operation")
            inputs: dict[int, Any] = {}
            for i, given in enumerate(graph.inputs):
                inputs[i] = on.constant(given.value) if given.name.startswith("mask") else named(given.label)
            numbers = Gradients(graph, Exact(), {i: poly.variable(x.label) for i, x in enumerate(graph.inputs)})
            for node in graph.nodes:
                if node.number and node.op != "input":
                    inputs[node.id] = on.python(node.formula, numbers.value(node.id))
            self.rounded_found[batch] = gradients(graph, on, inputs, named("incoming"))
        return self.rounded_found[batch]

    def another_graph(self, batch: Batch) -> str:
        """The first format in which the loss computes something else, as by a branch on its inputs' dtype; or ""."""
        usual = _computed(self.graph(batch))
        for name, dtype in DTYPES.items():
            try:
                graph = trace_batch(self.loss, batch.shape, batch.mask, clip_coef=self.clip_coef, dtypes=(dtype,))
            except (LossError, GraphError):
                continue  # it computes nothing there
            if not _alike(_computed(graph), usual, dtype):
                return name.removeprefix("torch.")
        return ""

    def hold_against_function(self, batch: Batch) -> None:
        """Compute the gradients as they were found and as autograd has them, at a few places anywhere.

        The whole chain is tried: the trace, the rules of each operation, the normal form. Raises: GraphError.
        """
        draw = random.Random(0)
        rough = roughness(self.graph(batch))
        for reach, largest in CHECK_WITHIN:
            inputs = {
                given.label: draw.uniform(given.low, given.high) if given.name == "clip_coef"
                else draw.uniform(-largest, largest) if given.name.startswith("adv")
                else draw.uniform(-reach, 0)
                for given in self.graph(batch).inputs
            }  # fmt: skip
            probe = probe_at(batch, inputs)
            theirs = measured(self.loss, probe, inputs[EPSILON])
            for ours, gradient in zip(self.found[batch, 0], theirs, strict=True):
                try:
                    value = value_at(self.on.cases, ours, inputs)
                except (ArithmeticError, ValueError):
                    continue
                close = abs(value - gradient) <= rough * max(1.0, abs(gradient))
                if not close and (math.isfinite(value) or math.isfinite(gradient)):
                    at = ", ".join(f"{name} {x:.4g}" for name, x in inputs.items() if not name.startswith("mask"))
                    if own := own_derivative(self.loss, probe, inputs[EPSILON]):
                        raise GraphError(f"{self.loss.name} has a derivative of its own, by {own}")
                    raise untrue(self.loss.name, at)

    @cached_property
    def elementwise(self) -> bool:
        """Whether the gradient at each of N samples is one formula of that sample alone, divided by N."""
        (alone,) = self.gradients(Batch((1,)))
        for n in SIZES[1:]:
            for i in range(n):
                among = self.gradients(Batch((n,)), first=i)[i]
                times = self.on.cases.apply(lambda x, n=n: self.on.mul(x, poly.number(n)), among)
                if times != alone:
                    return False
        return True

    @cached_property
    def one_of_any_size(self) -> bool:
        """The same, and no larger batch has it decide in Python by values, as by ``len(A) > 8 and A.max() < 1``."""
        if not self.elementwise:
            return False
        own = (n for n in sorted(sample_counts(numbers_of(self.loss.function))) if n <= LARGER[-1])
        for n in dict.fromkeys([*LARGER, *own]):
            try:
                trace_batch(self.loss, (n,), None, clip_coef=self.clip_coef)
            except GraphError:
                return False
            except LossError:  # it takes none of that size
                continue
        return True

    @cached_property
    def uses_clip_coef(self) -> bool:
        i = [given.name for given in self.smallest.inputs].index("clip_coef")
        return any(i in node.args for node in self.smallest.nodes)

    @property
    def smallest(self) -> Graph:
        """The graph of one sample, or of one answer of one token."""
        alone, name = (Batch((1, 1), ((True,),)), "answer") if self.loss.sequence else (Batch((1,)), "sample")
        try:
            return self.graph(alone)
        except LossError as error:
            what = f"{self.loss.name} takes no batch of one {name}, with which a proof begins"
            raise LossError(f"{what}; {error}") from error


def _computed(graph: Graph) -> list[tuple[str, tuple[float, ...]]]:
    """What a graph computes, operation by operation, with its numbers."""
    nodes = [node for node in graph.nodes if node.op not in PASSED_ON and not node.number]
    return [(node.op, tuple(float(a) for a in node.args if not isinstance(a, int))) for node in nodes]


def _alike(
    ours: Sequence[tuple[str, tuple[float, ...]]], theirs: Sequence[tuple[str, tuple[float, ...]]], dtype: torch.dtype
) -> bool:
    """Whether two graphs compute the same, but for a few roundings of their numbers in this format."""
    if [op for op, _ in ours] != [op for op, _ in theirs]:
        return False
    pairs = [pair for (_, x), (_, y) in zip(ours, theirs, strict=True) for pair in itertools.zip_longest(x, y)]
    near = 4 * torch.finfo(dtype).eps
    return all(None not in pair and math.isclose(*pair, rel_tol=near) for pair in pairs)


def measured(loss: Formulation, probe: Probe, clip_coef: float) -> list[float]:
    """A loss's gradient as autograd has it, in float32 for one that takes no float64. Raises: LossError."""
    try:
        found: list[float] = measure(loss, probe, clip_coef).gradient.tolist()
    except LossError:
        logp, old, A = (x.float() for x in (probe.logp, probe.old_logp, probe.advantages))
        single = Probe(probe.name, probe.on_policy, logp, old, A, probe.mask)
        found = measure(loss, single, clip_coef).gradient.tolist()
    return found


def own_derivative(loss: Formulation, probe: Probe, clip_coef: float) -> str:
    """In words: the autograd.Function or the hook by which a loss is differentiated; "" for none."""
    with _Hooks() as hooks:
        root = probe.loss(loss, probe.logp.clone().requires_grad_(), clip_coef).grad_fn
    own = (node for node in nodes_of(root) if isinstance(node, torch.autograd.function.BackwardCFunction))
    if found := next((type(node).__name__.removesuffix("Backward") for node in own), ""):
        return f"{found}, an autograd.Function"
    return "a hook" if hooks.found else ""


class _Hooks(TorchFunctionMode):
    """Within: whether a hook is registered, which changes a gradient on its way."""

    found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= getattr(func, "__name__", "") in ("register_hook", "register_post_accumulate_grad_hook")
        return func(*args, **(kwargs or {}))


def roughness(graph: Graph) -> float:
    """How near a computed gradient comes to the exact one, by the shortest format on the way."""
    formats = [DTYPES[name] for name in graph.formats if name in DTYPES]
    return max([1e-9, *(1e3 * torch.finfo(dtype).eps for dtype in formats)])


def _swapped(label: str, first: int) -> str:
    """Labels of sample ``first`` and of sample 0, exchanged."""
    if not first:
        return label
    return re.sub(r"\[(\d+)", lambda m: f"[{ {0: first, first: 0}.get(int(m[1]), int(m[1])) }", label)


def probe_at(batch: Batch, inputs: Mapping[str, float]) -> Probe:
    """A batch with these inputs; what is not among them has the ratio 1 and A = 1."""
    places = [f"[{','.join(map(str, place))}]" for place in itertools.product(*map(range, batch.shape))]

    def tensor(name: str, default: Callable[[str], float], at: Sequence[str], shape: Shape) -> torch.Tensor:
        flat = [inputs.get(name + place, default(place)) for place in at]
        return torch.tensor(flat, dtype=torch.float64).reshape(shape)

    old = tensor("old", lambda at: inputs.get(f"logp{at}", -1.0), places, batch.shape)
    logp = tensor("logp", lambda at: inputs.get(f"old{at}", -1.0), places, batch.shape)
    if any(name.startswith("A[") and "," in name for name in inputs):  # of tokens
        A = tensor("A", lambda at: 1.0, places, batch.shape)
    else:
        A = tensor("A", lambda at: 1.0, [f"[{i}]" for i in range(batch.shape[0])], batch.shape[:1])
    mask = None if batch.mask is None else torch.tensor(batch.mask)
    return Probe("proof", bool((logp == old).all()), logp, old, A, mask)


def inputs_of(probe: Probe, clip_coef: float) -> dict[str, float]:
    """All numbers of a batch, by their names in a proof: an advantage of an answer is also that of its tokens."""
    named = {"logp": probe.logp, "old": probe.old_logp, "A": probe.advantages}
    found = {EPSILON: clip_coef}
    for name, tensor in named.items():
        for place in itertools.product(*map(range, tensor.shape)):
            found[f"{name}[{','.join(map(str, place))}]"] = float(tensor[place])
    if probe.advantages.dim() < probe.logp.dim():
        tokens = itertools.product(*map(range, probe.logp.shape))
        found |= {f"A[{i},{j}]": float(probe.advantages[i]) for i, j in tokens}
    return found
