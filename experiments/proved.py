"""One gradient for every input: proved on the spot from the traced graphs, and judged again by another solver."""

from collections.abc import Sequence
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
import z3
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from rlloss import figures
from rlloss.check.comparison import compare
from rlloss.check.measure import Contrast
from rlloss.check.prove import Prover
from rlloss.check.subject import Batch
from rlloss.claims import Claim, Finding, Overrides
from rlloss.losses.formulation import Formulation, resolve
from rlloss.prove import polynomials as poly
from rlloss.prove.diagrams import Case, Diagram, Diagrams, Path
from rlloss.prove.polynomials import Monomial, Polynomial
from rlloss.prove.question import EFFORT, Question
from rlloss.prove.rounded import Body
from rlloss.runs import RunFolder

REFERENCE = "ppo_clip"
# What is proved of ppo_clip and each: in exact arithmetic, and of the bits.
EXPECTED = {
    **dict.fromkeys(("ppo_max", "reinforce", "klip_matched"), ("proved", "proved")),
    **dict.fromkeys(("ppo_masked", "reinforce_mask", "reinforce_textbook", "klip"), ("proved", "open")),
    **dict.fromkeys(("cispo", "two_sided_mask", "clip_higher", "dual_clip", "spo"), ("refuted", "open")),
}
CLIP_COEF = 0.2  # at which numbers are tried and the figure is drawn; proved is every one between 0 and 1
REFUTES = 0.01  # relative: what no rounding in float64 comes near
SIMPLE_RATIOS, SIMPLE_ADVANTAGES = (2.0, 0.5, 4.0, 0.25, 1.5, 0.75, 1.25), (1.0, -1.0)

SECOND = "cvc5"
SECOND_EFFORT = 1_000_000  # in its own units: ten times what the hardest question takes, and the same on any machine
SAYS = {"proved": "unsat", "refuted": "sat"}  # for no input, or for one, are there two gradients
NOT_INSTALLED, UNKNOWN = "not installed", "unknown"

Region = tuple[Path, Any]  # the signs of what decides, and the gradients
Counterexample = tuple[float, float, tuple[float, float]]  # ratio, A, two gradients

# ------------------------------------------------------------------------------------------------------- the evidence


def judge(runs: Sequence[RunFolder]) -> Finding:
    """Holds if each pair is proved or refuted as expected, numbers show it where bits differ, and no solver objects."""
    prover = Prover()
    evidence = pd.DataFrame([row(prover, name, *expected) for name, expected in EXPECTED.items()])
    right = evidence[evidence["as expected"]]
    exact, bitwise = (list(right[column]) for column in ("exact", "bitwise"))
    agree = sum(word == SAYS[said] for word, said in zip(right[SECOND], exact, strict=True))
    asked = (evidence[SECOND] != NOT_INSTALLED).any()
    second = f"comes to the same answer for {agree} of {len(evidence)}" if asked else f"is {NOT_INSTALLED}"
    summary = (
        f"{bitwise.count('proved')} of {count('proved', 'proved')} pairs proved to the last bit, "
        f"{exact.count('proved') - bitwise.count('proved')} of {count('proved', 'open')} in exact arithmetic and "
        f"with other bits by numbers, {exact.count('refuted')} of {count('refuted', 'open')} refuted by numbers; "
        f"{SECOND} {second}"
    )
    return Finding(bool(evidence["as expected"].all()), summary, evidence)


def count(*expected: str) -> int:
    return list(EXPECTED.values()).count((expected[0], expected[1]))


def row(prover: Prover, name: str, exact: str, bitwise: str) -> dict[str, object]:
    """What is proved of ppo_clip and another loss, what numbers show, and what another solver says of the question."""
    pair = resolve(REFERENCE), resolve(name)
    proof, refutation = prover.prove(*pair)
    numbers = differing_bits(*pair) if proof.holds and proof.bitwise != "proved" else refuted_by(*pair, refutation)
    word = second_word(prover.written(*pair))
    shown = bool(numbers) == (proof.bitwise != "proved")
    bounds = [any(not sign for _, sign in path) for path, _ in regions(prover, *pair)]
    return {
        "losses": f"{REFERENCE} and {name}",
        "exact": proof.exact,
        "bitwise": proof.bitwise if proof.holds else "–",  # two gradients share no bits
        "scope": proof.scope,
        "regions": bounds.count(False),
        "bounds": bounds.count(True),
        SECOND: word,
        "numbers": numbers or "none",
        "as expected": (proof.exact, proof.bitwise) == (exact, bitwise)
        and shown
        and word in (SAYS[exact], NOT_INSTALLED, UNKNOWN),
    }


