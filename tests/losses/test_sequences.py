"""Sequence losses against formulas in plain Python, value and gradient; what relates them; padding and empty answers.

How ``grpo``, ``dr_grpo``, ``dapo`` and ``gspo`` weigh their tokens is in test_zoo.py.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlloss.graph import trace
from rlloss.losses import SEQUENCE_LOSSES

EPS = 0.2
NEW = (
    "token_mean", "seq_mean_token_sum", "gspo_token", "gmpo", "sapo", "cispo_upper_tokens", "truncated_is_tokens",
    "rloo",
)  # fmt: skip
DETACHED = {"cispo_upper_tokens", "truncated_is_tokens"}
RUBBISH = (math.nan, -math.inf, math.inf, -1e10, 1e10)

Answer = tuple[float, list[tuple[float, float]]]  # its advantage; (logp, logratio) of each of its tokens
Expected = tuple[float, list[list[float]]]  # the loss, and its derivative by every logp

# ------------------------------------------------------------------------------------ formulas in plain Python


def clip(x: float) -> float:
    return min(max(x, 1 - EPS), 1 + EPS)


def passes(r: float, A: float) -> bool:
    return not ((A > 0 and r > 1 + EPS) or (A < 0 and r < 1 - EPS))


def clipped_token(logp: float, x: float, A: float) -> tuple[float, float]:
    """A token's loss and its derivative."""
    r = math.exp(x)
    return -min(r * A, clip(r) * A), -A * r if passes(r, A) else 0.0


def sapo_token(logp: float, x: float, A: float) -> tuple[float, float]:
    r, tau = math.exp(x), 1.0 if A > 0 else 1.05
    s = 1 / (1 + math.exp(-tau * (r - 1)))
    return -4 / tau * s * A, -4 * s * (1 - s) * r * A


def weighted_token(cap: float) -> Callable[[float, float, float], tuple[float, float]]:
    return lambda logp, x, A: (-min(math.exp(x), cap) * logp * A, -min(math.exp(x), cap) * A)


def summed(token: Callable[..., tuple[float, float]], weight: Callable[[list[Answer], int], float]) -> Callable:
    """The sum over tokens of weight(answers, length of the token's own answer) times the token's loss."""

    def expected(answers: list[Answer]) -> Expected:
        value, gradient = 0.0, []
        for A, tokens in answers:
            w = weight(answers, len(tokens))
            value += sum(w * token(logp, x, A)[0] for logp, x in tokens)
            gradient.append([w * token(logp, x, A)[1] for logp, x in tokens])
        return value, gradient

    return expected


def per_token(answers: list[Answer], length: int) -> float:
    return 1 / sum(len(tokens) for _, tokens in answers)


def per_answer(answers: list[Answer], length: int) -> float:
    return 1 / len(answers)


def per_answer_and_token(answers: list[Answer], length: int) -> float:
    return 1 / len(answers) / length


def gspo_token(answers: list[Answer]) -> Expected:
    value, gradient = 0.0, []
    for A, tokens in answers:
        s = math.exp(sum(x for _, x in tokens) / len(tokens))
        value -= min(s * A, clip(s) * A) / len(answers)
        gradient.append([-A * s * passes(s, A) / len(tokens) / len(answers) for _ in tokens])
    return value, gradient


def gmpo(answers: list[Answer]) -> Expected:
    """In the paper's words: the root of the product of min(r^sgn(A), clip(r, e^-eps, e^eps)^sgn(A))^sgn(A)."""
    value, gradient = 0.0, []
    for A, tokens in answers:
        sign, product, open_ = math.copysign(1, A), 1.0, []
        for _, x in tokens:
            r, bounded = math.exp(x), min(max(math.exp(x), math.exp(-EPS)), math.exp(EPS))
            product *= min(r**sign, bounded**sign) ** sign
            open_.append(r**sign <= bounded**sign)
        g = product ** (1 / len(tokens))
        value -= g * A / len(answers)
        gradient.append([-g * A * flows / len(tokens) / len(answers) for flows in open_])
    return value, gradient


FORMULAS: dict[str, Callable[[list[Answer]], Expected]] = {
    "token_mean": summed(clipped_token, per_token),
    "seq_mean_token_sum": summed(clipped_token, per_answer),
    "gspo_token": gspo_token,
    "gmpo": gmpo,
    "sapo": summed(sapo_token, per_answer_and_token),
    "cispo_upper_tokens": summed(weighted_token(1 + EPS), per_token),
    "truncated_is_tokens": summed(weighted_token(2.0), per_token),
    "rloo": summed(lambda logp, x, A: (-A * logp, -A), per_answer),
}

