"""rlloss check with one loss: what its gradient does not depend on, and whether its derivatives are its own."""

import json
import math

import numpy as np
import pytest
import torch

from rlloss.check import alone, derivatives
from rlloss.check.alone import NO, NOT_TRIED, ROUNDING, YES, examine, text
from rlloss.check.derivatives import is_true_loss
from rlloss.check.measure import measure
from rlloss.check.probes import Probe
from rlloss.cli import main
from rlloss.errors import LossError
from rlloss.losses import LOSSES, SEQUENCE_LOSSES, reinforce, token_mean
from rlloss.losses.formulation import ZOO, resolve
from tests.examples import my_losses

F64, F32 = torch.float64, torch.float32


def masked_by_product(logp, old_logp, advantages, mask, *, clip_coef):
    """The mask as a factor: what lies under it is computed, and multiplied by 0."""
    return my_losses.token_mean(logp, old_logp, advantages, mask, clip_coef=clip_coef)


def mask_forgotten(logp, old_logp, advantages, mask, *, clip_coef):
    return -((logp - old_logp).exp() * advantages.unsqueeze(1)).mean()


def means_without_a_guard(logp, old_logp, advantages, mask, *, clip_coef):
    return -((logp * mask / mask.sum(1, keepdim=True)).sum(1) * advantages).mean()


def normalised_inside(logp, old_logp, advantages, *, clip_coef):
    """One sample has no standard deviation: nan there, and a warning."""
    return -(logp - old_logp).exp() * (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def weighted_by_place(logp, old_logp, advantages, *, clip_coef):
    return -logp * advantages * torch.arange(1, len(logp) + 1, dtype=logp.dtype)


class NotTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].exp()


def once_differentiable(logp, old_logp, advantages, *, clip_coef):
    return -NotTwice.apply(logp - old_logp).square() * advantages


def in_float32(logp, old_logp, advantages, *, clip_coef):
    return -(logp.float() - old_logp.float()).exp() * advantages.float()


def weighted_halves(logp, old_logp, advantages, mask, *, clip_coef):
    """A mean over tokens in two parts; their weights, divisions of integers, are a float32, whatever the dtype."""
    total, half = 0.0, (len(logp) + 1) // 2
    for part in (slice(None, half), slice(half, None)):
        mean = torch.where(mask, -logp * advantages.unsqueeze(1), 0.0)[part].sum() / mask[part].sum().clamp(min=1)
        total = total + mask[part].sum() / mask.sum() * mean
    return total


def verdicts(loss):
    return {trait.name: trait.verdict for trait in examine(loss).traits}


# -------------------------------------------------------------------------------------------------- the padding


@pytest.mark.parametrize("name", SEQUENCE_LOSSES)
def test_of_the_zoo_dr_grpo_alone_sees_the_width(name):
    padding = examine(name).trait("padding")
    assert (padding.verdict == NO) == (name == "dr_grpo")
    if name == "dr_grpo":
        assert padding.factors == (0.5,)
        assert padding.example == "1 answer of 1 token, padded from 1 column to 2"
        assert padding.why == ("gradient times 0.5 (it is divided by the width)",)
        assert padding.change == pytest.approx(3 / 4), "at the most: 1 column becomes 4"


@pytest.mark.parametrize("name", SEQUENCE_LOSSES)
def test_nothing_under_the_mask_reaches_a_loss_of_the_zoo(name):
    assert examine(name).trait("under mask").verdict == YES


def test_a_mask_as_a_factor_lets_nan_through():
    under = examine(masked_by_product).trait("under mask")
    assert under.verdict == NO
    assert under.change == math.inf
    assert "logp -1, old_logp -801" in under.example
    assert under.example.startswith("1 answer of 1 token")
    assert under.why[0] == "gradient nan at a masked position, and so for every parameter"
    assert under.why[1] == "likewise with -inf, nan; unchanged with other numbers, -1e10, -1e10 in logp alone"


def test_a_forgotten_mask_has_a_gradient_at_masked_positions():
    under = examine(mask_forgotten).trait("under mask")
    assert under.verdict == NO
    assert under.example == "1 answer of 1 token, other numbers under the mask"
    assert under.why[0].endswith("at a masked position")
    assert math.isfinite(float(under.why[0].split()[1]))


