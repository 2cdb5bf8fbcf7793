"""Have two losses one gradient for every input? Proved from their graphs, or refuted by numbers that are tried.

Per-sample losses are traced on 1, 2 and 3 samples. Where each sample's gradient is its own formula, the same at all
three sizes, one question settles every batch size; losses that couple samples are asked at those sizes. Sequence
losses are asked for every mask of up to ``TOKENS``: holes, late starts and empty answers included.
"""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch

from rlloss.check.measure import Contrast, contrast, measure
from rlloss.check.numbers import untried_numbers
from rlloss.check.result import ANY_SIZE, FEW, SIZES, TOKENS, Proof
from rlloss.check.subject import DTYPES, Batch, Subject, inputs_of, masks, probe_at
from rlloss.errors import GraphError, LossError
from rlloss.losses.formulation import Formulation
from rlloss.prove import polynomials as poly
from rlloss.prove.backward import NotFollowed
from rlloss.prove.diagrams import Diagram, TooManyCases
from rlloss.prove.exact import EPSILON, Exact, differ_at
from rlloss.prove.polynomials import Polynomial
from rlloss.prove.question import Found, Question
from rlloss.prove.rounded import Asked, Rounded
from rlloss.prove.written import question, smt_lib

TRACED_AT = 0.2  # clip_coef, where it is any
REFINEMENTS = 24  # times that a question is asked again with what its last answer violated
ROUNDED_AT_MOST = 0.02  # relative to the terms: a difference beyond it, at common numbers, is asked nothing more
NEXT_TO_NONE = 1e-9  # relative to the largest terms of a batch: below it, a proof is asked for all the same
SECONDS = 20.0  # after which what is not proved stays open


