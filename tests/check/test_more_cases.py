"""What people met, continued: one gradient written otherwise, rewards, groups, sizes and formats."""

import json
import math

import pytest
import torch

from rlloss.check import compare
from rlloss.check.alone import examine, text as alone_text
from rlloss.check.derivatives import derivatives_of
from rlloss.cli.main import main
from rlloss.errors import LossError
from rlloss.losses.formulation import resolve
from rlloss.verdicts import Verdict
from tests.check.test_cases import FILE, found
from tests.examples import users_losses as users


@pytest.mark.slow
def test_a_root_of_a_product_is_followed():
    """An exponent that is 1 / length was no number to a proof; and being a float32, it was a difference of 4e-8."""
    result, said = found(users.gspo_of_logs, users.gspo_of_products(1))
    assert (result.verdict, result.proof.exact) == (Verdict.EQUAL, "proved")
    assert "one factor is computed in float32" in said
    other, _ = found(users.gspo_of_logs, users.gspo_of_products(1.01))
    assert (other.verdict, other.proof.exact) == (Verdict.DIFFERENT, "refuted")


@pytest.mark.slow
def test_a_ratio_made_in_float32_among_float64():
    """Beside a bound, and where the ratio is subnormal in float32, it was no rounding."""
    result, said = found("ppo_clip", users.ratio_in_single(1))
    assert (result.verdict, result.proof.exact) == (Verdict.EQUAL, "proved")
    assert "one factor is computed in float32" in said
    assert "edges" in said
    assert "is not float64 throughout" in said
    other, _ = found("ppo_clip", users.ratio_in_single(1.0001))
    assert (other.verdict, other.proof.exact) == (Verdict.DIFFERENT, "refuted")


@pytest.mark.slow
def test_what_loses_its_digits_is_named_and_is_no_other_gradient():
    result, said = found(users.logistic, users.log_of_logistic, (torch.float32,))
    assert (result.verdict, result.proof.exact) == (Verdict.DIFFERENT, "proved")
    assert "DIFFERENT as computed, one gradient in exact arithmetic" in said
    assert "and log_of_logistic loses its digits in float32" in said
    assert "not finite" in said, "at numbers that no training has: no reason to refuse it"


@pytest.mark.slow
def test_rewards_that_are_nearly_their_mean_are_rounded():
    result, _ = found(users.baseline_of_others, users.baseline_of_all(True), (torch.float64, torch.float32))
    assert (result.verdict, result.proof.exact) == (Verdict.EQUAL, "proved")
    other, _ = found(users.baseline_of_others, users.baseline_of_all(False))
    assert other.verdict == Verdict.DIFFERENT
    assert other.factor == "(N - 1) / N"


@pytest.mark.slow
@pytest.mark.parametrize("by", [1e-9, -1e-9])
def test_the_rounding_of_rewards_hides_no_factor(by):
    base = users.baseline_of_all(True)
    result, _ = found(
        users.baseline_of_others, lambda logp, old_logp, rewards: (1 + by) * base(logp, old_logp, rewards)
    )
    assert result.verdict == Verdict.DIFFERENT
    assert result.factor.startswith(f"{1 + by:.10g}")


@pytest.mark.slow
def test_groups_of_four_are_tried_on_batches_that_have_them():
    result, said = found(users.in_groups(by_view=True), users.in_groups(by_view=False))
    assert result.verdict != Verdict.DIFFERENT
    assert "batches of 1 x 8, 2 x 8" in said
    assert "3 x 7, 15 x 2, 17 x 2, as loss raised RuntimeError: shape '[-1, 4]' is invalid" in said
    assert "users_losses.py, line" in said
    other, _ = found(users.in_groups(by_view=True), users.normalised_inside)
    assert other.verdict == Verdict.DIFFERENT


