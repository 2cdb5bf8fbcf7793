"""rlloss check: each verdict beside a pair that must get the opposite one; where losses differ, and by what."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from rlloss.check import compare
from rlloss.check.matrix import against_zoo, classes, matrix
from rlloss.check.probes import at_ratio, bounds, grid, ties
from rlloss.check.text import text
from rlloss.losses import LOSSES, ppo_clip
from rlloss.verdicts import Verdict

DIFFERENT, EQUAL, IDENTICAL = Verdict.DIFFERENT, Verdict.EQUAL, Verdict.IDENTICAL

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


def ratio_of(logp, old_logp):
    return torch.exp(logp - old_logp)


# ---------------------------------------------------------------------------------------- the zoo against PPO

AGAINST_PPO = {  # on-policy, off-policy
    **dict.fromkeys(
        ("reinforce", "reinforce_logratio", "ppo_max", "ppo_clip_offset", "klip_matched"), (IDENTICAL, IDENTICAL)
    ),
    **dict.fromkeys(
        ("reinforce_textbook", "reinforce_mask", "ppo_masked", "ppo_log_clamp", "klip"), (IDENTICAL, EQUAL)
    ),
    "ppo_clip_ulp": (EQUAL, EQUAL),
    "ppo_softmin": (EQUAL, DIFFERENT),
    **dict.fromkeys(("klip_sigmoid_gate", "reinforce_undetached"), (DIFFERENT, DIFFERENT)),
    **dict.fromkeys(
        ("klip_linear_gate", "dual_clip", "clip_higher", "two_sided_mask", "cispo", "cispo_upper", "truncated_is",
         "ppo_unclipped", "reinforce_unclipped", "on_policy_ratio", "reinforce_plain", "a2c", "spo", "ppo_kl_penalty"),
        (IDENTICAL, DIFFERENT),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def ppo_row():
    return against_zoo("ppo_clip").set_index("b")


def test_the_zoo_against_ppo(ppo_row):
    assert set(AGAINST_PPO) == set(LOSSES) - {"ppo_clip"}
    found = {name: (row["on-policy"], row["off-policy"]) for name, row in ppo_row.iterrows()}
    assert found == AGAINST_PPO


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("dual_clip", "A < 0: ratio > 3"),
        ("two_sided_mask", "A > 0: ratio < 0.8; A < 0: ratio > 1.2"),
        ("cispo_upper", "A > 0: ratio > 1.2; A < 0: ratio < 0.8 or ratio > 1.2"),
        ("ppo_unclipped", "A > 0: ratio > 1.2; A < 0: ratio < 0.8"),
        ("spo", "A > 0: ratio < 1 or ratio > 1; A < 0: ratio < 1 or ratio > 1"),
        ("reinforce_undetached", "A > 0: every ratio; A < 0: every ratio"),
        ("klip", ""),
    ],
)
def test_where_the_zoo_differs_from_ppo(ppo_row, name, where):
    assert ppo_row.loc[name, "differ at"] == where


@pytest.mark.parametrize(
    ("a", "b", "on", "off"),
    [
        ("ppo_unclipped", "reinforce_unclipped", IDENTICAL, IDENTICAL),
        ("on_policy_ratio", "a2c", IDENTICAL, IDENTICAL),
        ("reinforce_mask", "ppo_masked", IDENTICAL, IDENTICAL),
        ("cispo", "cispo_upper", IDENTICAL, DIFFERENT),
        ("dual_clip", "clip_higher", IDENTICAL, DIFFERENT),
        ("ppo_unclipped", "on_policy_ratio", IDENTICAL, DIFFERENT),
        ("grpo", "gspo", EQUAL, DIFFERENT),
        ("grpo", "dapo", DIFFERENT, DIFFERENT),
        ("grpo", "dr_grpo", DIFFERENT, DIFFERENT),
    ],
)
def test_other_pairs(a, b, on, off):
    (row,) = matrix([a, b], dtypes=(F64, F32)).to_dict("records")
    assert (row["on-policy"], row["off-policy"]) == (on, off)


def test_sequence_losses_are_told_apart_by_the_lengths_of_sequences():
    def kinds(a, b):
        said = matrix([a, b], dtypes=(F64,))["differ at"][0].split("; ")
        return {text for text in said if "policy" in text}

    on, off = "on-policy, {} lengths", "off-policy, {} lengths"
    assert kinds("grpo", "dr_grpo") == {on.format("unequal"), off.format("unequal")}
    assert kinds("grpo", "dapo") == {on.format("unequal"), off.format("unequal"), off.format("equal")}
    assert kinds("grpo", "gspo") == {off.format("unequal"), off.format("equal")}


def test_classes_of_the_same_gradient():
    names = ["ppo_clip", "reinforce", "reinforce_textbook", "ppo_unclipped", "reinforce_unclipped", "spo"]
    groups = classes(matrix(names, dtypes=(F64, F32)), names)
    found = {rule: set(rows["losses"]) for rule, rows in groups.groupby("same gradient")}
    assert found == {
        "everywhere, to the last bit": {"ppo_clip, reinforce", "ppo_unclipped, reinforce_unclipped"},
        "everywhere, up to rounding": {"ppo_clip, reinforce, reinforce_textbook", "ppo_unclipped, reinforce_unclipped"},
        "on-policy, up to rounding": {", ".join(names)},
    }


# ------------------------------------------------------------------------------- the borderline, from both sides


def scaled(by):
    return lambda logp, old_logp, A, *, clip_coef: by * ppo_clip(logp, old_logp, A, clip_coef=clip_coef)


def clip_wider(by):
    return lambda logp, old_logp, A, *, clip_coef: ppo_clip(logp, old_logp, A, clip_coef=clip_coef * by)


@pytest.mark.parametrize("dtypes", [(F64,), (F32,)], ids=str)
@pytest.mark.parametrize("ulps", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (-1, 2))])
def test_a_scale_of_an_ulp_is_equal(dtypes, ulps):
    result = compare(ppo_clip, scaled(1 + ulps * torch.finfo(dtypes[0]).eps), dtypes=dtypes)
    assert result.verdict == EQUAL
    assert 1 <= result.off_policy.ulp <= 8
    assert result.factor is None


@pytest.mark.parametrize("by", [1.0001, 0.9999, 1.000001, 1 + 1e-9, 2, -1])
def test_any_other_scale_is_different_and_named(by):
    result = compare(ppo_clip, scaled(by), dtypes=(F64,))
    assert (result.on_policy.verdict, result.off_policy.verdict) == (DIFFERENT, DIFFERENT)
    assert result.factor == f"{by:.10g}"


def test_a_scale_of_1_0001_is_different_in_float32_alone():
    assert compare(ppo_clip, scaled(1.0001), dtypes=(F32,)).verdict == DIFFERENT


def test_a_bound_one_percent_wider_is_different_just_there():
    result = compare(ppo_clip, clip_wider(1.01), dtypes=(F64,))
    assert (result.on_policy.verdict, result.off_policy.verdict) == (IDENTICAL, DIFFERENT)
    assert result.regions == ("A > 0: 1.2 < ratio < 1.202", "A < 0: 0.798 < ratio < 0.8")
    assert compare(ppo_clip, clip_wider(1.0001), dtypes=(F64,)).verdict == DIFFERENT


def test_a_bound_an_ulp_wider_is_equal_with_an_edge():
    result = compare(ppo_clip, clip_wider(1 + 4e-16), dtypes=(F64,))
    assert result.verdict == EQUAL
    assert result.off_policy.edges > 0
    assert set(result.edges) <= {0.8, 1.2}
    assert result.regions == ()


def only_where(condition, other):
    """ppo_clip, but another loss's where the condition holds."""

    def loss(logp, old_logp, A, *, clip_coef):
        mine, theirs = (f(logp, old_logp, A, clip_coef=clip_coef) for f in (ppo_clip, LOSSES[other]))
        return torch.where(condition(ratio_of(logp.detach(), old_logp), A), theirs, mine)

    return loss


