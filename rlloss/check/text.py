"""A comparison in words: for the terminal, and for the message of a failed assertion."""

import math
import re
import textwrap
from collections.abc import Callable, Sequence

from rlloss import tables
from rlloss.check.result import ONE_OLD_POLICY, Comparison, Example, Padding, Part, Proof
from rlloss.verdicts import Verdict

LABEL, WIDTH = 13, 118  # characters: of the column of labels, of a line
OF_TOKENS = (
    "they differ where the tokens of an answer have advantages of their own; with one an answer no difference was found"
)
EVERY_INPUT = f"^every input(?:{ONE_OLD_POLICY})?"
VERBOSE = ("subnormal", "not bitwise")  # labels that only the whole report has
MEANING = {
    Verdict.IDENTICAL: "equal to the last bit on everything tried where both are finite",
    Verdict.EQUAL: "never further apart than rounding explains",
    Verdict.DIFFERENT: "further apart than rounding explains",
}


def text(c: Comparison) -> str:
    """The report on one pair, short: the verdict, the evidence, an example, and in one line what was tried."""
    shown = {label: entries for label, entries in details(c).items() if label not in VERBOSE}
    report = _report(c, {**shown, "not finite": _first(c.not_finite), "tried": []})
    return f"{report}\n{'tried':<{LABEL}}{_settings(c)}"


def full_text(c: Comparison) -> str:
    """The whole report on one pair: also every batch that is not bitwise equal, and everything that was tried."""
    return _report(c, details(c))


def headline(c: Comparison) -> str:
    """The verdict and how it is known: proved, refuted by an example, or tried."""
    if c.padding and c.verdict != Verdict.DIFFERENT:
        return f"{_known(c)}; but what lies under the mask reaches one of them"
    return _known(c)


def _known(c: Comparison) -> str:
    if c.proof is None:
        return f"{c.verdict} ({MEANING[c.verdict]})"
    if c.verdict == Verdict.DIFFERENT:
        at = f" at clip_coef {short(c.example.clip_coef)}" if c.example and c.example.clip_coef != c.clip_coef else ""
        alone = f" in {c.alone_in} alone" if c.alone_in else ""
        how = f"{c.verdict}{alone}" + (" as computed, one gradient in exact arithmetic" if c.digits else "")
        return f"{how}{at}: {in_short(c.example)}" if c.example else f"{how} ({MEANING[c.verdict]})"
    exact = c.proof.exact in ("proved", "edges")
    scope = c.proof.scope + (", where both are finite" if c.proof.left_out else "")
    if c.verdict == Verdict.IDENTICAL and c.proof.bitwise == "proved":
        every_dtype = re.sub(EVERY_INPUT, r"\g<0>, dtype", scope)
        return f"{c.verdict}, proved for {every_dtype}"
    if exact and c.verdict == Verdict.EQUAL:
        return f"{c.verdict}, proved in exact arithmetic for {scope}"
    if exact:
        return f"{c.verdict} on all that was tried; proved in exact arithmetic for {scope}"
    return f"{c.verdict} on all that was tried (not proved: {c.proof.why})"


def in_short(e: Example) -> str:
    """An example in a few numbers: the ratio, A, and the two gradients."""
    at = f"sequence {e.token[0]}, token {e.token[1]}: " if e.sequences else ""
    gradients = " and ".join(told_apart(*e.gradients))
    return f"{at}ratio {short(e.ratio)}, A = {short(e.advantage)}: gradients {gradients}"


def short(x: float) -> str:
    """Six digits. Never a negative zero."""
    return f"{x + 0.0:.6g}"


def told_apart(x: float, y: float, digits: int = 6) -> tuple[str, str]:
    """Two numbers with as many digits as tell them apart, ``digits`` at least."""
    for d in (digits, 9, 12, 17):
        texts = f"{x + 0.0:.{d}g}", f"{y + 0.0:.{d}g}"
        if texts[0] != texts[1] or x == y:
            return texts
    return texts


def _report(c: Comparison, labelled: dict[str, list[str]]) -> str:
    lines = [f"{c.a} and {c.b}: {headline(c)}", "", tables.text(part_table(c)), ""]
    for label, entries in labelled.items():
        for i, entry in enumerate(entries):
            first = f"{label if i == 0 else '':<{LABEL}}"
            lines += textwrap.wrap(entry, WIDTH, initial_indent=first, subsequent_indent=" " * LABEL)
    return "\n".join(lines)


