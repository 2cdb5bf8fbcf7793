"""What people met: pairs that were misjudged once, each for a kind of fault, with what is right."""

import pytest
import torch

from rlloss.check import compare
from rlloss.check.alone import examine
from rlloss.check.text import full_text, text
from rlloss.cli.main import main
from rlloss.errors import LossError
from rlloss.verdicts import Verdict
from tests.examples import users_losses as users

FILE = "tests/examples/users_losses.py"


def found(f, g, dtypes=(torch.float64,), **settings):
    result = compare(f, g, dtypes=dtypes, **settings)
    return result, " ".join(text(result).split())


@pytest.mark.parametrize("bound", [6, *(pytest.param(x, marks=pytest.mark.slow) for x in (3.5, 20))])
def test_log_ratios_beyond_the_usual(bound):
    result, said = found(users.plain, users.log_ratio_within(bound))
    assert result.verdict == Verdict.DIFFERENT
    assert 0 in result.example.gradients
    assert "differ at A > 0: ratio <" in said


@pytest.mark.slow
def test_rare_tokens():
    result, said = found(users.plain, users.without_rare)
    assert (result.on_policy.verdict, result.off_policy.verdict) == (Verdict.DIFFERENT, Verdict.DIFFERENT)
    assert result.example.logp < -9
    assert "A > 0 and A < 0: log π < -9 at any ratio" in said


@pytest.mark.slow
def test_rare_samples():
    result, said = found("ppo_clip", users.frequent_only)
    assert result.verdict == Verdict.DIFFERENT
    assert "A > 0 and A < 0: log π < -3 at any ratio" in said


@pytest.mark.slow
def test_what_lies_under_the_padding_is_said_and_fails(capsys):
    result, said = found(users.plain, users.mask_as_factor)
    assert result.verdict == Verdict.IDENTICAL
    assert not result.holds
    overflow = result.padding[0]
    assert (overflow.logp, overflow.old_logp, overflow.a) == (-1, -801, None)
    assert str(overflow.b[1]) == "nan"
    assert "under the mask" in said
    assert main(["check", f"{FILE}:plain", f"{FILE}:mask_as_factor", "--dtype", "float64"]) == 1
    assert "under the mask a ratio that overflows (logp -1, old_logp -801)" in " ".join(capsys.readouterr().out.split())
    assert found(users.plain, users.plain)[0].padding == ()


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high"), [(1.28, 1.2801), (1.9, 1.90001), (0.95, 0.951)])
def test_a_ratio_between_two_near_bounds(low, high):
    result, said = found(users.upper_bound(low), users.upper_bound(high))
    assert result.verdict == Verdict.DIFFERENT
    assert low < result.example.ratio < high
    assert 0 in result.example.gradients
    assert f"A > 0: {low:g} < ratio < {high:g}" in said or f"of {low:g}" in said


@pytest.mark.slow
@pytest.mark.parametrize("clip_coef", [0.05, 0.2, 0.01])
def test_candidates_are_relative_to_clip_coef(clip_coef):
    result, _ = found("gspo", users.gspo_wider, clip_coef=clip_coef)
    assert result.verdict == Verdict.DIFFERENT
    assert 1 + clip_coef < result.example.ratio < 1.01 * (1 + clip_coef)


@pytest.mark.slow
def test_rounding_of_a_shorter_format_is_no_difference():
    result, said = found(users.plain, users.micro_batches, dtypes=(torch.float64, torch.float32, torch.bfloat16))
    assert result.verdict == Verdict.EQUAL
    assert result.proof.exact == "proved"
    assert "computed in float32" in said
    lines = [line for line in text(result).splitlines() if "gradient -0.333" in line]
    assert lines, "the example tells the two numbers apart"