@pytest.mark.parametrize(
    ("condition", "regions"),
    [
        (lambda r, A: A < 0, ("A < 0: ratio < 0.8",)),
        (lambda r, A: A > 0, ("A > 0: ratio > 1.2",)),
        (lambda r, A: r > 7.3, ("A > 0: ratio > 7.3",)),
        (lambda r, A: (r > 1.5) & (r < 1.6), ("A > 0: 1.5 < ratio < 1.6",)),
        (
            lambda r, A: A.abs() > 1000,
            tuple(f"{x}, for some |A| only" for x in ("A > 0: ratio > 1.2", "A < 0: ratio < 0.8")),
        ),
        (
            lambda r, A: A.abs() < 1e-5,
            tuple(f"{x}, for some |A| only" for x in ("A > 0: ratio > 1.2", "A < 0: ratio < 0.8")),
        ),
    ],
    ids=["one sign", "the other sign", "far out", "a strip", "large advantages", "tiny advantages"],
)
def test_a_difference_in_one_region_only_is_found_there(condition, regions):
    result = compare(ppo_clip, only_where(condition, "ppo_unclipped"), dtypes=(F64,))
    assert (result.on_policy.verdict, result.off_policy.verdict) == (IDENTICAL, DIFFERENT)
    assert result.regions == regions