def _first(entries: Sequence[str]) -> list[str]:
    """The first entry, and how many more there are."""
    more = f"; {len(entries) - 1} more" if len(entries) > 1 else ""
    return [entries[0].rpartition(" (")[0] + more] if entries else []


def _settings(c: Comparison) -> str:
    samples = c.on_policy.samples + c.off_policy.samples
    settings = f"{', '.join(c.dtypes)}; clip_coef {c.clip_coef:g}; seed {c.seed}"
    return f"{samples:,} samples, a network, a search; {settings} (--verbose: more)"


def part_table(c: Comparison) -> tables.Rows:
    def row(name: str, part: Part) -> dict[str, object]:
        close = part.verdict == Verdict.EQUAL
        return {
            "gradients": name,
            "verdict": part.verdict,
            "samples": part.samples,
            "different": part.differing,
            "at an edge": f"{part.edges:,}" if close else "–",
            "rounding": f"{part.ulp} ulp" if close else "–",
        }

    return [row("on-policy", c.on_policy), row("off-policy", c.off_policy)]


def details(c: Comparison) -> dict[str, list[str]]:
    """The whole report's labelled lines; a label without entries is left out."""
    return {
        "proof": proof_lines(c.proof) if c.proof else [],
        "called": list(c.called),
        "advantages": [OF_TOKENS] if c.only_of_tokens else [],
        "differ at": list(c.regions),
        "digits": [c.digits] if c.digits else [],
        "size": _size(c),
        "network": _network(c),
        "padding": [_padding(c, p) for p in c.padding],
        **(_closeness(c) if c.verdict == Verdict.EQUAL else {}),
        "example": _example(c, c.example) if c.example else [],
        "values": _values(c),
        "kind": _kinds(c),
        "not finite": list(c.not_finite),
        "left out": list(c.left_out),
        "tried": [f"{', '.join(c.dtypes)}; clip_coef {c.clip_coef:g}; seed {c.seed}", *c.tried],
    }


LEFT_OUT = "left out, and tried: halves of subnormal numbers, the sign of zero, what is not finite"


def proof_lines(p: Proof) -> list[str]:
    """What is proved in exact arithmetic, and to the last bit; or why not. Nothing where the gradients differ."""
    if p.exact == "refuted":
        return []
    if p.exact == "open":
        return [f"open in exact arithmetic: {p.why}"]
    but = f", but exactly at {' or '.join(p.edges)}, a set of no volume" if p.edges else ""
    left_out = [f"not asked of: {'; '.join(p.left_out[:3])}"] if p.left_out else []
    exact = f"in exact arithmetic one gradient for {p.scope}, log π at most 0{but}"
    if p.bitwise == "proved":
        return [
            exact,
            f"to the last bit: the same roundings in the same order, in every format ({LEFT_OUT})",
            *left_out,
        ]
    return [exact, f"to the last bit not proved: {p.bits_why}", *left_out]


def _padding(c: Comparison, p: Padding) -> str:
    """What lies under the mask, and what becomes of a gradient."""

    def said(name: str, change: tuple[float, float] | None) -> str:
        return f"{short(change[1])} instead of {short(change[0])} for {name}" if change else f"unchanged for {name}"

    return f"under the mask {p.what}: a gradient is {said(c.a, p.a)}, {said(c.b, p.b)}"


def _size(c: Comparison) -> list[str]:
    """How large a difference is, and its factor if it has one."""
    if c.size is None:
        return []
    apart, cosine = f"{c.size.relative:.3g}", f"{c.size.cosine:.6g}"
    where = "on one batch the difference" if c.size.ordinary else "on no ordinary batch; of the samples that differ it"
    beside = "" if math.isnan(c.size.cosine) else f"; the cosine of the two is {cosine}"
    lines = [f"{where} is {apart} of {c.a}'s gradient (L2){beside}"]
    if c.single and max(c.size.relative, c.size.largest) < SINGLE:
        lines += ["that is no more than float32 rounds: something may be computed in it, whatever the inputs' dtype"]
    return [*lines, f"{c.b}'s gradient is {c.a}'s times {c.factor}"] if c.factor else lines


def _network(c: Comparison) -> list[str]:
    """Why losses are DIFFERENT of which no sample differs."""
    parts = {"on-policy": c.on_policy, "off-policy": c.off_policy}
    return [
        f"{name}, the gradients of a network's parameters are {part.network:.2g} apart, though no sample's are"
        for name, part in parts.items()
        if part.verdict == Verdict.DIFFERENT and not part.differing
    ]