@dataclass
class Prover:
    """Proves pairs; what was traced once serves every pair that asks for it."""

    clip_coef: float | None = None  # None: any number between 0 and 1
    seconds: float = SECONDS
    on: Exact = field(default_factory=Exact)
    rounded: Rounded = field(default_factory=Rounded)
    subjects: dict[tuple[str, int, bool], Subject] = field(default_factory=dict)
    _answers: dict[str, bool] = field(default_factory=dict)

    @property
    def traced_at(self) -> float:
        return TRACED_AT if self.clip_coef is None else self.clip_coef

    def subject(self, loss: Formulation) -> Subject:
        # Two functions may have one name; the subject keeps the function.
        key = loss.name, id(loss.function), loss.per_token
        if key not in self.subjects:
            self.subjects[key] = Subject(loss, self.on, self.rounded, self.traced_at)
        return self.subjects[key]

    def prove_what_was_tried(
        self, f: Formulation, g: Formulation, contrasts: Sequence[Contrast], found: Contrast | None = None
    ) -> tuple[Proof, Contrast | None]:
        """``prove``, knowing what trying the two has shown.

        A small difference, one in bfloat16, beside a bound, or where numbers are huge may be rounding, and so may what
        is next to none beside others, as where 1 - tanh² has lost its digits. Another of a common sample is none.
        ``found``: the example.
        """
        ordinary = [c for c in contrasts if c.probe.ordinary]
        in_full = [c for c in ordinary if c.probe.dtype == torch.float64]
        shown = in_full or [c for c in ordinary if c.probe.dtype == torch.float32]
        refuted = any((c.common & (c.size > ROUNDED_AT_MOST) & (c.share > NEXT_TO_NONE)).any() for c in shown)
        bits = not any(c.unequal for c in (*contrasts, *([found] if found else [])))
        return self.prove(f, g, refuted=refuted, bits=bits)

    def numbers(self, *losses: Formulation) -> set[float]:
        """The numbers in the losses' graphs: what was computed of clip_coef, and what no code shows as it is."""
        found: set[float] = set()
        for loss in losses:
            try:
                graph = self.subject(loss).smallest
            except (GraphError, LossError):
                continue
            found |= {float(a) for node in graph.nodes for a in node.args if isinstance(a, float)}
            found |= {node.value for node in graph.nodes if node.number and node.op != "input"}
        return {x for x in found if x and math.isfinite(x)}

    def shortest_format(self, f: Formulation, g: Formulation) -> torch.dtype | None:
        """The shortest dtype in which a loss computes something though its inputs are float64, if there is one."""
        graphs = [graph for loss in (f, g) for graph in self.subject(loss).graphs.values()]
        formats = {DTYPES[name] for graph in graphs for name in graph.formats if name in DTYPES}
        return max(formats, key=lambda dtype: torch.finfo(dtype).eps, default=None)

    def elsewhere(self, f: Formulation, g: Formulation) -> str:
        """In words: a format in which a loss computes something else, as by a branch on its inputs' dtype; or ""."""
        for subject in map(self.subject, (f, g)):
            batch = Batch((1, 1), ((True,),)) if subject.loss.sequence else Batch((1,))
            if short := subject.another_graph(batch):
                return f"in {short} {subject.loss.name} computes something else"
        return ""

    def may_shorten(self, f: Formulation, g: Formulation) -> bool:
        """Whether a loss computes something in a format shorter than its inputs', or has no graph that tells."""
        try:
            return any(name in DTYPES for loss in (f, g) for name in self.subject(loss).smallest.formats)
        except (GraphError, LossError):
            return True

    def prove(
        self, f: Formulation, g: Formulation, *, refuted: bool = False, bits: bool = True
    ) -> tuple[Proof, Contrast | None]:
        """What is proved of a pair; and what refutes it, tried. ``refuted``: trying has found a difference already.
        ``bits``: nothing that was tried differs in a bit, so that a proof of that is worth asking for."""
        if refuted:
            return Proof("refuted", "open", "the gradients differ"), None
        pair = _Pair(self, self.subject(f), self.subject(g), time.monotonic() + self.seconds)
        try:
            _ = pair.left.smallest, pair.right.smallest
            proof, refutation = pair.settle()
        except (GraphError, LossError, NotFollowed, TooManyCases) as error:
            return Proof("open", "open", reason(error)), None
        if refutation is not None or not bits:
            return replace(proof, bits_why="" if refutation is not None else "they differ by rounding"), refutation
        try:
            why = pair.bitwise()
        except (NotFollowed, TooManyCases, LossError) as error:
            why = reason(error, "rounded")
        except Late:
            why = f"no answer within {self.seconds:g} s"
        return replace(proof, bitwise="open" if why else "proved", bits_why=why), None

    def written(self, f: Formulation, g: Formulation) -> str:
        """What is asked of a pair in exact arithmetic, as SMT-LIB. Raises: LossError if it cannot be asked."""
        pair = _Pair(self, self.subject(f), self.subject(g), math.inf)
        try:
            batches, scope = pair.batches()
            asked = [(str(batch), pair.question(batch)) for batch in batches]
        except (GraphError, NotFollowed, TooManyCases) as error:
            raise LossError(f"{f.name} and {g.name}: {reason(error)}; there is no question to write") from error
        return smt_lib(f"the gradients of {f.name} and {g.name} at logp, for {scope}", asked)


def reason(error: Exception, arithmetic: str = "exact") -> str:
    """Why something is open, in a few words."""
    if isinstance(error, NotFollowed):
        return f"{arithmetic} arithmetic cannot follow {error}"
    return re.sub(r"^LOSS=", "", str(error)).split("; ")[0]


class Late(Exception):
    """The time for a proof is over."""