def test_an_answer_without_a_token_counts_in_a_mean_over_answers():
    empty = examine("grpo").trait("empty answer")
    assert (empty.verdict, empty.factors) == (NO, (0.5,))
    assert "it counts in the divisor" in empty.why[0]
    assert examine("token_mean").trait("empty answer").verdict == YES
    unguarded = examine(means_without_a_guard).trait("empty answer")
    assert (unguarded.verdict, unguarded.change) == (NO, math.inf)
    assert "gradient nan" in unguarded.why[0]


# ---------------------------------------------------------------------------- the order, micro-batches, the others


def test_micro_batches_of_unequal_lengths():
    halves = examine("token_mean").trait("split in two")
    assert halves.verdict == NO
    assert halves.example == "answers of 1 and 2 tokens, one in each micro-batch"
    assert halves.factors == pytest.approx((1.5, 0.75)), "1/2 for 1/3; 1/4 for 1/3"
    assert "unchanged with as many tokens in both halves" in halves.why
    for name in ("grpo", "gspo", "dr_grpo", "seq_mean_token_sum"):
        assert examine(name).trait("split in two").verdict in (YES, ROUNDING), name


def test_how_far_micro_batches_are_off_by_hand():
    logp, mask = torch.full((2, 2), -1.0, dtype=F64), torch.tensor([[True, False], [True, True]])
    probe = Probe("", True, logp, logp.clone(), torch.ones(2, dtype=F64), mask)

    def gradient(batch):
        return measure(resolve(token_mean), batch, 0.2).gradient.reshape(tuple(batch.logp.shape))

    (trial,) = alone._in_halves(gradient, probe, gradient(probe))
    np.testing.assert_allclose(trial.before, [[-1 / 3, 0], [-1 / 3, -1 / 3]])
    np.testing.assert_allclose(trial.after, [[-1 / 2, 0], [-1 / 4, -1 / 4]])
    assert trial.change == pytest.approx(math.sqrt(1 / 6**2 + 2 / 12**2) / math.sqrt(3 / 3**2))


def test_a_sum_is_halved_by_micro_batches():
    halves = examine(my_losses.summed).trait("split in two")
    assert (halves.verdict, halves.factors) == (NO, (0.5,))
    assert halves.why == ("gradient times 0.5 (it is a sum over the batch)",)


@pytest.mark.parametrize("name", LOSSES)
def test_samples_of_the_zoo_are_not_coupled(name):
    found = verdicts(name)
    assert found.pop("logp shifted") in ((NO,) if name == "reinforce_undetached" else (YES, ROUNDING))
    assert set(found.values()) <= {YES, ROUNDING}
    assert found["others"] == YES


def test_a_baseline_inside_couples_the_samples():
    found = examine(normalised_inside)
    assert found.trait("others").verdict == found.trait("split in two").verdict == NO
    assert found.trait("order").verdict == ROUNDING
    assert found.left_out == ("1 sample: its gradient is not finite there",)
    assert not found.trait("split in two").example.startswith("2 samples"), "one sample has no deviation: exempt"
    assert examine(masked_by_product).trait("others").verdict == YES


@pytest.mark.parametrize("through", [0, 1])
def test_samples_are_coupled_through_either_logp_too(through):
    def self_normalised(logp, old_logp, advantages, *, clip_coef):
        weight = (logp, old_logp)[through].detach()
        return -weight / weight.mean() * logp * advantages

    assert examine(self_normalised).trait("others").verdict == NO


def test_numbers_that_the_data_decide_are_no_factors():
    def rewards_normalised(logp, old_logp, advantages, mask, *, clip_coef):
        A = (advantages - advantages.mean()) / (advantages.std() + 1e-6)
        return token_mean(logp, old_logp, A, mask, clip_coef=clip_coef)

    empty = examine(rewards_normalised).trait("empty answer")
    assert (empty.verdict, empty.factors) == (NO, ())
    assert empty.why[0].endswith("of its norm")


def test_a_loss_that_knows_places():
    order = examine(weighted_by_place).trait("order")
    assert (order.verdict, order.example) == (NO, "2 samples, in reverse")


def test_a_loss_of_logp_itself_sees_a_shift():
    assert examine("reinforce_undetached").trait("logp shifted").verdict == NO
    assert examine("a2c").trait("logp shifted").verdict == YES