def _closeness(c: Comparison) -> dict[str, list[str]]:
    """For EQUAL losses: how far apart, where, and in which batches they are not equal to the last bit."""
    worst = max(c.on_policy, c.off_policy, key=lambda part: part.ulp)
    small = c.on_policy.subnormal + c.off_policy.subnormal
    jumps = " and ".join(f"{edge:g}" for edge in c.edges)
    batches: dict[str, dict[str, None]] = {}
    for name in (*c.on_policy.unequal, *c.off_policy.unequal):
        dtype, batch = name.split(" ", 1)
        batches.setdefault(dtype, {})[batch.removeprefix("N = ")] = None
    return {
        "format": [c.rounding] if c.rounding else [],
        "edges": [f"at ratio {jumps}: there one gradient jumps an ulp of logp before the other"] if c.edges else [],
        "rounding": [f"at most {worst.ulp} ulp of the terms that are summed: {worst.where}"] if worst.ulp else [],
        "subnormal": [f"{small:,} samples differ whose gradient is subnormal on its way to logp"] if small else [],
        "not bitwise": [f"N = {', '.join(sorted(names, key=_by_size))} ({d})" for d, names in batches.items()],
    }


def _by_size(name: str) -> tuple[bool, int, str]:
    return (not name.isdigit(), int(name) if name.isdigit() else 0, name)


def _example(c: Comparison, e: Example) -> list[str]:
    exact = e.why != "different"

    def number(x: float) -> str:
        """Six digits, but all of them where the last one is the point."""
        return f"{x!r}" if exact and float(short(x)) != x else short(x)

    x, y = map(number, e.gradients) if exact else told_apart(*e.gradients)
    gradients = f"gradient {x} for {c.a}, {y} for {c.b}"
    clip_coef = "" if e.clip_coef == c.clip_coef else f", clip_coef {number(e.clip_coef)}"
    every = [short(A) for A in e.advantages]
    every = [f"{A!r}" for A in e.advantages] if len(set(every)) == 1 else every
    among = f" among ({_few(every)})" if every else ""
    at = f"A = {number(e.advantage)}{among}, logp {number(e.logp)}{clip_coef}"
    if e.sequences:
        where = f"{_answers(e, number)}, {at} ({e.dtype})"
        token = "the padded token" if e.padded else "token"
        return [where, f"{e.why}: in sequence {e.token[0]}, {token} {e.token[1]}, {gradients}"]
    where = f"ratio {number(e.ratio)}, {at} ({e.dtype}, N = {e.n})"
    return [where, f"{e.why}: {gradients}"]


SINGLE = 2**-22  # relative: a few roundings of float32
MOST_SHOWN = 6  # numbers of an answer, answers of a batch


def _answers(e: Example, number: Callable[[float], str]) -> str:
    """The ratios of an example's tokens that count, and its masks if they say more."""

    answers = [f"({_few([number(r) for r in ratios])})" for ratios in e.sequences]
    one = "one sequence with the ratios " if len(answers) == 1 else "sequences with the ratios "
    shown = one + _few(answers).replace("), (", ") and (")
    return f"{shown}, masks {_few(e.masks)}" if e.masks else shown


def _few(items: Sequence[str]) -> str:
    return ", ".join(items[:MOST_SHOWN]) + (f", … ({len(items)} in all)" if len(items) > MOST_SHOWN else "")


def _values(c: Comparison) -> list[str]:
    v = c.values
    if v.constant is None:
        first = f"differ: {' and '.join(told_apart(*v.batch, digits=4))} on a batch off-policy"
    else:
        first = f"differ by a constant, {v.constant:.6g}" if v.constant else "the same"
    losses = " and ".join(f"{0.0 if abs(x) < 5e-5 else x:.4f}" for x in v.first_minibatch)
    norms = " and ".join(f"{x:.4f}" for x in v.gradient_norm)
    return [first, f"first minibatch, advantages normalised: {losses}; norm of the gradient {norms}"]


def _kinds(c: Comparison) -> list[str]:
    words = {
        True: "is a true loss: the slope of its value is its gradient",
        False: "is a surrogate: the slope of its value is not its gradient",
        None: "is not float64 throughout: true loss or surrogate was not tried",
    }
    return [f"{name} {words[kind]}" for name, kind in zip((c.a, c.b), c.values.true_loss, strict=True)]