@dataclass
class _Pair:
    """Two losses and the questions that settle them."""

    prover: Prover
    left: Subject
    right: Subject
    until: float
    edges: dict[str, None] = field(default_factory=dict)
    undefined: dict[str, None] = field(default_factory=dict)  # batches with a gradient that is nan for every input

    @property
    def on(self) -> Exact:
        return self.prover.on

    def settle(self) -> tuple[Proof, Contrast | None]:
        batches, scope = self.batches()
        open_at = ""
        for batch in batches:
            try:
                outcome = self.ask(batch)
            except Late:
                open_at = f"no answer within {self.prover.seconds:g} s, at {batch}"
                break
            except LossError as error:
                self.undefined[f"{batch}: {reason(error)}"] = None
                continue
            if isinstance(outcome, Contrast):
                return Proof("refuted", "open", "the gradients differ", scope=scope), outcome
            open_at = open_at or outcome
        if open_at:
            return Proof("open", "open", open_at, scope=scope), None
        if len(self.undefined) == len(batches):
            return Proof("open", "open", next(iter(self.undefined))), None
        exact = "edges" if self.edges else "proved"
        return Proof(exact, "open", "", scope=scope, edges=tuple(self.edges), left_out=tuple(self.undefined)), None

    def bitwise(self) -> str:
        """Why it is open that the gradients are the same roundings in the same order; "" if that is proved.

        Where one sample settles it in exact arithmetic, three do so here: nothing is used of their 1/3, which is as
        good as any 1/N.
        """
        batches, _ = self.batches()
        for subject in (self.left, self.right):
            if short := subject.another_graph(batches[0]):
                return f"in {short} {subject.loss.name} computes something else"
        for batch in [Batch((max(SIZES),))] if batches == [Batch((1,))] else batches:
            if any(at.startswith(f"{batch},") for at in self.undefined):
                continue
            for x, y in zip(self.left.roundings(batch), self.right.roundings(batch), strict=True):
                cases = self.prover.rounded.cases
                diagram = cases.apply(self.prover.rounded.differs, x, y, key="differs")
                if diagram == 0:
                    continue
                if time.monotonic() > self.until:
                    raise Late
                answer = Asked(cases, diagram).proved()
                if not answer:
                    return "other roundings, or in another order" if answer is False else "the solver cannot tell"
        return ""

    def batches(self) -> tuple[list[Batch], str]:
        """What is asked, and for which inputs that settles it."""
        if self.left.loss.sequence:
            batches, scope = list(masks()), f"every input and mask of up to {TOKENS[0]} × {TOKENS[1]} tokens"
        elif self.left.one_of_any_size and self.right.one_of_any_size:
            batches, scope = [Batch((1,))], ANY_SIZE
            if larger := untried_numbers(self.left.loss.function, self.right.loss.function):
                scope += f" below {min(larger):,}, a number in their code or a product or sum of two"
        else:
            batches = [Batch((n,)) for n in (*SIZES[1:], 1)]
            scope = f"every input in {FEW}"
        if self.epsilon is not None and (self.left.uses_clip_coef or self.right.uses_clip_coef):
            scope += f" at clip_coef {self.prover.traced_at:g}"
        return batches, scope

    @property
    def epsilon(self) -> Fraction | None:
        """What clip_coef is; None: any. For a loss that has a number of its own instead, one value alone is right."""
        if self.prover.clip_coef is None and self.left.uses_clip_coef == self.right.uses_clip_coef:
            return None
        return Fraction(repr(self.prover.traced_at))

    def question(self, batch: Batch) -> list[Any]:
        """The question on one batch for any solver."""
        graphs = self.left.graph(batch), self.right.graph(batch)
        fixed = {x.label: x.value for x in graphs[0].inputs if x.name.startswith("mask")}
        return question(*graphs, fixed, self.epsilon)

    def ask(self, batch: Batch) -> Contrast | str:
        """A difference on this batch, tried; "" if there is none; or why that is open. Raises: Late."""
        undecided = ""
        for x, y in zip(self.left.gradients(batch), self.right.gradients(batch), strict=True):
            if self.on.cases.apply(self.on.undefined, x, y, key="undefined") != 0:
                self.undefined[f"{batch}, where a gradient is not finite"] = None
            diagram = self.on.cases.apply(self.on.differs, x, y, key="differs")
            if diagram == 0 or (key := self.canonical(diagram)) in self.prover._answers:
                continue
            if time.monotonic() > self.until:
                raise Late
            found = self.differences(batch, diagram, x, y)
            if isinstance(found, Contrast):
                return found
            undecided = undecided or found
            if not found and not self.edges:
                self.prover._answers[key] = True
        return undecided

    def differences(self, batch: Batch, diagram: Diagram, x: Diagram, y: Diagram) -> Contrast | str:
        """Off all ties first; then on ties that whole batches lie on: A = 0, a ratio of 1; then on any.

        What the solver finds and PyTorch computes otherwise of both is none where ``x`` and ``y`` are the same number:
        the solver knows few laws of exp, and a formula may lose its digits there.
        """
        question = Question(self.on.cases, diagram, self.epsilon)
        undecided = 0
        for allowed in (is_data, occurs):
            for _ in range(REFINEMENTS):
                answer = question.ask(allowed)
                undecided += answer.undecided
                if answer.found is None:
                    break
                tried = self.replay(batch, answer.found)
                if tried is not None and differ_at(self.on.cases, x, y, inputs_of(tried.probe, tried.clip_coef)):
                    return tried
                if time.monotonic() > self.until:
                    raise Late
                if not question.refine():
                    return f"at {describe(answer.found)} exact gradients differ and computed ones do not"
            else:
                return f"no answer after {REFINEMENTS} numbers at which computed gradients do not differ"
        if undecided:
            return f"the solver cannot tell, at {batch}"
        return self.on_ties(question)

    def on_ties(self, question: Question) -> str:
        """Note the bounds that differ when they are hit, one after another; "" if all are known."""
        named: set[Polynomial] = set()

        def is_new(p: Polynomial) -> bool:
            return p not in named

        refinements = 0
        while True:
            if time.monotonic() > self.until:
                raise Late
            answer = question.ask(is_new)
            if answer.found is not None and refinements < REFINEMENTS and question.refine():
                refinements += 1  # no float lies on a tie for sure, so nothing is computed there
                continue
            if answer.found is None:
                return "the solver cannot tell on some ties" if answer.undecided else ""
            ties = {p for p, sign in answer.found.path if sign == 0 and not occurs(p)}
            self.edges[describe_ties(answer.found)] = None
            if not ties or ties <= named:
                return ""
            named |= ties

    def canonical(self, diagram: Diagram) -> str:
        """A question by what it asks, whichever tokens it asks it of."""
        names: dict[str, str] = {}
        text = repr([[(p.key, s) for p, s in path] for path, leaf in self.on.cases.paths(diagram) if leaf])
        return re.sub(r"\[[\d,]+\]", lambda m: names.setdefault(m[0], f"[{len(names)}]"), text) + f"|{self.epsilon}"

    def replay(self, batch: Batch, found: Found) -> Contrast | None:
        """What was found, computed by PyTorch in float64; None if the two do not differ there."""
        clip_coef = found.inputs.get(EPSILON, self.prover.traced_at)
        probe = probe_at(batch, found.inputs)
        try:
            tried = contrast(measure(self.left.loss, probe, clip_coef), measure(self.right.loss, probe, clip_coef))
        except LossError:
            return None
        return tried if tried.real.any() or tried.not_finite.any() else None


