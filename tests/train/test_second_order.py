"""Rules that step with another vector than the gradient: SAM, and a penalty on the gradient's norm."""

import math

import numpy as np
import pytest
import torch

from rlloss.config import load
from rlloss.config.schema import AdamConfig, Config, GradientPenaltyConfig, PrecisionConfig, SAMConfig, SGDConfig
from rlloss.errors import ConfigError, NonFinite, RunFailed
from rlloss.losses import LOSSES
from rlloss.runs import RunFolder
from rlloss.train import train
from rlloss.train.optimizers import make_optimizer
from rlloss.train.policy import ActorCritic, CategoricalHead
from rlloss.train.update import clip_grad_norm_
from rlloss.verify import compare_runs
from tests.helpers import assert_identical_though_clipped
from tests.train.test_update import PlainPPO, make_step, policy_and_batch

RULES = {"sam": "optimizer.rho", "gradient_penalty": "optimizer.penalty_coef"}
BASES = {"adam": ("learning_rate=0.01",), "sgd": ("learning_rate=0.2",)}


def gradient_of(loss, flat):
    """The mean loss's gradient at a small network's parameters, as a function of them."""
    policy = ActorCritic(3, CategoricalHead(3), (5,), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    actions = torch.randint(0, 3, (50,), generator=generator)
    old_logp = policy.evaluate(policy.named, obs, actions).logp.detach()
    old_logp = old_logp + 0.3 * torch.randn(50, generator=generator, dtype=torch.float64)
    A = torch.randn(50, generator=generator, dtype=torch.float64)
    parts = {
        name: flat[offset : offset + math.prod(shape)].view(shape) for name, (offset, shape) in policy.layout.items()
    }
    value = LOSSES[loss](policy.evaluate(parts, obs, actions).logp, old_logp, A, clip_coef=0.2).mean()
    return torch.autograd.grad(value, flat, create_graph=True)[0]


def hessians(loss):
    """At one point: the gradient, its derivative by autograd, and its derivative by central differences."""
    size = sum(math.prod(shape) for _, shape in policy_layout().values())
    flat = 0.5 * torch.randn(size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradient = gradient_of(loss, flat.requires_grad_())
    rows = [torch.autograd.grad(entry, flat, retain_graph=True)[0] for entry in gradient]
    differences = []
    for i in range(size):
        step = torch.zeros_like(flat)
        step[i] = 1e-6
        ahead, behind = (gradient_of(loss, (flat.detach() + s).requires_grad_()).detach() for s in (step, -step))
        differences.append((ahead - behind) / 2e-6)
    return gradient.detach(), torch.stack(rows), torch.stack(differences)


def policy_layout():
    return ActorCritic(3, CategoricalHead(3), (5,), generator=torch.Generator(), dtype=torch.float64).layout


def test_one_gradient_has_one_derivative_and_autograd_gives_it_for_ppo_alone():
    """science.md, section 7: the detach hides the weight from the second backward pass."""
    gradients, by_autograd, by_differences = zip(*map(hessians, ("ppo_clip", "reinforce", "ppo_masked")), strict=True)
    ppo, reinforce, masked = by_autograd
    for other in (1, 2):
        assert torch.equal(gradients[0], gradients[other])
        assert torch.equal(by_differences[0], by_differences[other]), "it is one function of the parameters"
    truth = by_differences[0]
    assert truth.abs().max() > 0.01
    torch.testing.assert_close(ppo, truth, rtol=0, atol=1e-8)
    torch.testing.assert_close(masked, truth, rtol=0, atol=1e-8)
    assert (reinforce - truth).abs().max() > 0.1 * truth.abs().max()


@pytest.mark.parametrize("loss", ["ppo_clip", "reinforce"])
@pytest.mark.parametrize("base", ["adam", "sgd"])
@pytest.mark.parametrize("rule", [SAMConfig(rho=0.3), GradientPenaltyConfig(penalty_coef=0.7)], ids=RULES)
def test_steps_are_those_of_the_formula_in_plain_pytorch(rule, base, loss):
    """The plain loss is PPO's. SAM with REINFORCE takes PPO's steps; the penalty with REINFORCE does not."""
    rule = type(rule)(base=base, **{rule.strength: getattr(rule, rule.strength)})
    policy, batch = policy_and_batch()
    config = Config(optimizer=rule, learning_rate=0.01)
    config.loss.name = loss
    plain = PlainPPO(policy)
    parameters = list(plain.parameters())
    theirs = (
        torch.optim.Adam(parameters, lr=0.01, eps=1e-5)
        if base == "adam"
        else torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    )
    stepper = make_step(policy, make_optimizer(rule, policy, 0.01), config)
    for _ in range(5):
        step = stepper(batch)
        gradients = torch.autograd.grad(plain.loss(batch, config), parameters, create_graph=True)
        theirs.zero_grad()
        if isinstance(rule, SAMConfig):
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            moves = [rule.rho * g.detach() / norm.detach() for g in gradients]
            moved(parameters, moves, 1)
            plain.loss(batch, config).backward()
            moved(parameters, moves, -1)
        else:
            penalty = 0.5 * rule.penalty_coef * sum((g**2).sum() for g in gradients)
            (plain.loss(batch, config) + penalty).backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        theirs.step()
        same = loss == "ppo_clip" or isinstance(rule, SAMConfig)
        assert torch.allclose(policy.flat.detach(), plain.flat(), rtol=1e-9, atol=1e-12) is same
        assert torch.allclose(step.grad_norm, norm) is same
        assert step.evaluations == (2 if isinstance(rule, SAMConfig) else 1)


@torch.no_grad()
def moved(parameters, moves, sign):
    for parameter, move in zip(parameters, moves, strict=True):
        parameter.add_(sign * move)


@pytest.mark.parametrize("loss", ["ppo_clip", "reinforce"])
@pytest.mark.parametrize("base", ["adam", pytest.param("sgd", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_of_strength_0_is_its_base_to_the_last_bit(make_run, rule, base, loss):
    plain = make_run(f"optimizer={base}", *BASES[base], f"loss={loss}")
    ruled = make_run(f"optimizer={rule}", f"optimizer.base={base}", f"{RULES[rule]}=0", *BASES[base], f"loss={loss}")
    assert np.array_equal(plain.digests, ruled.digests)
    strong = make_run(f"optimizer={rule}", f"optimizer.base={base}", *BASES[base], f"loss={loss}")
    assert not np.array_equal(plain.digests[0], strong.digests[0]), "at its default strength it is another rule"


@pytest.mark.parametrize("base", BASES)
def test_sam_cannot_tell_the_formulations_apart(make_run, base):
    settings = ("optimizer=sam", f"optimizer.base={base}", *BASES[base])
    assert_identical_though_clipped(make_run(*settings), make_run(*settings, "loss=reinforce"))
    assert (make_run(*settings).metrics["evaluations"] == 2 * 16).all()


@pytest.mark.parametrize("base", BASES)
def test_a_gradient_penalty_tells_them_apart_at_once_and_not_ppo_from_its_masked_form(make_run, base):
    settings = ("optimizer=gradient_penalty", f"optimizer.base={base}", *BASES[base])
    ppo, reinforce, masked = (make_run(*settings, f"loss={loss}") for loss in ("ppo_clip", "reinforce", "ppo_masked"))
    verdict = compare_runs(ppo, reinforce)
    assert verdict.first_difference == 1
    assert verdict.verdict == "DIVERGED"
    assert verdict.cause == "", "no condition decided anything"
    assert_identical_though_clipped_but_for_the_value(ppo, masked)


def assert_identical_though_clipped_but_for_the_value(a, b):
    assert compare_runs(a, b).verdict == "IDENTICAL"
    assert a.metrics["clip_active_frac"].sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp64", "bf16_autocast", "fp16_autocast", "bf16", "fp16"])
@pytest.mark.parametrize("rule", RULES)
def test_a_run_in_every_precision_but_that_with_a_scaler(make_run, rule, precision):
    settings = (f"optimizer={rule}", f"precision={precision}", "learning_rate=0.01")
    pair = [make_run(*settings, *loss) for loss in ((), ("loss=reinforce",))]
    assert (compare_runs(*pair).verdict == "IDENTICAL") is (rule == "sam")


@pytest.mark.slow
def test_a_rule_trains_from_pixels_and_on_gaussians(make_run):
    for rule in RULES:
        assert make_run(f"optimizer={rule}", "env=pendulum", "loss=reinforce").status == "finished"
    pytest.importorskip("ale_py", reason="pip install 'rlloss[atari]'")
    short = ("env=breakout", "num_steps=8", "num_minibatches=1", "update_epochs=1", "total_timesteps=32")
    for rule in RULES:
        assert make_run(f"optimizer={rule}", *short).status == "finished"


def test_sam_comes_back_from_its_second_point_to_the_last_bit():
    policy, batch = policy_and_batch(dtype=torch.float32)
    before = policy.flat.detach().clone()
    stepper = make_step(policy, make_optimizer(SAMConfig(), policy, 0.0), Config(optimizer=SAMConfig()))
    stepper(batch)
    assert torch.equal(policy.flat, before)


def test_a_number_that_is_not_finite_at_sams_second_point_leaves_the_parameters_as_they_were():
    policy, batch = policy_and_batch(dtype=torch.float32)
    before = policy.flat.detach().clone()
    stepper = make_step(policy, make_optimizer(SAMConfig(), policy, 0.1), Config(optimizer=SAMConfig()))
    objective, seen = stepper.objective, []

    def fails_elsewhere(parameters, minibatch):
        seen.append(policy.flat.detach().clone())
        terms = objective(parameters, minibatch)
        return terms if len(seen) == 1 else terms._replace(total_loss=terms.total_loss * math.nan)

    stepper.objective = fails_elsewhere
    with pytest.raises(NonFinite):
        stepper(batch)
    assert torch.dist(*seen).item() == pytest.approx(0.05, rel=1e-4), "rho"
    assert torch.equal(policy.flat, before)


def test_a_zero_gradient_leaves_sam_where_it_is():
    policy, batch = policy_and_batch(dtype=torch.float32)
    before = policy.flat.detach().clone()
    idle = Config(optimizer=SAMConfig(), vf_coef=0.0, ent_coef=0.0)
    still = batch._replace(advantages=torch.zeros_like(batch.advantages))
    step = make_step(policy, make_optimizer(SAMConfig(base="sgd"), policy, 0.1), idle)(still)
    assert step.grad_norm == 0
    assert torch.equal(policy.flat, before)


@pytest.mark.parametrize("rule", [SAMConfig(), GradientPenaltyConfig()], ids=RULES)
def test_a_loss_scale_moves_no_bit(rule):
    ends = []
    for scale in (1.0, 1024.0):
        policy, batch = policy_and_batch(dtype=torch.float32)
        config = Config(optimizer=rule, precision=PrecisionConfig("fp32", scale))
        stepper = make_step(policy, make_optimizer(rule, policy, 0.01), config)
        for _ in range(5):
            stepper(batch)
        ends.append(policy.flat.detach().clone())
    assert torch.equal(*ends)


ONCE = """\
import torch
from torch.autograd.function import once_differentiable


class Ratio(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logp, old_logp):
        ratio = torch.exp(logp - old_logp)
        ctx.save_for_backward(ratio)
        return ratio

    @staticmethod
    @once_differentiable
    def backward(ctx, incoming):
        return incoming * ctx.saved_tensors[0], None


def mine(logp, old_logp, advantages, *, clip_coef):
    return -(Ratio.apply(logp, old_logp).square() * advantages)
"""


def test_a_loss_that_torch_cannot_differentiate_twice_is_one_line(tmp_path):
    (tmp_path / "once.py").write_text(ONCE)
    short = ("num_steps=50", "total_timesteps=200", f"loss={tmp_path}/once.py:mine")
    with pytest.raises(RunFailed, match=r"cannot differentiate the loss twice .* optimizer=sam takes") as caught:
        train(load([*short, "optimizer=gradient_penalty"]), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert RunFolder(tmp_path / "run").status == "failed"
    assert math.isfinite(train(load([*short, "optimizer=sam"])).episodic_return)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer=sam optimizer.rho=-1", "optimizer.rho=-1.0: must be a finite number, 0 or greater"),
        ("optimizer=sam optimizer.rho=inf", "optimizer.rho=inf: must be a finite number, 0 or greater"),
        ("optimizer=gradient_penalty optimizer.penalty_coef=nan", "optimizer.penalty_coef=nan: must be a finite"),
        ("optimizer=sam optimizer.base=lbfgs", "optimizer.base=lbfgs: unknown; use one of adam, sgd"),
        (
            "optimizer=sam optimizer.momentum=0",
            "optimizer.momentum=0.0 with optimizer.base=adam: has no such key; leave it out, or use optimizer.base=sgd",
        ),
        (
            "optimizer=gradient_penalty optimizer.base=sgd optimizer.betas=[0.8,0.9]",
            "optimizer.betas=[0.8, 0.9] with optimizer.base=sgd: has no such key",
        ),
        ("optimizer=adam optimizer.rho=0.1", "only optimizer=sam has that key; add optimizer=sam"),
        ("optimizer.penalty_coef=0.1", "only optimizer=gradient_penalty has that key"),
        (
            "optimizer=sam precision=fp16_scaled",
            "optimizer=sam precision=fp16_scaled: torch's GradScaler takes one evaluation and one backward pass a "
            "step, SAM needs two; use precision=fp16_autocast, or another optimizer",
        ),
        (
            "optimizer=gradient_penalty precision=fp16_scaled",
            "the penalty needs two backward passes; use precision=fp16_autocast",
        ),
    ],
)
def test_what_cannot_work_is_one_line(override, message):
    with pytest.raises(ConfigError) as caught:
        load(override.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_torch_rejects_names_the_rule():
    policy, _ = policy_and_batch()
    with pytest.raises(ConfigError, match=r"optimizer=sam with .*beta"):
        make_optimizer(SAMConfig(betas=[2.0, 0.9]), policy, 0.1)


def test_the_base_gets_its_own_keys_and_no_other():
    policy, _ = policy_and_batch()
    for rule in (SAMConfig, GradientPenaltyConfig):
        for base, plain in (("adam", AdamConfig()), ("sgd", SGDConfig())):
            ours, theirs = make_optimizer(rule(base=base), policy, 0.1), make_optimizer(plain, policy, 0.1)
            assert type(ours) is type(theirs)
            assert ours.defaults == theirs.defaults


def test_the_clip_is_for_the_vector_that_steps():
    policy, batch = policy_and_batch(dtype=torch.float32)
    config = Config(optimizer=GradientPenaltyConfig(base="sgd", penalty_coef=50.0), max_grad_norm=0.5)
    step = make_step(policy, make_optimizer(config.optimizer, policy, 0.1), config)(batch)
    assert step.grad_norm > 0.5
    assert policy.flat.grad.norm().item() == pytest.approx(0.5, rel=1e-4)
    assert clip_grad_norm_(policy.flat.grad.clone(), math.inf).item() == pytest.approx(0.5, rel=1e-4)