@pytest.mark.slow
def test_a_loss_of_groups_of_a_computed_size_is_refused():
    """The number of the answers in a group is in no line of its code."""

    def loss(logp, old_logp, rewards, mask, *, clip_coef):
        groups = rewards.view(-1, len("an advantage"[:11]))
        return users.plain(logp, old_logp, (groups - groups.mean(1, keepdim=True)).view(-1), mask, clip_coef=clip_coef)

    with pytest.raises(LossError, match=r"shape '\[-1, 11\]' is invalid for input of size \d+"):
        compare(loss, users.plain)


@pytest.mark.slow
def test_infinite_where_no_training_comes_is_no_reason_to_refuse():
    result, _ = found(users.weighted(None), users.weighted(None))
    assert result.verdict == Verdict.IDENTICAL
    other, said = found(users.weighted(None), users.weighted(20))
    assert other.verdict == Verdict.DIFFERENT
    assert "the gradient is -inf for loss and -20 for loss" in said


def test_in_place_on_what_is_no_leaf_in_training():
    result, _ = found("ppo_clip", users.in_place)
    assert (result.verdict, result.proof.bitwise) == (Verdict.IDENTICAL, "proved")


def test_what_a_loss_prints_is_none_of_the_report(capsys):
    assert main(["check", "ppo_clip", f"{FILE}:talkative", "--dtype", "float64", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["verdict"] == "IDENTICAL"
    assert "approximate KL" in err


@pytest.mark.slow
@pytest.mark.parametrize(("high", "verdict"), [(1.0001, Verdict.IDENTICAL), (1.01, Verdict.EQUAL)])
def test_what_a_short_format_cannot_tell_apart_is_said_to_differ_in_float64(high, verdict):
    result, said = found(users.upper_bound(1.2), users.upper_bound(1.2 * high), (torch.bfloat16,))
    assert (result.verdict, result.proof.exact) == (verdict, "refuted")
    assert "not proved: in float64 they differ, as at ratio 1.2" in said


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "true_loss"), [(12, False), (3, False), (1e6, True)])
def test_a_surrogate_at_far_ratios_alone(ratio, true_loss):
    assert derivatives_of(resolve(users.surrogate_beyond(ratio)), 0.2, 0).true_loss is true_loss


@pytest.mark.slow
def test_a_difference_of_one_percent_in_large_batches_alone_is_none_of_rounding():
    """No proof about three samples says that it is one gradient as computed."""
    result, said = found("ppo_clip", users.from_size_on(200, 1.01))
    assert result.verdict == Verdict.DIFFERENT
    assert not result.digits
    assert "as computed" not in said
    assert "in exact arithmetic one gradient for every input in batches of 1 to 3 samples" in said


@pytest.mark.slow
def test_a_difference_of_one_percent_in_long_answers_alone():
    result, said = found(users.plain, users.longer_than(100, 1.01))
    assert result.verdict == Verdict.DIFFERENT
    assert "as computed" not in said
    assert "for every input and mask of up to 2 × 3 tokens" in said


@pytest.mark.slow
def test_what_a_format_that_is_not_tried_computes_otherwise_is_not_said_to_be_proved():
    result, said = found("ppo_clip", users.otherwise_in_halves)
    assert (result.verdict, result.proof.exact, result.proof.bitwise) == (Verdict.IDENTICAL, "proved", "open")
    assert "to the last bit not proved: in float16 otherwise_in_halves computes something else" in said
    assert found("ppo_clip", "reinforce")[0].proof.bitwise == "proved"


@pytest.mark.slow
@pytest.mark.parametrize("size", [6, 7, 8, 16])
def test_groups_of_every_size_are_tried_on_two_of_them(size):
    """One group alone has the mean of its batch."""
    same, _ = found(users.in_groups_of(size), users.in_groups_of(size))
    assert same.verdict == Verdict.IDENTICAL
    assert None not in same.values.true_loss
    assert all(math.isfinite(x) for x in same.values.first_minibatch)
    other, _ = found(users.in_groups_of(size), users.among_all_of_groups_of(size))
    assert other.verdict == Verdict.DIFFERENT


