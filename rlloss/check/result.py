"""What a comparison of two losses found, as records: below everything that makes them or prints them."""

from dataclasses import asdict, dataclass
from typing import Any

from rlloss.verdicts import Verdict

SIZES = (1, 2, 3)  # samples, about which proofs are asked
TOKENS = (2, 3)  # the largest batch of sequences about which they are: answers, tokens
FEW = f"batches of {SIZES[0]} to {SIZES[-1]} samples"
ANY_SIZE = "every input and batch size"
ONE_OLD_POLICY = " of one old policy"  # of a loss that takes several and has got one


@dataclass(frozen=True)
class Part:
    """The verdict on the on-policy half (logp equals old_logp) or on the off-policy half of what was tried."""

    verdict: Verdict
    samples: int  # samples compared: both gradients finite, or the same
    differing: int  # samples with another gradient: neither rounding, nor an edge, nor subnormal
    edges: int  # samples that differ because one gradient jumps within an ulp of logp: a clip bound, a rounding tie
    subnormal: int  # samples that differ because the gradient is subnormal on its way to logp
    ulp: int  # the largest rounding difference of the others, in units in the last place of the terms
    where: str  # the place of the largest rounding difference
    unequal: tuple[str, ...]  # batches that are not equal to the last bit, with their dtype
    network: float  # the largest relative difference of a network's parameter gradients


@dataclass(frozen=True)
class Values:
    """What differs although gradients may agree. Pairs are (a, b)."""

    batch: tuple[float, float]  # the mean loss on a batch off-policy
    first_minibatch: tuple[float, float]  # the mean loss on-policy, with advantages of mean 0 and variance 1
    gradient_norm: tuple[float, float]  # on that minibatch
    constant: float | None  # b's value minus a's, if that is one number everywhere
    true_loss: tuple[bool | None, bool | None]  # whether the value's slope is the gradient; None: not tried


@dataclass(frozen=True)
class Example:
    """The smallest sample found on which the gradients differ: ``n`` copies of it in a batch; or a few sequences."""

    why: str  # different, edge, rounding or subnormal: as in ``Contrast``
    dtype: str
    n: int
    ratio: float
    advantage: float
    logp: float
    old_logp: float
    clip_coef: float  # another than the comparison's only if they differ there and not at that
    gradients: tuple[float, float]
    sequences: tuple[tuple[float, ...], ...] = ()  # the ratios of the sequences' tokens
    token: tuple[int, int] = (0, 0)  # the sequence and its token, each from 1, whose numbers these are
    padded: bool = False  # that token is one that does not count
    masks: tuple[str, ...] = ()  # of each sequence, 1 for a token that counts, where there are holes or late starts
    advantages: tuple[float, ...] = ()  # of each sample or sequence, where they are not all one


@dataclass(frozen=True)
class Size:
    """b's gradient beside a's on one batch: |b - a| / |a|, and the cosine of the angle between them."""

    relative: float
    cosine: float
    ordinary: bool = True  # a batch that a training might have; else of the samples that differ alone
    largest: float = 1.0  # at a sample, relative to the terms that autograd adds up there


@dataclass(frozen=True)
class Padding:
    """Numbers under the mask that reach the gradient of one loss and not of the other.

    ``a`` and ``b``: a gradient with harmless numbers there, and with these; None where nothing changes.
    """

    what: str
    logp: float
    old_logp: float
    a: tuple[float, float] | None
    b: tuple[float, float] | None


@dataclass(frozen=True)
class Proof:
    """What is proved of two gradients, whatever was tried.

    ``exact``: in exact arithmetic. proved; edges: proved but where a bound is hit exactly, a set of no volume; refuted,
    by numbers that were tried; open, and ``why``. ``bitwise``: the same roundings in the same order; proved or open.
    """

    exact: str
    bitwise: str
    why: str = ""
    bits_why: str = ""  # why the bits are open
    scope: str = ""  # for which inputs and batches
    edges: tuple[str, ...] = ()  # the bounds at which they differ
    left_out: tuple[str, ...] = ()  # batches on which a loss is not defined

    @property
    def holds(self) -> bool:
        """Whether the gradients are proved to be one in exact arithmetic, but for bounds that are hit exactly."""
        return self.exact in ("proved", "edges")


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found. ``verdict`` is the worse of the two halves'.

    ``holds`` unless that is DIFFERENT, or what lies under the mask reaches one of the two.
    """

    a: str
    b: str
    clip_coef: float
    dtypes: tuple[str, ...]
    on_policy: Part
    off_policy: Part
    regions: tuple[str, ...]  # of the (ratio, A) plane in which they really differ
    edges: tuple[float, ...]  # ratios at which one jumps an ulp before the other
    factor: str | None  # what b's gradient is a's times, if that is one expression everywhere, or one per sign of A
    example: Example | None
    values: Values
    not_finite: tuple[str, ...]
    tried: tuple[str, ...]
    seed: int
    proof: Proof | None = None  # None: it was not asked for
    size: Size | None = None  # of the difference, on a batch; None: there is none
    padding: tuple[Padding, ...] = ()  # what under the mask reaches the gradient of one of them
    left_out: tuple[str, ...] = ()  # dtypes that a loss refuses, and how
    rounding: str = ""  # in words: why a difference larger than usual is rounding after all
    called: tuple[str, ...] = ()  # clip_coef in the place of a loss's own default
    single: bool = False  # something may be computed in float32, whatever the inputs' dtype
    digits: str = ""  # in words: which of two forms of one gradient loses its digits, where they differ as computed
    alone_in: str = ""  # the dtype, not the finest of those tried, in which alone they differ
    only_of_tokens: bool = False  # they differ, and only where the tokens of an answer have advantages of their own

    @property
    def verdict(self) -> Verdict:
        return worse(self.on_policy.verdict, self.off_policy.verdict)

    @property
    def holds(self) -> bool:
        return self.verdict != Verdict.DIFFERENT and not self.padding

    def to_dict(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "holds": self.holds, **asdict(self)}


ORDER = (Verdict.IDENTICAL, Verdict.EQUAL, Verdict.DIFFERENT)


def worse(*verdicts: Verdict) -> Verdict:
    return max(verdicts, key=ORDER.index)
