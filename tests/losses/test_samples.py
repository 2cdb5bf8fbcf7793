"""Losses: values against fixed numbers, gradients region by region, and bitwise equality between formulations."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from rlloss.losses import LOSSES, clip_active, ppo_clip, ppo_share, reinforce, reinforce_mask, reinforce_textbook
from tests.helpers import ROOT

EPS = 0.2
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
PPO_LIKE = (ppo_clip, reinforce, reinforce_textbook, reinforce_mask)


def gradient(loss, logp: Tensor, old_logp: Tensor, advantages: Tensor, *, scale: float = 1.0) -> Tensor:
    """d(mean loss)/d logp, times ``scale``."""
    leaf = logp.detach().clone().requires_grad_()
    (loss(leaf, old_logp, advantages, clip_coef=EPS).mean() * scale).backward()
    return leaf.grad


def next_after(x: Tensor, towards: float) -> Tensor:
    return torch.nextafter(x, torch.tensor(towards, dtype=x.dtype))


def logratio_for(ratio: Tensor) -> Tensor:
    """A log-ratio whose exp is ``ratio`` exactly, found by walking the neighbouring floats."""
    start = torch.log(ratio.double()).to(ratio.dtype)
    down = up = start
    for _ in range(200):
        for candidate in (down, up):
            if torch.exp(candidate) == ratio:
                return candidate
        down, up = next_after(down, -math.inf), next_after(up, math.inf)
    raise AssertionError(f"no log-ratio gives exactly {ratio}")


def bound(side: int, dtype: torch.dtype) -> Tensor:
    """1 + eps or 1 - eps, as clamp rounds it."""
    return torch.tensor(1.0 if side < 0 else 2.0, dtype=dtype).mul(0).add(1 + side * EPS)


def samples(n: int, dtype: torch.dtype, seed: int, spread: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old_logp = -torch.rand(n, generator=generator, dtype=torch.float64) * 3
    logp = old_logp + spread * torch.randn(n, generator=generator, dtype=torch.float64)
    advantages = torch.randn(n, generator=generator, dtype=torch.float64)
    return logp.to(dtype), old_logp.to(dtype), advantages.to(dtype)


def test_table_and_configs_name_the_same_losses():
    assert {path.stem for path in (ROOT / "configs/loss").glob("*.yaml")} == set(LOSSES)


@pytest.mark.parametrize(
    ("sign", "expected"),
    [(1, {"ppo_clip": -0.17117467, "reinforce": 0.2700253}), (-1, {"ppo_clip": 0.19333333, "reinforce": -0.2591642})],
)
def test_fixed_values(sign, expected):
    """rlax's example of the clipped surrogate; the REINFORCE value was computed independently, in float32."""
    logits = torch.tensor([[1.0, 1, 1], [2, 0, 0], [-1, -2, -3]])
    old_logits = torch.tensor([[1.0, 1, 1], [2, 0, 0], [-3, -2, -1]])
    actions = torch.tensor([[0], [1], [2]])
    advantages = sign * torch.tensor([0.3, 0.2, 0.1])
    logp, old_logp = (torch.log_softmax(x, -1).gather(-1, actions).squeeze(-1) for x in (logits, old_logits))
    tolerance = {"ppo_clip": 1e-4, "reinforce": 1e-6}  # rlax states its number to 1e-4
    for name, value in expected.items():
        ours = LOSSES[name](logp, old_logp, advantages, clip_coef=EPS).mean().item()
        assert ours == pytest.approx(value, abs=tolerance[name])


# (where the ratio lies, does the gradient flow for A > 0, for A < 0)
REGIONS = [
    ("far below", True, False),
    ("just below lower bound", True, False),
    ("lower bound", True, True),
    ("inside", True, True),
    ("one", True, True),
    ("upper bound", True, True),
    ("just above upper bound", False, True),
    ("far above", False, True),
]


def ratio_in(region: str, dtype: torch.dtype) -> Tensor:
    lower, upper = bound(-1, dtype), bound(+1, dtype)

    def reachable(logratio: float) -> Tensor:
        return torch.exp(torch.tensor(logratio, dtype=dtype))

    return {
        "far below": reachable(-1.2),
        "just below lower bound": next_after(lower, -math.inf),
        "lower bound": lower,
        "inside": reachable(0.1),
        "one": torch.tensor(1.0, dtype=dtype),
        "upper bound": upper,
        "just above upper bound": next_after(upper, math.inf),
        "far above": reachable(1.1),
    }[region]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("region", "positive", "negative"), REGIONS)