BATCHES: dict[str, list[Answer]] = {
    "on-policy": [(1.5, [(-0.5, 0.0), (-1.25, 0.0)]), (-0.75, [(-2.0, 0.0)])],
    "inside": [(1.5, [(-0.5, 0.1), (-1.25, -0.15)]), (-0.75, [(-2.0, 0.05)])],
    "clipped": [(1.5, [(-0.5, 0.4), (-1.25, -0.1)]), (-0.75, [(-2.0, -0.3)])],
    "beyond, where no clip cuts": [(-1.5, [(-0.5, 0.4), (-1.25, -0.1)]), (0.75, [(-2.0, -0.3)])],
    "above every cap": [(1.5, [(-0.5, 0.9), (-1.25, 0.5)]), (-0.75, [(-2.0, 1.1)])],
    "an advantage of 0": [(0.0, [(-0.5, 0.3), (-1.25, -0.6)]), (1.0, [(-2.0, 0.02)])],
}


def tensors(answers: list[Answer]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width = max(len(tokens) for _, tokens in answers)
    logp = torch.full((len(answers), width), -1.0, dtype=torch.float64)
    old_logp, mask = logp - 0.5, torch.zeros(len(answers), width, dtype=torch.bool)
    for i, (_, tokens) in enumerate(answers):
        for t, (new, x) in enumerate(tokens):
            logp[i, t], old_logp[i, t], mask[i, t] = new, new - x, True
    return logp, old_logp, torch.tensor([A for A, _ in answers], dtype=torch.float64), mask


def measured(name: str, logp: Tensor, *given: Tensor, clip_coef: float = EPS) -> tuple[Tensor, Tensor]:
    """A loss and its gradient."""
    leaf = logp.detach().clone().requires_grad_()
    loss = SEQUENCE_LOSSES[name](leaf, *given, clip_coef=clip_coef)
    assert loss.shape == ()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def test_every_new_loss_has_its_formula_written_down():
    assert set(FORMULAS) == set(NEW) == set(SEQUENCE_LOSSES) - {"grpo", "dr_grpo", "dapo", "gspo"}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NEW)
def test_value_and_gradient_are_the_formulas(name, batch):
    answers = BATCHES[batch]
    value, rows = FORMULAS[name](answers)
    loss, gradient = measured(name, *tensors(answers))
    assert loss.item() == pytest.approx(value, rel=1e-13)
    for row, expected in zip(gradient.tolist(), rows, strict=True):
        padded = expected + [0.0] * (len(row) - len(expected))
        assert row == pytest.approx(padded, rel=1e-13, abs=0)


@pytest.mark.parametrize(
    ("name", "value", "gradient"),
    [  # of the batch "clipped", by awk
        ("token_mean", -0.85241870902, [0.0, -0.45241870902, 0.0]),
        ("seq_mean_token_sum", -1.27862806353, [0.0, -0.67862806353, 0.0]),
        ("gspo_token", -0.57137568205, [-0.43568784102, -0.43568784102, 0.0]),
        ("gmpo", -0.48142928988, [0.0, -0.39422666114, 0.0]),
        ("sapo", -1.02745723674, [-0.52692224017, -0.33854698981, 0.27272602439]),
        ("cispo_upper_tokens", 0.49511427593, [-0.6, -0.45241870902, 0.18520455517]),
        ("truncated_is_tokens", 0.56807045034, [-0.74591234882, -0.45241870902, 0.18520455517]),
        ("rloo", 0.5625, [-0.75, -0.75, 0.375]),
    ],
)
def test_numbers(name, value, gradient):
    loss, found = measured(name, *tensors(BATCHES["clipped"]))
    assert loss.item() == pytest.approx(value, abs=1e-10)
    assert [*found[0].tolist(), found[1, 0].item()] == pytest.approx(gradient, abs=1e-10)


