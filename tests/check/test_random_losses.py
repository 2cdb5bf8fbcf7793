"""Random losses: what is proved of a pair is never what samples speak against."""

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings, strategies as st

from rlloss.check.prove import Prover
from rlloss.losses.formulation import Formulation

F64 = torch.float64

LEAVES = {
    "ratio": lambda v: v["ratio"],
    "logratio": lambda v: v["logp"] - v["old"],
    "logp": lambda v: v["logp"],
    "A": lambda v: v["A"],
    "half": lambda v: torch.full_like(v["A"], 0.5),
    "high": lambda v: torch.ones_like(v["A"]) + v["eps"],
    "low": lambda v: torch.ones_like(v["A"]) - v["eps"],
}
UNARY = {
    "neg": lambda x, v: -x,
    "detach": lambda x, v: x.detach(),
    "clip": lambda x, v: x.clamp(1 - v["eps"], 1 + v["eps"]),
    "relu": lambda x, v: torch.relu(x),
    "abs": lambda x, v: x.abs(),
    "where A": lambda x, v: torch.where(v["A"] > 0, x, 0.0),
    "where rare": lambda x, v: torch.where(v["logp"].detach() < -2, 0.0, x),
    "where outside": lambda x, v: torch.where(v["ratio"] > 1 + v["eps"], 0.0, x),
}
BINARY = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "min": torch.minimum,
    "max": torch.maximum,
}
TREES = st.recursive(
    st.sampled_from(sorted(LEAVES)),
    lambda inner: (
        st.tuples(st.sampled_from(sorted(UNARY)), inner) | st.tuples(st.sampled_from(sorted(BINARY)), inner, inner)
    ),
    max_leaves=6,
)
REWRITES = {  # the same function, or nearly, written otherwise
    "add": lambda x, y: ("sub", y, ("neg", x)),
    "sub": lambda x, y: ("add", x, ("neg", y)),
    "mul": lambda x, y: ("mul", y, x),
    "min": lambda x, y: ("neg", ("max", ("neg", x), ("neg", y))),
    "max": lambda x, y: ("neg", ("min", ("neg", x), ("neg", y))),
    "clip": lambda x: ("min", ("max", x, "low"), "high"),
    "abs": lambda x: ("max", x, ("neg", x)),
    "relu": lambda x: ("mul", "half", ("add", x, ("abs", x))),
    "neg": lambda x: ("sub", ("mul", "half", x), ("add", x, ("mul", "half", x))),
    "detach": lambda x: x,
}


def value(tree, v):
    if isinstance(tree, str):
        return LEAVES[tree](v)
    op, *inner = tree
    return UNARY[op](value(inner[0], v), v) if op in UNARY else BINARY[op](*(value(x, v) for x in inner))


def rewritten(tree, steps):
    """A tree with the rewrites taken at the places that ``steps`` count."""
    count = iter(range(10_000))

    def walk(t):
        mine = next(count)
        if isinstance(t, str):
            return t
        op, *inner = t
        inner = [walk(x) for x in inner]
        return REWRITES[op](*inner) if op in REWRITES and mine in steps else (op, *inner)

    return walk(tree)


def loss_of(tree, name):
    def loss(logp, old_logp, advantages, *, clip_coef):
        v = {"logp": logp, "old": old_logp, "A": advantages, "eps": clip_coef, "ratio": torch.exp(logp - old_logp)}
        return value(tree, v) + 0 * logp

    return Formulation(name, loss)


@st.composite
def pairs(draw):
    tree = ("mul", draw(st.sampled_from(["ratio", "logp", "logratio"])), draw(TREES))
    other = rewritten(tree, draw(st.frozensets(st.integers(0, 12), max_size=3)))
    changed = draw(st.sampled_from([None, None, "add", "sub", "min"]))
    return tree, (changed, other, draw(TREES)) if changed else other


def many(n, seed):
    generator = torch.Generator().manual_seed(seed)
    old = -0.05 - 4 * torch.rand(n, generator=generator, dtype=F64)
    logp = (old + 0.7 * torch.randn(n, generator=generator, dtype=F64)).clamp(max=-1e-3)
    return logp, old, torch.randn(n, generator=generator, dtype=F64)


def gradient(loss, logp, old, A, clip_coef):
    leaf = logp.clone().requires_grad_()
    loss(leaf, old, A, clip_coef=clip_coef).sum().backward()
    return leaf.grad


def differing(f, g, n):
    """How many of so many samples have another gradient, also a little beside them: no edge, no rounding."""
    total = 0
    for seed, clip_coef in enumerate((0.2, 0.45)):
        logp, old, A = many(n // 2, seed)
        apart = torch.ones(n // 2, dtype=torch.bool)
        for shift in (0.0, 1e-7, -1e-7):
            x, y = (gradient(loss, logp + shift, old, A, clip_coef) for loss in (f, g))
            apart &= (x - y).abs() > 1e-6 * (1 + x.abs() + y.abs())
        total += int(apart.sum())
    return total


def contradiction(pair, n):
    """What a proof says against what samples show; "" if neither speaks against the other."""
    f, g = (loss_of(tree, name) for tree, name in zip(pair, "fg", strict=True))
    proof, refutation = Prover().prove(f, g, bits=False)
    note(f"{pair}: {proof}")
    apart = differing(f, g, n)
    if proof.holds and apart:
        return f"proved, and {apart} samples differ"
    if proof.exact == "refuted" and not (refutation.real.any() or refutation.not_finite.any()):
        return "refuted by numbers that do not differ"
    return ""


@given(pairs())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_random_losses_are_never_proved_against_what_samples_show(pair):
    assert contradiction(pair, 20_000) == ""


@pytest.mark.slow
@given(pairs())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_300_random_losses_against_a_million_samples(pair):
    assert contradiction(pair, 1_000_000) == ""


@pytest.mark.slow
def test_random_pairs_come_to_every_verdict_and_few_stay_open():
    """That the generator makes equal pairs and unequal ones, or the two tests above show nothing."""
    seen: dict[str, int] = {}

    @given(pairs())
    @settings(max_examples=60, deadline=None, derandomize=True)
    def collect(pair):
        f, g = (loss_of(tree, name) for tree, name in zip(pair, "fg", strict=True))
        exact = Prover().prove(f, g, bits=False)[0].exact
        seen[exact] = seen.get(exact, 0) + 1

    collect()
    assert seen["proved"] > 10
    assert seen["refuted"] > 5
    assert seen.get("open", 0) < 6, seen
