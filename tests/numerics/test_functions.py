"""The functions in the place of torch's: right to the last digit or nearly, differentiable as torch's, and put in."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rlloss.errors import ConfigError, RunFailed
from rlloss.losses import LOSSES
from rlloss.train import optimizers, portable
from rlloss.train.portable import Portable, portable_loss
from tests.numerics.paths import python

NUMBERS = torch.cat([torch.linspace(-30, 30, 4001), torch.logspace(-12, 1.4, 500), -torch.logspace(-12, 1.4, 500)])
TORCH = {
    "sqrt": torch.sqrt,
    "expm1": torch.expm1,
    "log1p": torch.log1p,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
}


def ours(name):
    """The function as a loss calls it."""

    def function(x):
        with Portable():
            return TORCH[name](x)

    return function


def domain(name, dtype):
    numbers = NUMBERS.to(dtype)
    return numbers.abs() if name == "sqrt" else numbers[numbers > -1] if name == "log1p" else numbers


def ulps(a, b):
    return float(((a - b).abs() / torch.from_numpy(np.spacing(np.abs(b.numpy())))).max())


@pytest.mark.parametrize("name", TORCH)
def test_float32_is_float64_rounded(name):
    """Against torch in float64: at most the last bit apart."""
    x = domain(name, torch.float32)
    assert ulps(ours(name)(x), TORCH[name](x.double()).float()) <= 1


@pytest.mark.parametrize("name", TORCH)
def test_float64_is_as_near_as_torch_is(name):
    x = domain(name, torch.float64)
    assert ulps(ours(name)(x), TORCH[name](x)) <= 16


def test_a_square_root_is_the_nearest_float():
    for x in np.random.default_rng(1).random(2000).astype(np.float32).tolist():
        root = Fraction(ours("sqrt")(torch.tensor(x)).item())
        above, below = (Fraction(float(np.nextafter(np.float32(root), np.float32(to)))) for to in (10, 0))
        assert ((root + below) / 2) ** 2 < Fraction(x) < ((root + above) / 2) ** 2


@pytest.mark.parametrize("name", TORCH)
def test_gradients_are_those_of_the_function(name):
    """The derivative is torch's own formula, whose operations are replaced where it asks for them."""
    x = domain(name, torch.float64)[::97].clone()
    x = (x.clamp(min=0.1) if name == "sqrt" else x).requires_grad_()  # for differences of 1e-6
    with Portable() as mode:
        assert torch.autograd.gradcheck(TORCH[name], (x,))
        found = torch.autograd.grad(TORCH[name](x).sum(), x)[0]
    assert mode.used
    wanted = torch.autograd.grad(TORCH[name](x).sum(), x)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", TORCH)
def test_special_numbers_and_halves(name):
    x = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0])
    torch.testing.assert_close(ours(name)(x), TORCH[name](x), rtol=0, atol=0, equal_nan=True)
    for dtype in (torch.float16, torch.bfloat16):
        x = domain(name, dtype)
        assert ours(name)(x).dtype == dtype
        torch.testing.assert_close(ours(name)(x), TORCH[name](x))


def test_the_actors_tanh_is_numpys_to_the_last_bit_or_so():
    x = np.linspace(-12, 12, 5001)
    for dtype in (np.float32, np.float64):
        made = x.astype(dtype)
        portable.tanh(made)()
        apart = np.abs(made - np.tanh(x.astype(dtype)))
        assert (apart <= 2 * np.spacing(np.abs(np.tanh(x)).astype(dtype))).all()


def test_however_a_loss_calls_them():
    """As a function, a method, in place, as an operator, as a module; nothing of torch's own is left."""
    x = torch.rand(64, generator=torch.Generator().manual_seed(0))
    exact = torch.from_numpy(np.sqrt(x.numpy()))
    with Portable() as mode:
        raised = x.clone()
        raised **= 0.5
        roots = (torch.sqrt(x), x.sqrt(), x.clone().sqrt_(), x**0.5, x.pow(0.5), torch.pow(x, 0.5), raised)
        for root in (*roots, x.clone().pow_(0.5), torch.pow(input=x, exponent=0.5), torch.vmap(torch.sqrt)(x)):
            assert torch.equal(root, exact)
        assert torch.equal(torch.float_power(x, 0.5), torch.from_numpy(np.sqrt(x.double().numpy())))
        assert torch.equal(x.expm1(), torch.special.expm1(x))
        torch.testing.assert_close(torch.nn.Softplus(beta=2.0)(x), torch.log1p((2 * x).exp()) / 2)
        big = torch.stack([x, -x]).double()
        torch.testing.assert_close(
            torch.logsumexp(input=big, dim=0), torch.log(input=x.double().exp() + (-x.double()).exp())
        )
        assert torch.logsumexp(torch.full((2, 3), -math.inf, dtype=torch.float64), 0).eq(-math.inf).all()
        assert torch.equal(x ** torch.full((64,), 2.0), x**2)
    assert mode.used
    with Portable() as mode:
        _ = x.exp() * 2 + x
    assert not mode.used