def smooth() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Off-policy, tokens on both sides of every bound and none near one; a hole in the mask, and padding."""
    x = torch.tensor([[0.1, -0.5, 0.9, 0.05], [0.4, -0.1, -0.35, 0.0], [-0.6, 0.12, 0.3, 0.0]], dtype=torch.float64)
    logp = torch.linspace(-2.5, -0.1, 12, dtype=torch.float64).view(3, 4)
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    return logp, logp - x, torch.tensor([1.5, -0.75, -2.0], dtype=torch.float64), mask


@pytest.mark.parametrize("name", NEW)
def test_a_true_loss_has_the_slope_of_its_value_and_a_detached_one_has_not(name):
    """gspo_token's value moves as gspo's does: with one advantage a sequence its detached ratio is no harm."""
    logp, *given = smooth()
    is_slope = torch.autograd.gradcheck(
        lambda leaf: SEQUENCE_LOSSES[name](leaf, *given, clip_coef=EPS), logp.requires_grad_(), raise_exception=False
    )
    assert is_slope is (name not in DETACHED)


# ------------------------------------------------------------------------------------------- what relates them


def random_batch(seed: int, spread: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three sequences of each length from 1 to 7. Seed 2 has tokens on which dapo and token_mean differ."""
    generator = torch.Generator().manual_seed(seed)
    old_logp = -3 * torch.rand(21, 7, generator=generator, dtype=torch.float64)
    logp = old_logp + spread * torch.randn(21, 7, generator=generator, dtype=torch.float64)
    A = torch.randn(21, generator=generator, dtype=torch.float64)
    return logp, old_logp, A, torch.arange(7) < (torch.arange(21) % 7 + 1).unsqueeze(1)


def assert_same_gradient(a: str, b: str, *batch: Tensor, factor: Tensor | float = 1.0) -> None:
    """b's gradient is ``factor`` times a's."""
    first, second = measured(a, *batch)[1], measured(b, *batch)[1]
    assert first.abs().sum() > 0
    assert torch.allclose(first * factor, second, rtol=1e-13, atol=0), f"{a} and {b}"


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_gspo_token_is_gspo_for_one_advantage_a_sequence(seed, spread):
    batch = random_batch(seed, spread)
    assert_same_gradient("gspo", "gspo_token", *batch)
    assert measured("gspo", *batch)[0].item() == pytest.approx(measured("gspo_token", *batch)[0].item(), rel=1e-13)


def test_token_mean_is_dapo_without_its_higher_bound(monkeypatch):
    batch = random_batch(2, 0.3)
    loss, gradient = measured("token_mean", *batch)
    assert not torch.equal(measured("dapo", *batch)[1], gradient)
    monkeypatch.setattr("rlloss.losses.sequences.CLIP_HIGHER", 0)
    again, same = measured("dapo", *batch)
    assert torch.equal(again, loss)
    assert torch.equal(same, gradient)


def test_seq_mean_token_sum_is_grpo_times_a_lengths_and_dr_grpo_times_the_width():
    batch = random_batch(2, 0.3)
    assert_same_gradient("grpo", "seq_mean_token_sum", *batch, factor=batch[3].sum(1, keepdim=True))
    assert_same_gradient("dr_grpo", "seq_mean_token_sum", *batch, factor=7)


@pytest.mark.parametrize(
    "together",
    [
        ("grpo", "gspo", "gspo_token", "gmpo", "sapo"),
        ("token_mean", "dapo", "cispo_upper_tokens", "truncated_is_tokens"),
        ("seq_mean_token_sum", "rloo"),
    ],
)
def test_on_policy_only_the_average_tells_losses_apart(together):
    on_policy, moved = random_batch(2, 0.0), random_batch(2, 0.5)
    for other in together[1:]:
        assert_same_gradient(together[0], other, *on_policy)
        if {together[0], other} != {"gspo", "gspo_token"}:
            assert not torch.allclose(measured(together[0], *moved)[1], measured(other, *moved)[1])


def test_on_policy_sapos_value_is_two_over_tau():
    logp, old_logp, A, mask = random_batch(2, 0.0)
    expected = -torch.where(A > 0, 2 / 1.0 * A, 2 / 1.05 * A).mean()
    assert measured("sapo", logp, old_logp, A, mask)[0].item() == pytest.approx(expected.item(), rel=1e-13)


def test_sapos_weight_of_the_ratio_fades_on_both_sides_and_is_never_0():
    x = torch.tensor([[-3.0, -1.0, 0.0, 1.0, 2.0]], dtype=torch.float64)
    for A in (1.0, -1.0):
        given = torch.zeros_like(x), torch.tensor([A], dtype=torch.float64), torch.ones(1, 5, dtype=torch.bool)
        far_below, below, at_1, above, far_above = (-5 * A * measured("sapo", x, *given)[1] / torch.exp(x))[0].tolist()
        assert at_1 == pytest.approx(1, rel=1e-13)
        assert 0 < far_below < below < at_1
        assert 0 < far_above < above < at_1


