"""The step by hand is autograd's to the last bit: the parameters after every step, and all that is reported of it."""

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.optim.optimizer import register_optimizer_step_post_hook

from rlloss.config import load
from rlloss.losses.samples import LOSSES
from rlloss.train.by_hand import HandStepper
from rlloss.train.loop import iterate
from rlloss.train.state import prepared
from rlloss.train.switches import deterministic
from rlloss.train.update import Batch, Stepper

SMALL = ("num_envs=2", "num_steps=40", "num_minibatches=2", "update_epochs=2", "learning_rate=0.01")


def trained(*overrides, iterations=4):
    """The kind of the stepper, a digest of every step, and the rows of metrics."""
    config = load([*SMALL, f"total_timesteps={80 * iterations}", *overrides])
    digests, rows = [], []
    with deterministic(config), prepared(config) as state:
        kind = type(state.stepper)
        for _ in range(iterations):
            done = iterate(state, lambda: digests.append(hashlib.sha256(state.policy.raw().data).hexdigest()))
            rows.append({name: value for name, value in done.row.items() if name != "steps_per_second"})
    return kind, digests, rows


def both(*overrides):
    """What the step by hand and autograd's leave: digests, and rows as texts, in which nan is itself."""
    (kind, digests, rows), (other, *theirs) = trained(*overrides), trained(*overrides, "update=autograd")
    assert (kind, other) == (HandStepper, Stepper)
    return (digests, repr(rows)), (theirs[0], repr(theirs[1]))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_has_the_bits_of_autograd(loss):
    by_hand, autograd = both(f"loss={loss}")
    assert by_hand == autograd


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "overrides",
    [
        ("precision=fp64",),
        ("clip_vloss=false", "max_grad_norm=0.3"),
        ("norm_adv=false",),
        ("ent_coef=0", "vf_coef=0"),
        ("ent_coef=0.3", "vf_coef=0.13", "clip_coef=0.05"),
        ("optimizer=sgd", "learning_rate=0.3"),
        ("optimizer=rmsprop",),
        ("optimizer.weight_decay=0.1", "max_grad_norm=inf"),
        ("loss.offset=5",),
        ("guard=finite", "schedule=plateau"),
        ("optimizer=sgd", "learning_rate=1e12", "on_nonfinite=record"),
        ("env=acrobot",),
        ("hidden_sizes=[7]",),
        ("hidden_sizes=[16,9,5]", "num_minibatches=5"),
        ("target_kl=0.001",),
        ("num_minibatches=80", "norm_adv=false"),
    ],
    ids=" ".join,
)
def test_in_every_setting_the_bits_are_those_of_autograd(overrides):
    by_hand, autograd = both(*overrides)
    assert by_hand == autograd


@settings(max_examples=15, deadline=None)
@given(
    loss=st.sampled_from(sorted(LOSSES)),
    steps=st.integers(2, 70),
    minibatches=st.sampled_from([1, 2]),
    width=st.integers(1, 70),
    seed=st.integers(0, 99),
    clip=st.floats(0.001, 0.9),
    dtype=st.sampled_from(["fp32", "fp64"]),
)
def test_at_any_size_the_bits_are_those_of_autograd(loss, steps, minibatches, width, seed, clip, dtype):
    by_hand, autograd = both(
        f"loss={loss}", f"num_steps={steps}", f"num_minibatches={minibatches}", f"hidden_sizes=[{width},{width}]",
        f"seed={seed}", f"clip_coef={clip}", f"precision={dtype}", f"total_timesteps={8 * steps}",
    )  # fmt: skip
    assert by_hand == autograd


def test_numbers_that_are_not_finite_spread_as_they_do_in_autograd():
    by_hand, autograd = both("learning_rate=1e30", "on_nonfinite=record", "schedule=constant")
    assert by_hand == autograd
    assert "'policy_loss': nan" in by_hand[1]