def test_a_clamp_on_the_log_ratio_is_found_at_its_ratio():
    """As verl has it, at 20: e^20 = 4.85e8."""

    def loss(logp, old_logp, A, *, clip_coef):
        ratio = (logp - old_logp).clamp(-20, 20).exp()
        return -torch.min(ratio * A, ratio.clamp(1 - clip_coef, 1 + clip_coef) * A)

    assert compare(ppo_clip, loss, dtypes=(F64,)).regions == ("A > 0: ratio < 2.0612e-09", "A < 0: ratio > 4.8517e+08")


def test_a_strip_of_one_in_ten_thousand_is_found():
    def loss(logp, old_logp, A, *, clip_coef):
        ratio = ratio_of(logp.detach(), old_logp)
        strip = (ratio > 1.0503) & (ratio < 1.0504)
        return torch.where(strip, 1.5, 1.0) * ppo_clip(logp, old_logp, A, clip_coef=clip_coef)

    result = compare(ppo_clip, loss, dtypes=(F64,))
    assert result.verdict == DIFFERENT
    assert 1.0503 < result.example.ratio < 1.0504
    assert result.regions == tuple(f"A {sign} 0: 1.0503 < ratio < 1.0504" for sign in "><")


def test_a_sequence_without_a_token_is_reported_and_not_an_error():
    def token_mean(logp, old_logp, A, mask, *, clip_coef):
        tokens = -torch.exp(logp - old_logp) * A.unsqueeze(1) * mask
        return (tokens.sum(1) / mask.sum(1)).mean()  # 0 / 0 for such a sequence

    result = compare("grpo", token_mean, dtypes=(F64,))
    assert any("a sequence without a token" in line or "nan" in line for line in result.not_finite)


def test_a_difference_at_advantage_zero_only():
    def loss(logp, old_logp, A, *, clip_coef):
        return ppo_clip(logp, old_logp, A, clip_coef=clip_coef) + torch.where(A == 0, 1e-3 * logp, 0.0)

    result = compare(ppo_clip, loss, dtypes=(F64,))
    assert result.on_policy.verdict == result.off_policy.verdict == DIFFERENT
    assert result.regions == ("A = 0: every ratio",)


def test_a_difference_on_policy_only():
    def loss(logp, old_logp, A, *, clip_coef):
        return ppo_clip(logp, old_logp, A, clip_coef=clip_coef) * torch.where(logp.detach() == old_logp, 1.01, 1.0)

    result = compare(ppo_clip, loss, dtypes=(F64,))
    assert result.on_policy.verdict == DIFFERENT
    assert result.off_policy.differing < result.off_policy.samples / 100, "the grid's samples at ratio 1"