def refuted_by(f: Formulation, g: Formulation, refutation: Contrast | None) -> str:
    """Numbers at which PyTorch's gradients differ; "" if nothing refutes the pair, or PyTorch sees no difference."""
    found = counterexample(f, g, refutation)
    return in_words(torch.float64, 1, *found) if found else ""


def counterexample(f: Formulation, g: Formulation, refutation: Contrast | None) -> Counterexample | None:
    """Ratio, A, and two gradients that differ: at simple numbers if they do, else where the proof found it.

    Z3's own numbers depend on all that it was asked before in this process; the table must not.
    """
    if refutation is None:
        return None
    own = float(refutation.probe.ratio[0]), float(refutation.probe.advantages[0])
    for ratio, A in (*product(SIMPLE_RATIOS, SIMPLE_ADVANTAGES), own):
        one, other = gradient(f, ratio, A), gradient(g, ratio, A)
        if abs(one - other) > REFUTES * max(abs(one), abs(other)):
            return ratio, A, (one, other)
    return None


def gradient(loss: Formulation, ratio: float, A: float) -> float:
    """What PyTorch computes for one sample, in float64."""
    old_logp = torch.tensor([-3.0], dtype=torch.float64)
    logp = (old_logp + np.log(ratio)).requires_grad_()
    loss(logp, old_logp, torch.full_like(old_logp, A), clip_coef=CLIP_COEF).mean().backward()  # type: ignore[no-untyped-call]
    assert logp.grad is not None
    return float(logp.grad[0])


def differing_bits(f: Formulation, g: Formulation) -> str:
    """Numbers at which PyTorch rounds the two gradients to other bits; "" if trying finds none."""
    tried = compare(f.function, g.function, clip_coef=CLIP_COEF, dtypes=(torch.float32,), prove=False)
    found = tried.example
    if found is None or found.gradients[0] == found.gradients[1]:
        return ""
    return in_words(found.dtype, found.n, found.ratio, found.advantage, found.gradients)


def in_words(dtype: torch.dtype | str, n: int, ratio: float, A: float, gradients: Sequence[float]) -> str:
    digits = next(d for d in (4, 9, 17) if f"{gradients[0]:.{d}g}" != f"{gradients[1]:.{d}g}")
    one, other = (f"{x:.{digits}g}" for x in gradients)
    name = str(dtype).removeprefix("torch.")
    return f"{name}, N = {n}, ρ = {ratio:.9g}, A = {A:.9g}, ε = {CLIP_COEF}: {one} and {other}"


def second_word(question: str) -> str:
    """What another solver says of a question: unsat where there is one gradient, sat, or unknown."""
    return " and ".join(dict.fromkeys(second_words(question)))


def second_words(questions: str) -> list[str]:
    """Another solver's answer to each question of a text in SMT-LIB; that it is not installed, once, if it is not."""
    try:
        cvc5 = import_module(SECOND)
    except ImportError:
        return [NOT_INSTALLED]
    solver = cvc5.Solver()
    solver.setOption("rlimit-per", str(SECOND_EFFORT))
    solver.setOption("nl-cov", "true")  # coverings decide products of unknowns, which its own lemmas search for long
    symbols = cvc5.SymbolManager(solver)
    parser = cvc5.InputParser(solver, symbols)
    parser.setStringInput(cvc5.InputLanguage.SMT_LIB_2_6, questions, "question")
    words = []
    while not (command := parser.nextCommand()).isNull():
        said = str(command.invoke(solver, symbols)).split()
        words += [word for word in said[:1] if word in ("sat", "unsat", UNKNOWN)]
    return words