def test_rounding_in_float32_is_said():
    order = examine(weighted_halves).trait("order")
    assert order.verdict == ROUNDING
    assert 1e-9 < order.change < 1e-6
    assert order.why[0].startswith("off by ")
    assert order.why[0].endswith("e-08 in float64")
    assert examine("ppo_clip").trait("logp shifted").why == ()


# -------------------------------------------------------------------------------------------------- derivatives


def test_second_derivatives_of_one_sample_by_hand():
    """-ratio * A has the second derivative -ratio * A; behind a detached weight autograd sees 0."""
    logp, old_logp, A = (torch.tensor([x], dtype=F64) for x in (-1.0, -1.1, 2.0))
    ratio = math.exp(0.1)
    for name, product in (("ppo_clip", -ratio * 2), ("reinforce", 0.0)):

        def value(x, loss=ZOO[name]):
            return loss(x, old_logp, A, clip_coef=0.2).mean()

        leaf = logp.clone().requires_grad_()
        gradient = derivatives._slope(value(leaf), leaf, create_graph=True)
        assert gradient.item() == pytest.approx(-ratio * 2)
        assert float(derivatives._product(gradient, leaf, torch.ones(1, dtype=F64))) == pytest.approx(product)
        slope, curve = derivatives._central(value, logp, torch.ones(1, dtype=F64), 1e-5)
        assert curve.item() == pytest.approx(-ratio * 2), "the gradient that trains bends, for both"
        assert (slope == pytest.approx(-ratio * 2, rel=1e-6)) == (name == "ppo_clip")


def test_a_detached_weight_hides_the_second_derivative():
    clipped, surrogate = examine("ppo_clip").derivatives, examine(reinforce).derivatives
    assert (clipped.true_loss, clipped.second_order) == (True, True)
    assert max(clipped.gradient, clipped.hessian, clipped.network) < 1e-7
    assert (surrogate.true_loss, surrogate.second_order) == (False, False)
    assert surrogate.hessian == pytest.approx(1), "all of it, in logp"
    assert 0.3 < surrogate.network < 1, "of a network, the part that is the weight's"


@pytest.mark.slow
def test_the_zoo_is_sorted_by_its_derivatives():
    surrogates = {
        "reinforce", "reinforce_logratio", "reinforce_textbook", "reinforce_mask", "klip", "klip_matched",
        "klip_linear_gate",
        "klip_sigmoid_gate", "two_sided_mask", "cispo", "cispo_upper", "truncated_is", "reinforce_unclipped",
        "on_policy_ratio", "cispo_upper_tokens", "truncated_is_tokens",
    }  # fmt: skip
    for name in ZOO:
        found = alone.derivatives_of(resolve(name), 0.2, 0)
        assert found.true_loss == is_true_loss(resolve(name), 0.2) == (name not in surrogates), name
        assert found.second_order == (name not in surrogates | {"gspo_token"}), name


@pytest.mark.slow
def test_the_points_lie_away_from_clip_bounds():
    for seed in range(5):
        for clip_coef in (0.05, 0.2, 0.5):
            assert alone.derivatives_of(resolve("ppo_clip"), clip_coef, seed).hessian < 1e-7


def test_directions_across_a_bend_are_left_out():
    generator, near, far = torch.Generator(), torch.full((3,), 1e-9, dtype=F64), torch.ones(3, dtype=F64)
    assert derivatives._errors(lambda x: x.abs().sum(), near, generator) == ([], [], "")
    firsts, seconds, _ = derivatives._errors(lambda x: x.abs().sum(), far, generator)
    assert len(firsts) == 8
    assert max(firsts + seconds) < 1e-7


def test_a_value_far_from_zero_is_no_surrogate():
    def offset(logp, old_logp, advantages, *, clip_coef):
        return -(logp - old_logp).exp() * advantages + 1e6

    assert examine(offset).derivatives.true_loss


def test_a_loss_without_a_second_derivative():
    found = examine(once_differentiable)
    assert (found.derivatives.true_loss, found.derivatives.second_order) == (True, None)
    assert "it cannot be differentiated twice: a backward pass in it is marked once_differentiable" in " ".join(
        text(found).split()
    )