def test_gmpo_clips_a_token_alone_where_gspo_clips_the_sequence():
    old_logp = torch.full((1, 2), -1.0, dtype=torch.float64)

    def flows(name: str, x: list[float], A: float) -> list[bool]:
        given = old_logp, torch.tensor([A], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
        return (measured(name, old_logp + torch.tensor([x]), *given)[1] != 0).squeeze(0).tolist()

    assert flows("gspo", [0.5, -0.4], 1.0) == [True, True]
    assert flows("gmpo", [0.5, -0.4], 1.0) == [False, True]
    assert flows("gmpo", [0.5, -0.4], -1.0) == [True, False]
    assert flows("gmpo", [0.19, -0.19], 1.0) == [True, True], "log 1.2 is 0.182: the bound is on the log-ratio"
    assert flows("gmpo", [0.21, -0.4], 1.0) == [False, True]


def test_a_token_that_token_mean_silences_keeps_its_gradient_in_cispo():
    logp, old_logp, A, mask = tensors(BATCHES["clipped"])
    silent = (measured("token_mean", logp, old_logp, A, mask)[1] == 0) & mask
    assert silent.sum() == 2
    assert (measured("cispo_upper_tokens", logp, old_logp, A, mask)[1][silent] != 0).all()


@pytest.mark.parametrize("name", ["sapo", "truncated_is_tokens", "rloo"])
def test_these_have_no_use_for_clip_coef(name):
    batch = random_batch(2, 0.5)
    for mine, other in zip(measured(name, *batch), measured(name, *batch, clip_coef=0.01), strict=True):
        assert torch.equal(mine, other)


def test_rloo_has_no_use_for_old_logp():
    logp, old_logp, A, mask = random_batch(2, 0.5)
    assert torch.equal(measured("rloo", logp, old_logp, A, mask)[1], measured("rloo", logp, logp, A, mask)[1])


# -------------------------------------------------------------------------------------- padding, empty answers


@pytest.mark.parametrize("rubbish", RUBBISH)
@pytest.mark.parametrize("name", SEQUENCE_LOSSES)
def test_nothing_under_the_mask_is_read(name, rubbish):
    """Not even on the way: PyTorch's anomaly detection, which many leave on, stops at a NaN that a mask hides later."""
    logp, old_logp, A, mask = smooth()
    loss, gradient = measured(name, logp, old_logp, A, mask)
    assert (gradient[~mask] == 0).all()
    for new, old in ((rubbish, -1.0), (-1.0, rubbish), (rubbish, rubbish), (rubbish, -rubbish)):
        with torch.autograd.set_detect_anomaly(True):
            again, same = measured(name, torch.where(mask, logp, new), torch.where(mask, old_logp, old), A, mask)
        assert torch.equal(again, loss)
        assert torch.equal(same, gradient)


@pytest.mark.parametrize("rubbish", [-1.0, *RUBBISH])
@pytest.mark.parametrize("name", NEW)
def test_answers_without_a_token_give_0(name, rubbish):
    logp, old_logp, A, _ = smooth()
    logp = torch.full_like(logp, rubbish)
    loss, gradient = measured(name, logp, old_logp, A, torch.zeros_like(logp, dtype=torch.bool))
    assert loss == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("name", NEW)
def test_an_answer_without_a_token_adds_nothing_to_the_others(name):
    logp, old_logp, A, mask = smooth()
    mask[1] = False
    rest = torch.tensor([0, 2])
    share = 1.0 if name in ("token_mean", "cispo_upper_tokens", "truncated_is_tokens") else 2 / 3  # of 3 sequences, 2
    loss, gradient = measured(name, logp, old_logp, A, mask)
    alone, alone_gradient = measured(name, logp[rest], old_logp[rest], A[rest], mask[rest])
    assert loss.item() == pytest.approx(share * alone.item(), rel=1e-13)
    assert torch.allclose(gradient[rest], share * alone_gradient, rtol=1e-13, atol=0)
    assert (gradient[1] == 0).all()


@pytest.mark.parametrize("name", NEW)
def test_every_loss_can_be_drawn(name):
    graph = trace(name)
    assert graph.title == name
    assert math.isfinite(graph.nodes[graph.loss].value)