def together(prover: Prover, losses: Sequence[Formulation]) -> tuple[Diagrams, Diagram]:
    """One diagram of the gradients of one sample: what decides in any of them, and all of them in each case."""
    gradients = [prover.subject(loss).gradients(Batch((1,)))[0] for loss in losses]
    return prover.on.cases, prover.on.cases.apply(lambda *leaves: leaves, *gradients)


def regions(prover: Prover, *losses: Formulation) -> list[Region]:
    """The cases of one sample that these losses distinguish and that some input has, with the gradient of each loss.

    Where a sign is 0 a case is a bound between others.
    """
    cases, diagram = together(prover, losses)
    question = Question(cases, diagram)
    solver = z3.SolverFor("QF_NRA")
    solver.set("rlimit", EFFORT)
    solver.add(*question.facts())

    def occurs(path: Path) -> bool:
        terms = [(question.translate(p), sign) for p, sign in path]
        return bool(solver.check(*(t > 0 if s > 0 else t < 0 if s < 0 else t == 0 for t, s in terms)) != z3.unsat)

    return [(path, leaves) for path, leaves in cases.paths(diagram) if occurs(path)]


# --------------------------------------------------------------------------------------------------------- the figure

SHOWN, CONTROL = (REFERENCE, "reinforce"), "cispo"
RATIOS, ADVANTAGES = np.arange(0.01, 2.4, 0.02), np.arange(-1.95, 2, 0.1)  # beside all bounds, never on one
SAME, NOTHING, OTHER = "#CFE2F2", "#EEEEEE", "#F8D9C4"
COLOURS = {SAME: "as PPO, clip inactive", NOTHING: "as PPO, clip active", OTHER: "another gradient than PPO's"}


def figure(runs: Sequence[RunFolder]) -> Figure:
    """The (ratio, A) plane in the regions of the proof, each with its gradient: two losses agree, and one does not."""
    prover, pair = Prover(), (resolve(REFERENCE), resolve(CONTROL))
    drawing, axes = figures.panels(1, 3, figures.TEXT, 2.5, sharey=True, width_ratios=(1, 1, 1.3))
    found = counterexample(*pair, prover.prove(*pair)[1])
    for panel, name in zip(axes[0], (*SHOWN, CONTROL), strict=True):
        draw_plane(panel, prover, resolve(name), found if name == CONTROL else None)
        panel.set_title(figures.label(name))
        below = rounding_of(prover, resolve(name)) if name in SHOWN else at_the_point(found)
        panel.set_xlabel(r"ratio $\rho$" + f"\n{below}")
    axes[0, 0].set_ylabel("advantage $A$")
    handles = [Patch(color=c, label=label) for c, label in COLOURS.items()]
    drawing.legend(handles=handles, loc="outside upper center", ncols=3, handlelength=1.2)
    return drawing


def at_the_point(found: Counterexample | None) -> str:
    if found is None:
        return ""
    ppo, other = (f"{x:.3g}".replace("-", "\N{MINUS SIGN}") for x in found[2])
    return f"at the point {other}, PPO's {ppo}"


def draw_plane(axes: Axes, prover: Prover, loss: Formulation, point: Counterexample | None) -> None:
    """Each region that this loss or PPO distinguishes, with this loss's gradient, and PPO's where that is another."""
    for (_, (own, ppo)), inside in seen_regions(prover, loss, resolve(REFERENCE)):
        colour = OTHER if own != ppo else SAME if ppo else NOTHING
        axes.contourf(RATIOS, ADVANTAGES, inside, levels=[0.5, 1.5], colors=[colour])
        axes.contour(RATIOS, ADVANTAGES, inside, levels=[0.5], colors=["white"], linewidths=1.0)
        rows, columns = np.nonzero(inside)
        x, y = RATIOS[columns].mean(), ADVANTAGES[rows].mean()
        if point and inside[np.abs(ADVANTAGES - point[1]).argmin(), np.abs(RATIOS - point[0]).argmin()]:
            axes.plot(
                *point[:2], "o", color=figures.VERMILION, markersize=4, markeredgecolor="white", markeredgewidth=0.5
            )
            y += 0.5  # above the point
        text = f"${formula(own)}$" + (f"\n(PPO: ${formula(ppo)}$)" if own != ppo else "")
        axes.text(x, y, text, ha="center", va="center", fontsize=7)
    axes.set_xticks([0, 1 - CLIP_COEF, 1 + CLIP_COEF, 2], ["0", r"$1-\epsilon$", r"$1+\epsilon$", "2"], fontsize=6)
    axes.set_yticks([-1, 0, 1])
    axes.grid(False)