@pytest.mark.slow
def test_a_difference_in_one_dtype_only():
    def loss(logp, old_logp, A, *, clip_coef):
        return ppo_clip(logp, old_logp, A, clip_coef=clip_coef if logp.dtype != BF16 else 0.5)

    assert compare(ppo_clip, loss, dtypes=(F64, F32)).verdict == IDENTICAL
    assert compare(ppo_clip, loss, dtypes=(F64, F32, BF16)).verdict == DIFFERENT
    upcast = lambda logp, old_logp, A, *, clip_coef: ppo_clip(  # noqa: E731
        logp.double(), old_logp.double(), A.double(), clip_coef=clip_coef
    )
    assert compare(ppo_clip, upcast, dtypes=(F64,)).verdict == IDENTICAL
    assert compare(ppo_clip, upcast, dtypes=(F32, BF16)).verdict == EQUAL, "rounded once instead of at every step"


def test_a_difference_in_large_batches_only():
    def loss(logp, old_logp, A, *, clip_coef):
        return ppo_clip(logp, old_logp, A, clip_coef=clip_coef) * (1 if len(logp) < 1000 or len(logp) > 5000 else 1.1)

    result = compare(ppo_clip, loss, dtypes=(F64,))
    assert {"float64 N = 1000", "float64 N = 1001", "float64 N = 4096"} <= set(result.off_policy.unequal)
    assert not {"float64 N = 999", "float64 N = 5001"} & set(result.off_policy.unequal), "its own numbers are tried"
    assert result.verdict == DIFFERENT


def test_a_difference_that_only_a_network_shows():
    def loss(logp, old_logp, A, *, clip_coef):
        return LOSSES["ppo_clip" if logp.is_leaf else "ppo_unclipped"](logp, old_logp, A, clip_coef=clip_coef)

    result = compare(ppo_clip, loss, dtypes=(F64,))
    assert result.off_policy.differing == 0
    assert result.off_policy.network > 0.01
    assert result.verdict == DIFFERENT
    assert "off-policy, the gradients of a network's parameters are" in text(result)


def test_a_difference_that_only_the_search_shows():
    """At N = 5, which no probe has."""

    def loss(logp, old_logp, A, *, clip_coef):
        return ppo_clip(logp, old_logp, A, clip_coef=clip_coef) * (3.0 if len(logp) == 5 else 1.0)

    result = compare(ppo_clip, loss, dtypes=(F64,))
    assert result.verdict == DIFFERENT
    assert result.example.n == 5


def test_rounding_is_measured_in_units_of_the_terms_that_cancel():
    """KLip's residue is a gradient where PPO's is zero: thousands of ulp of nothing, one ulp of what cancelled."""
    result = compare("ppo_clip", "klip", dtypes=(F32,))
    assert result.verdict == EQUAL
    assert result.off_policy.ulp == 1
    assert {"float32 N = 100", "float32 N = 1000"} <= set(result.off_policy.unequal)
    assert not {"float32 N = 64", "float32 N = 128", "float32 N = 1024"} & set(result.off_policy.unequal)

    def residue(logp, old_logp, A, *, clip_coef):  # a residue as small, where nothing cancels, is a difference
        return ppo_clip(logp, old_logp, A, clip_coef=clip_coef) + 1e-8 * logp

    assert compare("ppo_clip", residue, dtypes=(F64,)).verdict == DIFFERENT


@pytest.mark.parametrize(
    "way",
    [
        lambda logp, old: torch.exp(logp) / torch.exp(old),
        pytest.param(lambda logp, old: torch.exp(logp) * torch.exp(-old), marks=pytest.mark.slow),
        pytest.param(lambda logp, old: torch.exp2((logp - old) / math.log(2)), marks=pytest.mark.slow),
    ],
    ids=["quotient", "product", "exp2"],
)
def test_another_way_to_form_the_ratio_is_equal(way):
    def loss(logp, old_logp, A, *, clip_coef):
        ratio = way(logp, old_logp)
        return -torch.min(ratio * A, ratio.clamp(1 - clip_coef, 1 + clip_coef) * A)

    assert compare(ppo_clip, loss).verdict == EQUAL