def test_a_loss_in_float32():
    found = examine(in_float32)
    assert found.dtypes == ("float32",)
    assert found.left_out == ("float64: returned torch.float32 for inputs of torch.float64",)
    assert (found.derivatives.true_loss, found.derivatives.second_order) == (None, None)
    assert set(verdicts(in_float32).values()) <= {YES, ROUNDING}
    with pytest.raises(LossError, match=r"in_float32 returned torch\.float32"):
        examine(in_float32, dtypes=(F64,))


# ------------------------------------------------------------------------------------------------ what is printed


def test_a_loss_that_takes_no_other_batch_is_tried_on_the_rest():
    def of_pairs(logp, old_logp, advantages, *, clip_coef):
        groups = advantages.view(-1, 2)
        return -logp * (groups - groups.mean(1, keepdim=True)).flatten()

    found = examine(of_pairs)
    assert found.trait("others").verdict == NO
    assert any(note.startswith("7 samples: raised RuntimeError") for note in found.left_out)
    assert any(note.startswith("split in two, 2 samples: raised") for note in found.left_out)
    assert found.trait("split in two").verdict == YES, "between pairs"
    assert found.trait("order").verdict == NO
    assert text(found).count("7 samples: raised") == 1


def test_a_random_loss_is_refused():
    def dropped(logp, old_logp, advantages, *, clip_coef):
        return -logp * advantages * torch.rand(len(logp))

    with pytest.raises(LossError, match="another gradient when called again"):
        examine(dropped)
    with pytest.raises(LossError, match=r"clip-coef=1\.5"):
        examine("ppo_clip", clip_coef=1.5)


@pytest.mark.parametrize(
    "loss", ["ppo_clip", "dr_grpo", "token_mean", masked_by_product, normalised_inside, in_float32]
)
def test_the_report_is_aligned(loss):
    found = examine(loss)
    lines = text(found).splitlines()
    assert lines[0] == f"{found.loss} by itself: does its gradient stay the same?"
    assert all(len(line) <= 118 and line == line.rstrip() for line in lines)
    labels = [line[:13].strip() for line in lines[1:] if line[:13].strip()]
    names = [trait.name for trait in found.traits]
    left_out = ["left out"] if found.left_out else []
    assert labels == [*names, "true loss", "second order", *left_out, "tried"]
    assert len(names) <= 7
    for line in lines:
        if line[:13].strip() in (*names, "true loss", "second order"):
            assert line[13:29].strip() in (YES, ROUNDING, NO, NOT_TRIED), line


def test_what_the_report_says_of_token_mean():
    said = " ".join(text(examine("token_mean")).split())
    assert "split in two NO answers of 1 and 2 tokens, one in each micro-batch: gradient times 1.5 and 0.75" in said
    assert "second order yes autograd's Hessian is the slope of its gradient" in said
    assert said.endswith("1 to 16 answers of 1 to 11 tokens; float64, float32; clip_coef 0.2; seed 0")


@pytest.mark.slow
def test_the_command_prints_it_below_the_table(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def loss(logp, old_logp, advantages, *, clip_coef):\n    return -(logp - old_logp).exp() * advantages\n"
    )
    assert main(["check", f"{mine}:loss", "--dtype", "float64"]) == 0, "ppo_unclipped"
    printed = capsys.readouterr()
    table, _, report = printed.out.partition("\n\n")
    assert "ppo_unclipped" in table
    assert report.startswith(f"{mine}:loss by itself")
    assert "float64; clip_coef 0.2; seed 0" in report
    assert printed.err == ""


@pytest.mark.slow
def test_json_has_it_and_no_warning_is_printed(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def loss(logp, old_logp, advantages, *, clip_coef):\n"
        "    A = (advantages - advantages.mean()) / (advantages.std() + 1e-8)\n"
        "    return -A * logp\n"
    )
    assert main(["check", f"{mine}:loss", "--dtype", "float64", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"pairs", "alone"}
    assert [trait["verdict"] for trait in document["alone"]["traits"]] == [ROUNDING, NO, NO, YES]
    assert document["alone"]["derivatives"]["true_loss"] is True
    assert document["alone"]["left_out"] == ["1 sample: its gradient is not finite there"]
    assert main(["check", "ppo_clip", "cispo", "spo", "--dtype", "float64", "--json"]) == 1
    assert set(json.loads(capsys.readouterr().out)) == {"pairs"}


def test_warnings_of_a_loss_stay_its_own(recwarn):
    examine(normalised_inside)
    assert not recwarn.list