def seen_regions(prover: Prover, *losses: Formulation) -> list[tuple[Region, NDArray[np.bool_]]]:
    """The regions of the plane that these losses distinguish, and which of its points lie in each."""
    cases, diagram = together(prover, losses)
    found: dict[Region, NDArray[np.bool_]] = {}
    for i, j in np.ndindex(len(ADVANTAGES), len(RATIOS)):
        region = region_at(cases, diagram, float(RATIOS[j]), float(ADVANTAGES[i]))
        found.setdefault(region, np.zeros((len(ADVANTAGES), len(RATIOS)), bool))[i, j] = True
    return list(found.items())


def region_at(cases: Diagrams, diagram: Diagram, ratio: float, A: float) -> Region:
    """The path that an input goes, and its leaf."""
    inputs = {"logp[0]": float(np.log(ratio)) - 1, "old[0]": -1.0, "A[0]": A, "ε": CLIP_COEF}
    path: Path = ()
    while isinstance(diagram, Case):
        atom: Any = cases.atoms[diagram.atom]
        sign = int(np.sign(poly.evaluate(atom, inputs, {})))
        path, diagram = (*path, (atom, sign)), diagram.branches[sign + 1]
    return path, diagram


NAMES = {"A[0]": "A", "ε": r"\epsilon", "exp(1*logp[0])": r"\rho", "exp(1*old[0])": ""}  # ρ: both in equal powers


def formula(p: Polynomial) -> str:
    """A gradient as mathematics: the factors that all terms share, times what is left."""
    if not p:
        return "0"
    shared, _ = poly.split(p)
    rest = p * poly.monomial(tuple((q, -n) for q, n in shared))
    terms = sorted(rest.terms, key=lambda term: len(term[0]))
    sign = "-" if terms[0][1] < 0 else ""
    sums = [(c if not sign else -c, factors(m)) for m, c in terms]
    (first, name), *more = sums
    left = "".join(f"{'-' if c < 0 else '+'}{'' if abs(c) == 1 else abs(c)}{m}" for c, m in more)
    number = "" if first == 1 and (name or not left) else str(first)
    return f"{sign}{factors(shared)}({number}{name}{left})" if left else f"{sign}{number}{factors(shared)}"


def factors(m: Monomial) -> str:
    return "".join(NAMES[q.key] + (f"^{{{n}}}" if n != 1 else "") for q, n in m if NAMES[q.key])


def rounding_of(prover: Prover, loss: Formulation) -> str:
    """How the gradient of one of many samples is rounded, where it is not 0: its products, each rounded by itself."""
    leaves = prover.subject(loss).roundings(Batch((3,)))[0]
    bodies = dict.fromkeys(leaf.body for _, leaf in prover.rounded.cases.paths(leaves) if leaf.scale)
    return "rounded " + " or ".join(f"$-{operation(body)[1:-1]}$" for body in bodies)


SIGNS = {"mul": r"\otimes", "div": r"\oslash"}
READ = {"exp": r"\rho", "input A[0]": "A", "input incoming": "1", "number 3.0": "N"}  # what came in: 1, of the mean


def operation(body: Body) -> str:
    read = READ.get(body.op) or READ.get(body.key)
    if read:
        return read
    one, other = (operation(term.body) for term in body.args)
    return f"({one}{SIGNS[body.op]} {other})"


def runs(preset: str) -> list[Overrides]:
    """None: nothing is trained for a proof."""
    return []


CLAIM = Claim(
    sentence=(
        "Clipped PPO, written as a minimum or as a maximum, REINFORCE with PPO's detached weight and KLip-PPO in PPO's "
        "order have one gradient for every input: proved in exact arithmetic, and to the last bit in every "
        "floating-point format and batch size, where no number is infinite or subnormal. Masked, in textbook order, or "
        "KLip-PPO as published, it is one in exact arithmetic and other bits; five losses that look alike are refuted "
        "by numbers, and another solver contradicts nothing."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=35,
)