@pytest.mark.slow
def test_a_difference_that_shrinks_as_rounding_does_is_rounding():
    """A detour by large numbers loses 13 bits, in every format; a factor that is 1e-9 off loses none."""

    def detour(logp, old_logp, advantages):
        return -((logp + 1e4) - (old_logp + 1e4)).exp() * advantages

    def off(logp, old_logp, advantages):
        return -(logp - old_logp).exp() * advantages * (1 + 1e-9)

    every = (torch.float64, torch.float32, torch.bfloat16)
    result, said = found("ppo_unclipped", detour, dtypes=every)
    assert (result.verdict, result.proof.exact) == (Verdict.EQUAL, "proved")
    assert "shrinks from float32 to float64 as rounding does" in said
    result, _ = found("ppo_unclipped", off, dtypes=every)
    assert (result.verdict, result.proof.exact) == (Verdict.DIFFERENT, "refuted")


@pytest.mark.slow
def test_a_batch_of_one_answer_has_no_deviation():
    result, said = found("grpo", users.normalised_inside)
    assert result.verdict == Verdict.DIFFERENT
    assert "nan" in " ".join(result.not_finite)
    assert "refused" not in said


@pytest.mark.slow
def test_the_size_of_a_difference():
    assert found("grpo", users.summed_per_answer)[0].factor == "|o_i|, its answer's number of tokens"
    assert found("grpo", "dr_grpo")[0].factor == "|o_i| / T"
    assert found(users.soft_gate(True), users.soft_gate(False))[0].factor == "0.25 where A > 0, 0.2625 where A < 0"
    result, said = found(users.less_the_mean, users.leave_one_out)
    assert result.factor == "N / (N - 1)"
    assert "times N / (N - 1)" in said
    assert result.size.cosine == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["other_names"])
def test_names_are_known(spec):
    result, said = found(users.plain, f"{FILE}:{spec}")
    assert result.verdict in (Verdict.IDENTICAL, Verdict.EQUAL)
    assert "proved" in said


@pytest.mark.slow
def test_a_dtype_that_a_loss_refuses_is_left_out_and_said():
    result, said = found("ppo_clip", users.upcast, dtypes=(torch.float64, torch.float32, torch.bfloat16))
    assert result.verdict == Verdict.EQUAL
    assert result.dtypes == ("float32", "bfloat16")
    assert "left out float64" in said
    assert result.proof.exact == "proved"
    with pytest.raises(LossError, match="float64"):
        compare("ppo_clip", users.upcast, dtypes=(torch.float64,))


@pytest.mark.slow
def test_names_with_a_dot(capsys):
    assert compare("ppo_clip", f"{FILE}:Trainer.static").verdict == Verdict.IDENTICAL
    assert main(["check", "ppo_clip", f"{FILE}:Trainer.method"]) == 2
    assert "@staticmethod" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("most", [100, 512])
def test_long_answers(most):
    result, said = found(users.plain, users.first_tokens(most))
    assert result.verdict == Verdict.DIFFERENT
    assert f"answers of {most + 1} tokens and more" in said
    assert max(map(len, said.split("example")[1].split("different")[0].split(","))) < 200, "no line of 500 ratios"


@pytest.mark.slow
def test_batches_of_a_size_that_a_loss_is_written_with():
    """Its graph is traced on 3 samples and knows nothing of 300."""

    def first(logp, old_logp, advantages):
        keep = torch.arange(len(logp)) < 300
        return -logp * advantages * keep

    def every(logp, old_logp, advantages):
        return -logp * advantages

    result, _ = found(every, first)
    assert result.verdict == Verdict.DIFFERENT
    assert any("301" in batch for batch in result.off_policy.unequal)


@pytest.mark.slow
def test_masks_with_holes_and_late_starts():
    result, said = found(users.plain, users.length_by_count)
    assert result.verdict == Verdict.DIFFERENT
    assert "holes" in said
    assert "late starts" in said
    assert any("0" in mask for mask in result.example.masks)


@pytest.mark.slow
def test_a_padded_token_is_called_padded():
    result, said = found(users.plain, users.length_by_count)
    if result.example.padded:
        assert "the padded token" in said
    assert "the padded token" in " ".join(full_text(result).split()) or not result.example.padded


@pytest.mark.slow
def test_advantages_of_zero_beside_others():
    result, _ = found(users.plain, users.without_equal_groups)
    assert result.verdict == Verdict.DIFFERENT