@pytest.mark.parametrize(
    "overrides",
    [
        ("env=pendulum",),
        ("precision=bf16_autocast",),
        ("precision=fp16", "precision.loss_scale=2"),
        ("optimizer=lbfgs",),
        ("optimizer=sam",),
        ("torch_threads=2",),
    ],
    ids=" ".join,
)
def test_what_is_not_written_out_is_left_to_autograd(overrides):
    assert not issubclass(trained(*overrides, iterations=1)[0], HandStepper)


@pytest.mark.parametrize("overrides", [(), ("guard=finite", "on_nonfinite=record")], ids=["fails", "guarded"])
def test_a_loss_that_is_wider_than_logp_keeps_its_range(tmp_path, monkeypatch, overrides):
    """Its total is beyond float32: neither a step is forbidden nor a run ended that autograd would go on with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wide.py").write_text(
        "def wide(logp, old_logp, advantages, *, clip_coef):\n"
        "    return 1e39 - (logp.double() - old_logp.double()).exp() * advantages.double() * 1e-3\n"
    )
    by_hand, autograd = both("loss=wide.py:wide", *overrides)
    assert by_hand == autograd
    assert "'skipped_steps': 0" in by_hand[1]


def test_one_stepper_takes_minibatches_of_any_size():
    """Its buffers are made for one size at a time."""
    config = load([*SMALL, "total_timesteps=80"])
    with deterministic(config), prepared(config) as state:
        plain = Stepper(state.policy, state.optimizer, state.stepper.objective, state.stepper.guard, math.inf)
        generator = torch.Generator().manual_seed(0)
        for size in (8, 5, 8, 1, 1, 130, 3):
            obs, columns = torch.randn(size, 4, generator=generator), torch.randn(4, size, generator=generator)
            actions = torch.randint(2, (size,), generator=generator)
            minibatch = Batch(obs, actions, *columns)
            ours = state.stepper.gradient_of(state.stepper.forward(minibatch)).clone()
            assert torch.equal(ours, plain.gradient_of(plain.forward(minibatch)))


def test_the_key_is_checked():
    with pytest.raises(Exception, match="update=fast: "):
        load(["update=fast"]).validate()


def test_the_gradient_is_that_of_autograd_number_by_number():
    config = load([*SMALL, "total_timesteps=80"])
    with deterministic(config), prepared(config) as state:
        norms = []
        original = state.stepper.gradient_of

        def both(terms):
            ours = original(terms).clone()
            plain = Stepper(state.policy, state.optimizer, state.stepper.objective, state.stepper.guard, math.inf)
            theirs = plain.gradient_of(plain.forward(batch[0]))
            assert torch.equal(ours, theirs)
            norms.append(float(ours.norm()))
            return theirs

        batch = [None]
        forward = state.stepper.forward
        state.stepper.forward = lambda minibatch: forward(batch.__setitem__(0, minibatch) or minibatch)
        state.stepper.gradient_of = both
        iterate(state, lambda: None)
    assert len(norms) == 4
    assert min(norms) > 0


@pytest.mark.parametrize("everywhere", [False, True])
def test_who_listens_to_the_optimiser_hears_every_step(everywhere):
    """By hooks, which Adam's kernel alone would not call: its bits are the same."""
    config = load([*SMALL, "total_timesteps=160"])
    heard = []
    digests = {}
    for listening in (False, True):
        with deterministic(config), prepared(config) as state:
            assert type(state.stepper) is HandStepper
            handle = None
            if listening:
                register = register_optimizer_step_post_hook if everywhere else state.optimizer.register_step_post_hook
                handle = register(lambda optimizer, *_: heard.append(optimizer))
            try:
                for _ in range(2):
                    iterate(state, lambda: None)
            finally:
                if handle is not None:
                    handle.remove()
            digests[listening] = state.policy.raw().tobytes()
            taken = int(state.optimizer.state_dict()["state"][0]["step"])
    assert len(heard) == taken == 8
    assert digests[True] == digests[False]