def test_a_derivative_that_asks_for_a_root_gets_an_exact_one():
    x = torch.rand(999, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with Portable():
        (gradient,) = torch.autograd.grad((x**1.5).sum(), x)
    assert torch.equal(gradient, 1.5 * torch.from_numpy(np.sqrt(x.detach().numpy())))


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


class Doubled(torch.autograd.Function):
    """A user's own derivative, which asks for a root."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.sqrt(ctx.saved_tensors[0].abs())


def ratio(logp, old_logp):
    return (logp - old_logp).exp()


USERS = {
    "lgamma": lambda logp, old_logp, A, *, clip_coef: -torch.lgamma(ratio(logp, old_logp)) * A,
    "atan": lambda logp, old_logp, A, *, clip_coef: -torch.atan(logp - old_logp) * A,
    "sqrt": lambda logp, old_logp, A, *, clip_coef: torch.sqrt(A.abs(), out=torch.empty_like(A)) * -logp,
    "gelu": lambda logp, old_logp, A, *, clip_coef: -F.gelu(logp) * A,
}


@pytest.mark.parametrize("operation", USERS)
def test_a_loss_with_an_operation_that_is_not_known_is_refused_by_name(operation):
    with pytest.raises(ConfigError, match=rf"loss=mine.py:f numerics=portable: torch's {operation} is not known"):
        portable_loss(USERS[operation], "mine.py:f")


def test_a_branch_that_the_samples_did_not_take_is_a_failed_run():
    def branching(logp, old_logp, A, *, clip_coef):
        return -(torch.lgamma(ratio(logp, old_logp)) if len(logp) > 16 else logp) * A

    loss = portable_loss(branching, "mine.py:f")
    loss(*(torch.zeros(16),) * 3, clip_coef=0.2)
    with pytest.raises(RunFailed, match="torch's lgamma is not known to have the same bits"):
        loss(*(torch.zeros(17),) * 3, clip_coef=0.2)


def test_a_users_loss_is_given_exact_roots_forward_and_backward():
    def rooted(logp, old_logp, A, *, clip_coef):
        return -torch.sqrt(ratio(logp, old_logp)) * A

    def derived(logp, old_logp, A, *, clip_coef):
        return Doubled.apply(logp)

    logp = torch.linspace(-2, -0.1, 999, requires_grad=True)
    zero, one = torch.zeros(999), torch.ones(999)
    losses = portable_loss(rooted, "mine.py:f")(logp, zero, one, clip_coef=0.2)
    root = torch.from_numpy(np.sqrt(logp.detach().exp().numpy()))
    assert torch.equal(losses, -root)
    losses.sum().backward()
    torch.testing.assert_close(logp.grad, -root / 2)
    logp.grad = None
    portable_loss(derived, "mine.py:f")(logp, zero, one, clip_coef=0.2).sum().backward()
    assert torch.equal(logp.grad, torch.from_numpy(np.sqrt(logp.detach().abs().numpy())))


def test_a_loss_apart_has_the_gradient_of_the_loss_itself():
    """A mean over a minibatch, a loss that ignores logp, one that has no gradient at all."""
    generator = torch.Generator().manual_seed(1)
    logp, old_logp, A = (torch.randn(64, generator=generator) for _ in range(3))
    logp.requires_grad_()
    apart = portable_loss(lambda *args, **kwargs: LOSSES["ppo_clip"](*args, **kwargs), "mine.py:f")
    for loss in (apart, LOSSES["ppo_clip"]):
        loss(logp, old_logp, A, clip_coef=0.2).mean().backward()
    assert torch.equal(
        logp.grad, 2 * torch.autograd.grad(LOSSES["ppo_clip"](logp, old_logp, A, clip_coef=0.2).mean(), logp)[0]
    )
    still = portable_loss(lambda logp, old_logp, A, *, clip_coef: A * 1.0, "mine.py:f")
    total = still(logp, old_logp, A, clip_coef=0.2).mean() + (logp * 0).sum()
    total.backward()


@pytest.mark.parametrize("name", ["RMSprop", "LBFGS"])
def test_optimisers_are_torchs_own_but_for_the_root(name):
    """RMSprop by its formula with NumPy's root, to the last bit; both within rounding of torch's."""
    start = torch.linspace(-1, 1, 300)
    leaves = []
    for kind in (getattr(optimizers, name), getattr(torch.optim, name)):
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


@pytest.mark.parametrize("name", ["ppo_kl_penalty", "ppo_softmin", "mine.py:f"])
def test_second_derivatives_of_a_loss_apart_are_refused_and_not_dropped(name):
    loss = portable_loss(LOSSES.get(name, with_a_name), name)
    with pytest.raises(ConfigError, match=f"second derivatives of loss={name} are to be had in native numerics alone"):
        portable.refuse_second_derivatives(loss, name)
    portable.refuse_second_derivatives(portable_loss(LOSSES["ppo_clip"], "ppo_clip"), "ppo_clip")


def with_a_name(logp, old_logp, A, *, clip_coef):
    return -ratio(logp, old_logp) * A


def test_a_users_loss_that_is_not_portable_is_one_line_of_the_command(tmp_path):
    body = "return torch.lgamma(-logp) * advantages"
    (tmp_path / "mine.py").write_text(f"import torch\ndef f(logp, old_logp, advantages, *, clip_coef):\n    {body}\n")
    with pytest.raises(AssertionError, match=r"rlloss: loss=.*mine.py:f numerics=portable: torch's (di|l)gamma is not"):
        python("-m", "rlloss", "train", "numerics=portable", f"loss={tmp_path}/mine.py:f", f"run_dir={tmp_path}/run")