@pytest.mark.parametrize("loss", PPO_LIKE)
def test_gradient_in_every_region(loss, region, positive, negative, dtype):
    """-A * ratio where the gradient flows and 0 where the clip is active, at the bounds exactly and beside them.

    The advantage is a power of two, whose products are exact: no rounding tie can hide which side of a bound we are on.
    """
    ratio = ratio_in(region, dtype)
    logp, old_logp = logratio_for(ratio), torch.zeros((), dtype=dtype)
    for A, flows in ((0.5, positive), (-0.5, negative)):
        advantage = torch.tensor(A, dtype=dtype)
        expected = -advantage * ratio if flows else torch.zeros((), dtype=dtype)
        assert torch.equal(gradient(loss, logp, old_logp, advantage), expected), f"A = {A}"
        assert bool(clip_active(ratio, advantage, clip_coef=EPS)) is not flows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("region", [region for region, _, _ in REGIONS])
@pytest.mark.parametrize("loss", PPO_LIKE)
def test_zero_advantage_has_zero_gradient(loss, region, dtype):
    logp = logratio_for(ratio_in(region, dtype))
    zero = torch.zeros((), dtype=dtype)
    assert torch.equal(gradient(loss, logp, zero, zero), zero)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("side", [+1, -1])
def test_rounding_tie_just_outside_a_bound_halves_the_gradient(dtype, side):
    """The third case: ratio*A rounds to the same number as bound*A, and half of PPO's gradient dies in the clamp."""
    edge = bound(side, dtype)
    ratio = next_after(edge, side * math.inf)
    advantages = side * torch.linspace(0.5, 2, 4001, dtype=torch.float64).to(dtype)
    tied = advantages[(ratio * advantages) == (edge * advantages)]
    assert len(tied) > 0
    A = tied[0]
    logp, old_logp = logratio_for(ratio), torch.zeros((), dtype=dtype)
    assert bool(clip_active(ratio, A, clip_coef=EPS))
    half = (-A * ratio) / 2
    assert torch.equal(gradient(ppo_clip, logp, old_logp, A), half)
    assert torch.equal(gradient(reinforce, logp, old_logp, A), half)
    assert gradient(reinforce_mask, logp, old_logp, A) == 0, "the literal rule, w = ratio or 0, misses the tie"
    assert ppo_share(ratio, A, clip_coef=EPS) == 0.5


@settings(max_examples=150, deadline=None)
@given(
    n=st.one_of(st.integers(1, 4096), st.sampled_from([1, 2, 64, 128, 4096])),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.0, 1e-3, 0.3, 3.0]),
)
def test_reinforce_has_ppos_gradient_to_the_last_bit(n, dtype, seed, spread):
    batch = samples(n, dtype, seed, spread)
    assert torch.equal(gradient(reinforce, *batch), gradient(ppo_clip, *batch))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_textbook_order_is_equal_at_powers_of_two_only(dtype):
    def differing(n: int) -> float:
        batch = samples(n, dtype, seed=n)
        ours, ppo = gradient(reinforce_textbook, *batch), gradient(ppo_clip, *batch)
        assert torch.allclose(ours, ppo, rtol=4 * torch.finfo(dtype).eps, atol=0)
        return (ours != ppo).double().mean().item()

    assert all(differing(n) == 0 for n in (1, 2, 64, 128, 1024, 4096))
    assert all(0.1 < differing(n) < 0.5 for n in (100, 200, 1000, 3000))


def test_mask_differs_from_ppo_only_on_ties_in_bfloat16():
    batch = samples(271_200, torch.bfloat16, seed=0)
    ppo, mask = gradient(ppo_clip, *batch, scale=2**18), gradient(reinforce_mask, *batch, scale=2**18)
    differs = ppo != mask
    share = ppo_share(torch.exp(batch[0] - batch[1]), batch[2], clip_coef=EPS)
    assert 0 < differs.sum() < 1000
    assert torch.equal(differs, (share == 0.5) & (batch[2] != 0))


@pytest.mark.parametrize("n", [500, 1000, 4096])
def test_pure_float16_differs_only_where_half_of_the_incoming_gradient_is_subnormal(n):
    batch = samples(n, torch.float16, seed=n)
    smallest_normal = torch.finfo(torch.float16).smallest_normal

    def differing(scale: float) -> Tensor:
        differs = gradient(ppo_clip, *batch, scale=scale) != gradient(reinforce, *batch, scale=scale)
        half_incoming = (0.5 * scale * batch[2].double() / n).abs()
        assert (half_incoming[differs] < smallest_normal).all()
        return differs.sum()

    unscaled, scaled = differing(1), differing(1024)
    assert unscaled > 0
    assert scaled <= 1, "a scaled loss keeps the halves normal, but for an advantage of 1e-4"


def test_overflowing_ratio_gives_ppo_a_nan_gradient_and_reinforce_zero():
    logp, old_logp, A = torch.tensor([100.0]), torch.tensor([0.0]), torch.tensor([1.0])
    assert ppo_clip(logp, old_logp, A, clip_coef=EPS).item() == pytest.approx(-1.2)
    assert gradient(ppo_clip, logp, old_logp, A).isnan().all()
    for loss in (reinforce, reinforce_textbook, reinforce_mask):
        assert torch.equal(gradient(loss, logp, old_logp, A), torch.zeros(1))


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 11.09), (torch.float32, 88.7)], ids=str)
def test_where_the_ratio_overflows(dtype, largest):
    A, old_logp = torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype)
    below, above = (torch.tensor([largest + d], dtype=dtype) for d in (-0.1, 0.1))
    assert gradient(ppo_clip, below, old_logp, A).item() == 0
    assert gradient(ppo_clip, above, old_logp, A).isnan().all()
    assert gradient(reinforce, above, old_logp, A).item() == 0