def test_a_way_that_loses_the_digits_of_tiny_ratios_is_different_there():
    def loss(logp, old_logp, A, *, clip_coef):
        ratio = 1 + torch.expm1(logp - old_logp)
        return -torch.min(ratio * A, ratio.clamp(1 - clip_coef, 1 + clip_coef) * A)

    result = compare(ppo_clip, loss, dtypes=(F64,))
    assert result.verdict == DIFFERENT
    assert all(region.startswith("A > 0: ratio < ") for region in result.regions)
    assert result.example.ratio < 0.1


def test_a_sum_in_place_of_a_mean_is_n_times_as_large():
    result = compare(ppo_clip, lambda *a, clip_coef: ppo_clip(*a, clip_coef=clip_coef).sum(), dtypes=(F64,))
    assert (result.verdict, result.factor) == (DIFFERENT, "N")
    assert result.example.n == 2, "for one sample they are the same"


def test_a_penalty_whose_terms_cancel_at_ratio_one_is_equal_to_its_twin():
    def k3(logp, old_logp, A, *, clip_coef):
        logratio = logp - old_logp
        return -(torch.exp(logratio) * A) + (torch.exp(logratio) - 1 - logratio)

    assert compare("ppo_kl_penalty", k3).verdict == EQUAL
    assert compare("ppo_kl_penalty", lambda *a, clip_coef: 1.001 * k3(*a, clip_coef=clip_coef)).verdict == DIFFERENT


def test_float16_differs_by_subnormals_alone_and_is_not_called_identical():
    result = compare("ppo_clip", "reinforce", dtypes=(F16,))
    assert result.verdict == EQUAL
    assert result.off_policy.subnormal > 0
    assert result.off_policy.edges == result.off_policy.ulp == 0
    assert compare("ppo_clip", "cispo", dtypes=(F16,)).verdict == DIFFERENT


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.nested_given])
@given(clip_coef=st.floats(0.01, 0.9).map(lambda x: round(x, 3)), seed=st.integers(0, 1000))
def test_the_twins_are_identical_and_cispo_is_not_at_any_clip_coef(clip_coef, seed):
    tried = {"clip_coef": clip_coef, "dtypes": (F32,), "seed": seed, "prove": False}
    assert compare("ppo_clip", "reinforce", **tried).verdict == IDENTICAL
    assert compare("ppo_clip", "cispo", **tried).verdict == DIFFERENT


# --------------------------------------------------------------------------------------------------- the probes


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("clip_coef", [0.2, 0.1, 0.3])
def test_the_grid_holds_the_bounds_their_neighbours_and_rounding_ties(dtype, clip_coef):
    ratio = grid(dtype, clip_coef).ratio
    for edge in bounds(dtype, clip_coef):
        for towards in (0.0, 9.0):
            neighbour = torch.nextafter(edge, torch.tensor(towards, dtype=dtype))
            assert (ratio == neighbour).any()
        assert (ratio == edge).any()
    assert (ratio == 1).any()
    tie_ratio, tie_A = ties(dtype, clip_coef)
    lower, upper = bounds(dtype, clip_coef)
    edges = torch.where(tie_A > 0, upper, lower)
    assert len(tie_A) >= 8
    assert torch.equal(tie_ratio * tie_A, edges * tie_A)
    assert (tie_ratio != edges).all()


def test_at_ratio_reaches_every_float_near_one():
    ratio = torch.linspace(0.7, 1.4, 50_001, dtype=F64).to(F32)
    logp, old_logp = at_ratio(ratio)
    assert torch.equal(torch.exp(logp - old_logp), ratio)
    assert (logp < 0).all()