@pytest.mark.slow
def test_values_that_nearly_agree_are_told_apart():
    _, said = found(users.upper_bound(1.28), users.upper_bound(1.2801))
    one, other = said.split("values differ: ")[1].split(" on a batch")[0].split(" and ")
    assert one != other


@pytest.mark.slow
def test_a_small_number_beside_probabilities_is_a_difference():
    result, _ = found("ppo_clip", users.floored)
    assert result.verdict == Verdict.DIFFERENT
    assert result.proof.exact == "refuted"


def test_nothing_of_numpy_or_torch_is_warned_of(recwarn):
    found("grpo", users.normalised_inside)
    found(users.less_the_mean, users.leave_one_out)
    assert [str(w.message) for w in recwarn] == []


@pytest.mark.slow
def test_a_fill_far_below_every_number_is_no_bound():
    """exp(1e9) overflowed where the numbers of a loss were read."""
    result, _ = found(users.plain, users.filled, prove=False)
    assert result.verdict == Verdict.IDENTICAL


@pytest.mark.slow
def test_an_advantage_of_each_token_is_tried_where_both_losses_take_one():
    result, said = found(users.of_tokens, users.of_last_tokens)
    assert result.verdict == Verdict.DIFFERENT
    assert result.proof.exact == "refuted"
    assert result.only_of_tokens
    assert "with one an answer no difference was found" in said
    same, _ = found(users.of_tokens, users.of_tokens_differently)
    assert same.verdict != Verdict.DIFFERENT
    assert same.proof.exact in ("proved", "edges")
    assert not same.only_of_tokens


def test_each_tie_may_go_to_another_side():
    """At a product that rounds to the bound's, torch.min halves the gradient and torch.where has none: an edge."""
    result, said = found("ppo_clip", users.by_where)
    assert (result.verdict, result.proof.exact) == (Verdict.EQUAL, "proved")
    assert result.off_policy.edges > 0
    assert "edges" in said
    assert not result.only_of_tokens
    other, _ = found(users.by_where, "two_sided_mask")
    assert other.verdict == Verdict.DIFFERENT
    assert not other.only_of_tokens


@pytest.mark.slow
def test_what_is_proved_one_differs_in_large_sums_by_rounding():
    """The deviation of 32,768 advantages, added up in another order."""
    result, said = found(users.by_torch, users.by_hand)
    assert (result.verdict, result.proof.exact) == (Verdict.EQUAL, "proved")
    assert "not proved: they differ by rounding" in said
    slightly, _ = found(users.by_torch, lambda logp, old_logp, advantages, *, clip_coef: (1 + 1e-11) * users.by_hand(
        logp, old_logp, advantages, clip_coef=clip_coef))  # fmt: skip
    assert slightly.verdict == Verdict.DIFFERENT


@pytest.mark.slow
def test_an_answer_of_nothing_is_not_blamed_on_its_padding():
    result, said = found("grpo", users.per_answer)
    assert "other numbers" not in [padding.what for padding in result.padding]
    assert "not finite" in said
    assert "tokens, where both are finite" in said


@pytest.mark.slow
def test_a_mean_of_means_over_large_chunks():
    """On all that is a multiple of the chunk it is the mean."""
    result, _ = found("ppo_clip", users.in_chunks)
    assert result.verdict == Verdict.DIFFERENT
    one, other = result.values.batch  # of a batch on which they do differ
    assert abs(one - other) > 1e-6


@pytest.mark.slow
def test_one_advantage_an_answer_is_all_that_others_are_given():
    """``plain`` takes [batch] alone: of tokens with advantages of their own nothing can be asked of it."""
    result, _ = found(users.plain, users.of_tokens)
    assert result.verdict != Verdict.DIFFERENT
    assert not result.only_of_tokens


def test_a_loss_that_makes_every_pair_of_samples_is_refused_before_it_fills_the_memory():
    for call in (lambda: compare("ppo_clip", users.outer), lambda: examine(users.outer)):
        with pytest.raises(LossError, match=r"makes N × N numbers of a batch of N.*\[N\] and \[N, 1\].*squeeze"):
            call()