INFINITE = {torch.float64: 800.0, torch.float32: 100.0, torch.bfloat16: 100.0, torch.float16: 20.0}


@pytest.mark.parametrize(("dtype", "logratio"), INFINITE.items(), ids=str)
def test_an_infinite_ratio_for_every_sign_of_the_advantage(dtype, logratio):
    logp, old_logp = torch.tensor([logratio], dtype=dtype), torch.zeros(1, dtype=dtype)

    def grad(loss, A: float) -> float:
        return gradient(loss, logp, old_logp, torch.tensor([A], dtype=dtype)).item()

    assert math.isnan(grad(ppo_clip, 1.0))
    assert math.isnan(grad(ppo_clip, 0.0))
    assert grad(reinforce, 1.0) == grad(reinforce, 0.0) == 0
    for loss in PPO_LIKE:
        assert grad(loss, -1.0) == math.inf, "an unclipped infinite weight stays infinite: nothing hides it"


def test_impossible_action_makes_reinforces_value_nan_but_not_its_gradient():
    logp, old_logp, A = torch.tensor([-math.inf]), torch.tensor([-1.0]), torch.tensor([1.0])
    assert reinforce(logp, old_logp, A, clip_coef=EPS).isnan().all()
    assert torch.equal(gradient(reinforce, logp, old_logp, A), torch.zeros(1))


def test_infinite_float16_sum_can_have_finite_gradients():
    logp = torch.full((100,), -1000.0, dtype=torch.float16, requires_grad=True)
    total = reinforce(logp, logp.detach(), torch.full_like(logp, -1.0), clip_coef=EPS).sum()
    total.backward()
    assert total.item() == -math.inf
    assert torch.equal(logp.grad, torch.ones_like(logp))


def test_ppo_is_a_true_loss_and_reinforce_a_surrogate():
    """Autograd agrees with the numerical derivative of the value for PPO only; the two autograd gradients agree."""
    generator = torch.Generator().manual_seed(0)
    x, actions = torch.randn(64, 3, generator=generator).double(), torch.randint(0, 2, (64, 1), generator=generator)
    weight = torch.randn(3, 2, generator=generator).double()
    old_logp = torch.log_softmax(x @ (weight + 0.2), -1).gather(-1, actions).squeeze(-1)
    A = torch.randn(64, generator=generator).double()

    def value(loss, w: Tensor) -> Tensor:
        logp = torch.log_softmax(x @ w, -1).gather(-1, actions).squeeze(-1)
        return loss(logp, old_logp, A, clip_coef=EPS).mean()

    def autograd(loss) -> float:
        leaf = weight.clone().requires_grad_()
        return torch.autograd.grad(value(loss, leaf), leaf)[0][0, 0].item()

    def central_difference(loss, h: float = 1e-6) -> float:
        step = torch.zeros_like(weight)
        step[0, 0] = h
        return (value(loss, weight + step) - value(loss, weight - step)).item() / (2 * h)

    assert autograd(ppo_clip) == autograd(reinforce) != 0
    assert central_difference(ppo_clip) == pytest.approx(autograd(ppo_clip), rel=1e-6)
    assert central_difference(reinforce) != pytest.approx(autograd(reinforce), rel=0.1)


def test_values_differ_although_gradients_do_not():
    batch = samples(1000, torch.float64, seed=3)
    values = [loss(*batch, clip_coef=EPS).mean().item() for loss in (ppo_clip, reinforce)]
    assert abs(values[0] - values[1]) > 0.01


@pytest.mark.parametrize("loss", PPO_LIKE)
def test_unequal_shapes_and_dtypes_are_rejected(loss):
    ok = torch.zeros(4)
    with pytest.raises(ValueError, match=r"\(4,\), \(4, 1\) and \(4,\)"):
        loss(ok, ok.unsqueeze(1), ok, clip_coef=EPS)
    with pytest.raises(TypeError, match="float64"):
        loss(ok, ok.double(), ok, clip_coef=EPS)
    with pytest.raises(TypeError, match="int64"):
        loss(ok.long(), ok.long(), ok.long(), clip_coef=EPS)


def test_only_logp_carries_a_gradient_path_through_reinforce():
    logp, old_logp, A = (t.requires_grad_() for t in samples(8, torch.float64, seed=1))
    reinforce(logp, old_logp, A.detach(), clip_coef=EPS).sum().backward()
    assert logp.grad is not None
    assert old_logp.grad is None, "the weight must be cut off from old_logp too"
