"""The functions in the place of torch's: right to the last digit or nearly, differentiable as torch's, and put in."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rlloss.errors import ConfigError
from rlloss.losses import LOSSES
from rlloss.train import portable
from rlloss.train.portable import FUNCTIONS, PortableFunctions, portable_loss

NUMBERS = torch.cat([torch.linspace(-30, 30, 4001), torch.logspace(-12, 1.4, 500), -torch.logspace(-12, 1.4, 500)])
TORCH = {
    "sqrt": torch.sqrt,
    "expm1": torch.expm1,
    "log1p": torch.log1p,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
}


def domain(name, dtype):
    numbers = NUMBERS.to(dtype)
    return numbers.abs() if name == "sqrt" else numbers[numbers > -1] if name == "log1p" else numbers


def ulps(a, b):
    return float(((a - b).abs() / torch.from_numpy(np.spacing(np.abs(b.numpy())))).max())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_is_float64_rounded(name):
    """Against torch in float64: at most the last bit apart."""
    x = domain(name, torch.float32)
    assert ulps(FUNCTIONS[name](x), TORCH[name](x.double()).float()) <= 1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_is_as_near_as_torch_is(name):
    x = domain(name, torch.float64)
    assert ulps(FUNCTIONS[name](x), TORCH[name](x)) <= 16


def test_a_square_root_is_the_nearest_float():
    for x in np.random.default_rng(1).random(2000).astype(np.float32).tolist():
        root = Fraction(portable.sqrt(torch.tensor(x)).item())
        above, below = (Fraction(float(np.nextafter(np.float32(root), np.float32(to)))) for to in (10, 0))
        assert ((root + below) / 2) ** 2 < Fraction(x) < ((root + above) / 2) ** 2


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_the_function(name):
    x = domain(name, torch.float64)[::97].clone()
    x = (x.clamp(min=0.1) if name == "sqrt" else x).requires_grad_()  # for differences of 1e-6
    assert torch.autograd.gradcheck(FUNCTIONS[name], (x,))
    assert torch.autograd.gradgradcheck(FUNCTIONS[name], (x,))
    wanted = torch.autograd.grad(TORCH[name](x).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(FUNCTIONS[name](x).sum(), x)[0], wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_numbers_and_halves(name):
    x = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0])
    torch.testing.assert_close(FUNCTIONS[name](x), TORCH[name](x), rtol=0, atol=0, equal_nan=True)
    for dtype in (torch.float16, torch.bfloat16):
        x = domain(name, dtype)
        assert FUNCTIONS[name](x).dtype == dtype
        torch.testing.assert_close(FUNCTIONS[name](x), TORCH[name](x))


def test_the_actors_tanh_is_numpys_to_the_last_bit_or_so():
    x = np.linspace(-12, 12, 5001)
    for dtype in (np.float32, np.float64):
        apart = np.abs(portable.tanh(x.astype(dtype)) - np.tanh(x.astype(dtype)))
        assert (apart <= 2 * np.spacing(np.abs(np.tanh(x)).astype(dtype))).all()


def test_however_a_loss_calls_them():
    """As a function, a method, in place, as an operator; nothing of torch's own is left."""
    x = torch.rand(64, generator=torch.Generator().manual_seed(0))
    exact = torch.from_numpy(np.sqrt(x.numpy()))
    with PortableFunctions() as mode:
        for root in (torch.sqrt(x), x.sqrt(), x.clone().sqrt_(), x**0.5, x.pow(0.5), torch.pow(x, 0.5)):
            assert torch.equal(root, exact)
        assert torch.equal(x.expm1(), torch.special.expm1(x))
        big = torch.stack([x, -x]).double()
        torch.testing.assert_close(torch.logsumexp(big, 0), torch.log(x.double().exp() + (-x.double()).exp()))
        assert torch.logsumexp(torch.full((2, 3), -math.inf, dtype=torch.float64), 0).eq(-math.inf).all()
    assert mode.used
    with PortableFunctions() as mode:
        _ = x.exp() * 2 + x
    assert not mode.used


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_ours_has_a_portable_form_with_its_gradient(name):
    generator = torch.Generator().manual_seed(3)
    logp = (torch.randn(512, generator=generator) * 0.3 - 1).requires_grad_()
    old_logp, advantages = torch.randn(512, generator=generator) * 0.3 - 1, torch.randn(512, generator=generator)
    loss = portable_loss(LOSSES[name], name)
    ours, theirs = (
        torch.autograd.grad(each(logp, old_logp, advantages, clip_coef=0.2).sum(), logp)[0]
        for each in (loss, LOSSES[name])
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    if loss is LOSSES[name]:
        assert torch.equal(ours, theirs)


def with_roots(logp, old_logp, advantages, *, clip_coef):
    return -torch.sqrt((logp - old_logp).exp()) * advantages


def with_lgamma(logp, old_logp, advantages, *, clip_coef):
    return -torch.lgamma((logp - old_logp).exp()) * advantages


def with_gradient_of_atan(logp, old_logp, advantages, *, clip_coef):
    return -torch.atan(logp - old_logp) * advantages


def test_a_users_loss_is_given_exact_roots_or_is_refused_by_name():
    logp = torch.linspace(-2, -0.1, 999)
    zero, one = torch.zeros(999), torch.ones(999)
    replaced = portable_loss(with_roots, "mine.py:f")(logp, zero, one, clip_coef=0.2)
    assert torch.equal(replaced, -torch.from_numpy(np.sqrt(logp.exp().numpy())))
    for loss, what in ((with_lgamma, "digamma, lgamma"), (with_gradient_of_atan, "atan")):
        with pytest.raises(ConfigError, match=rf"loss=mine.py:f numerics=portable: torch's {what} is not known"):
            portable_loss(loss, "mine.py:f")


@pytest.mark.parametrize("name", ["RMSprop", "LBFGS"])
def test_optimisers_are_torchs_own_but_for_the_root(name):
    """RMSprop by its formula with NumPy's root, to the last bit; both within rounding of torch's."""
    start = torch.linspace(-1, 1, 300)
    leaves = []
    for kind in (getattr(portable, name), getattr(torch.optim, name)):
        leaf = start.clone().requires_grad_()
        optimizer = kind([leaf], lr=0.01)

        def closure(leaf=leaf, optimizer=optimizer):
            optimizer.zero_grad()
            value = (leaf.square() + leaf.cos()).sum()
            value.backward()
            return value

        for _ in range(3):
            optimizer.step(closure)
        leaves.append(leaf.detach())
    torch.testing.assert_close(*leaves)
    if name == "RMSprop":
        x, v = start.clone(), torch.zeros(300)
        for _ in range(3):
            leaf = x.clone().requires_grad_()
            gradient = torch.autograd.grad((leaf.square() + leaf.cos()).sum(), leaf)[0]
            v.mul_(0.99).addcmul_(gradient, gradient, value=1 - 0.99)
            x.addcdiv_(gradient, torch.from_numpy(np.sqrt(v.numpy())).add_(1e-8), value=-0.01)
        assert torch.equal(leaves[0], x)