@pytest.mark.slow
def test_samples_in_groups_that_divide_no_power_of_two():
    """Of six and of ten, whose least common multiple all batches have."""

    def centred(size):
        def loss(logp, old_logp, rewards):
            groups = rewards.view(-1, size)
            return -((logp - old_logp).exp() * (groups - groups.mean(1, keepdim=True)).view(-1))

        return loss

    def repeated(logp, old_logp, rewards):
        mean = rewards.view(-1, 6).mean(1).repeat_interleave(6)
        return -((logp - old_logp).exp() * (rewards - mean))

    result, said = found(centred(6), repeated)
    assert result.verdict == Verdict.IDENTICAL
    assert any(
        "random batches of N = 6, 12, 36, 42, 66, 102, 132, 1002, 1026, 4098, 65538" in line for line in result.tried
    )
    assert "loss takes no batch of one sample, with which a proof begins" in said
    other, _ = found(centred(6), centred(10))
    assert other.verdict == Verdict.DIFFERENT
    assert any("random batches of N = 30, 60, 90, 120, 150," in line for line in other.tried)
    alone = examine(centred(6))
    assert alone.trait("split in two").verdict == "yes"
    assert "tried        6 to 102 samples" in alone_text(alone)


@pytest.mark.slow
def test_the_factor_of_a_leave_one_out_baseline():
    result, _ = found(users.leave_one_out_of_four, users.centred_of_four)
    assert result.factor == "0.75"


def test_equal_rewards_that_are_treated_otherwise_are_no_rounding():
    """However little they are moved, they are equal no more: the gradient jumps, to either side."""
    result, said = found(users.medians_of_four(True), users.medians_of_four(False), (torch.float64, torch.bfloat16))
    assert result.verdict == Verdict.DIFFERENT
    assert "left out bfloat16: loss raised RuntimeError: quantile() input tensor must be either float or double" in said


@pytest.mark.slow
def test_a_difference_that_shrinks_for_two_reasons_is_no_rounding():
    """Its largest size in float32 is of nearly equal rewards, in float64 of ordinary ones: no one batch shrinks so."""
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    result, _ = found(users.whitened(users.by_variance), users.whitened(users.by_deviation), dtypes)
    assert result.verdict == Verdict.DIFFERENT


@pytest.mark.slow
def test_what_a_loss_in_float32_has_under_the_mask_is_tried_in_float32():
    result, _ = found(users.selected, users.selected_in_single, (torch.float64, torch.float32))
    assert result.verdict != Verdict.DIFFERENT
    assert result.padding == ()
    assert result.holds
    assert [p.what for p in found(users.plain, users.selected_in_single, (torch.float32,))[0].padding]
    assert examine(users.selected_in_single).left_out


def test_a_bound_that_is_no_fraction_is_left_open_at_once():
    """Powers of exp(log(2)) in millions were written out, for minutes."""
    result, _ = found(users.truncated, users.truncated_before)
    assert result.verdict != Verdict.DIFFERENT
    assert result.proof.exact in ("open", "proved", "edges")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_alone_has_its_own_values():
    result, said = found(users.by_torch, users.by_torch)
    assert result.values.constant == 0
    assert "values the same" in said


@pytest.mark.slow
def test_a_difference_in_float64_is_not_suspected_of_float32():
    def loss(logp, old_logp, advantages):
        return (1 + 1e-9) * users.truncated(logp, old_logp, advantages)

    assert "something may be computed in it" not in found(users.truncated, loss)[1]
    assert "something may be computed in it" in found(users.truncated, loss, prove=False)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "bound"),
    [(users.from_a_million_on, "1,000,000"), (users.from_size_on_in_floats, "100,000"), (users.Limited(), "100,000")],
    ids=["an integer", "a float", "in a dictionary of an object"],
)
def test_a_number_larger_than_every_batch_that_is_tried_bounds_what_is_proved(loss, bound):
    result, said = found("ppo_clip", loss)
    assert result.verdict == Verdict.IDENTICAL
    assert f"proved for every input, dtype and batch size below {bound}, a number in their code or " in said