def is_data(p: Polynomial) -> bool:
    """Whether a quantity is data alone, whose zeros are as common as the data has them."""
    return not any(name.startswith("logp") for name in p.variables)


def occurs(p: Polynomial) -> bool:
    """Whether whole batches lie on a zero of p: data, or a token's ratio of exactly 1, which is on-policy."""
    return is_data(p) or p in {_ratio_less_1(name) for name in p.variables if name.startswith("logp")}


def _ratio_less_1(logp: str) -> Polynomial:
    one, other = (poly.exp(poly.variable(name)) for name in (logp, logp.replace("logp", "old")))
    difference = poly.split(one - other)[1]
    return difference if difference.terms[0][1] > 0 else -difference


def describe(found: Found) -> str:
    return ", ".join(f"{name} = {value:.6g}" for name, value in sorted(found.inputs.items()))


def describe_ties(found: Found) -> str:
    """The bounds that are hit exactly, in words."""
    ties = [p for p, sign in found.path if sign == 0 and not is_data(p)]
    return " and ".join(dict.fromkeys(map(in_words, ties))) or describe(found)


def in_words(p: Polynomial) -> str:
    """``ratio = 1 + ε`` for a bound on one ratio; else the polynomial itself = 0."""
    logps = [name for name in p.variables if name.startswith("logp")]
    if len(logps) == 1:
        over = poly.power(poly.exp(poly.variable(logps[0].replace("logp", "old"))), -1)
        ratio = (over * poly.exp(poly.variable(logps[0]))).terms[0][0]
        terms = dict((p * over).terms)
        c = terms.pop(ratio, None)
        rest = poly.polynomial({m: -v / c for m, v in terms.items()}) if c else None
        if rest is not None and all(q.key == EPSILON for q in rest.quantities):
            return f"ratio = {_written(rest)}"
    return f"{_written(p)} = 0"


def _written(p: Polynomial) -> str:
    def term(m: poly.Monomial, c: Fraction) -> str:
        name = " ".join(q.key if n == 1 else f"{q.key}^{n}" for q, n in m)
        size = "" if name and abs(c) == 1 else f"{abs(c)} " if name else str(abs(c))
        return f"{'-' if c < 0 else '+'} {size}{name}"

    ordered = sorted(p.terms, key=lambda t: len(t[0]))
    return " ".join(term(m, c) for m, c in ordered).removeprefix("+ ")
