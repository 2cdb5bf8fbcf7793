"""Other people's losses: loaded from files and modules, called with care, and complained of in one clear line."""

import functools
import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlloss.check import compare
from rlloss.cli import main
from rlloss.errors import LossError
from rlloss.graph import trace
from rlloss.losses import ppo_clip
from rlloss.losses.formulation import Formulation, resolve
from rlloss.losses.signature import Binding
from rlloss.verdicts import Verdict
from tests.examples.my_losses import PolicyLoss, old_first, policy_loss, token_mean

DIFFERENT, IDENTICAL = Verdict.DIFFERENT, Verdict.IDENTICAL

EXAMPLES = "tests/examples/my_losses.py"
F32 = (torch.float32,)


@pytest.mark.parametrize(
    ("mine", "ours", "verdict"),
    [
        ("group_update", "ppo_clip", IDENTICAL),
        ("sign_forgotten", "ppo_clip", DIFFERENT),
        ("summed", "ppo_clip", DIFFERENT),
        ("minimum_of_ratios", "ppo_clip", DIFFERENT),
        ("token_mean", "dapo", DIFFERENT),
    ],
)
def test_the_examples(mine, ours, verdict):
    assert compare(f"{EXAMPLES}:{mine}", ours, dtypes=F32).verdict == verdict


def test_what_is_wrong_with_the_examples_is_said():
    assert compare("ppo_clip", f"{EXAMPLES}:sign_forgotten", dtypes=F32).factor == "-1"
    assert compare("ppo_clip", f"{EXAMPLES}:summed", dtypes=F32).factor == "N"
    regions = compare("ppo_clip", f"{EXAMPLES}:minimum_of_ratios", dtypes=F32).regions
    assert regions == ("A < 0: ratio < 0.8 or ratio > 1.2",)
    assert compare("grpo", f"{EXAMPLES}:token_mean", dtypes=F32).regions == (
        "on-policy, unequal lengths",
        "off-policy, unequal lengths",
    )


def write(tmp_path: Path, body: str, arguments: str = "logp, old_logp, advantages, *, clip_coef") -> str:
    """A file with ``def loss``; the body's lines are indented for it."""
    lines = "\n".join("    " + line for line in body.splitlines())
    (tmp_path / "mine.py").write_text(f"import torch\n\ndef loss({arguments}):\n{lines}\n")
    return f"{tmp_path / 'mine.py'}:loss"


SURROGATE = "-torch.exp(logp - old_logp) * advantages"
COMPLAINTS = {
    "an exception": ("x = 1\nx / 0", "mine.py:loss raised ZeroDivisionError: division by zero (mine.py, line 5)"),
    "our own complaint": ("import torch\nreturn logp @ torch.ones(3)", "mine.py:loss raised RuntimeError"),
    "a number": ("return 0.0", "returned float; it must return a tensor"),
    "nothing": ("return None", "returned NoneType; it must return a tensor"),
    "an empty tuple": ("return ()", "returned tuple; it must return a tensor"),
    "broadcasting": (
        f"return ({SURROGATE}).unsqueeze(1) * advantages", "returned shape (64, 64) for inputs of shape (64,)",
    ),
    "integers": ("return logp.long()", "returned torch.int64 for inputs of torch.float64"),
    "all detached": ("return -logp.detach() * advantages", "mine.py:loss has no gradient"),
    "through NumPy": ("return torch.from_numpy(logp.detach().numpy() * 1)", "mine.py:loss has no gradient"),
    "another leaf": ("w = torch.ones_like(logp).requires_grad_()\nreturn w * advantages", "no gradient with respect"),
    "NaN": ("return logp * torch.log(logp)", "its gradient is nan on an ordinary batch of (64,) float64"),
    "random": ("return logp * torch.rand_like(logp)", "gives another gradient when called again"),
    "in place on what is saved": (
        "y = torch.exp(logp)\nz = y * advantages\ny.add_(1)\nreturn z", "mine.py:loss: autograd raised",
    ),
}  # fmt: skip


@pytest.mark.parametrize("problem", COMPLAINTS)
def test_an_unusable_loss_is_one_clear_line(problem, tmp_path, capsys):
    body, message = COMPLAINTS[problem]
    spec = write(tmp_path, body)
    assert main(["check", "ppo_clip", spec]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err
    assert "mine.py:loss" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("logp, old_logp, *, clip_coef", "has no parameter for advantages (understood: logp, old_logp, clip_coef)"),
        ("x, y, *, clip_coef", "has no parameter for advantages (understood: x as logp, y as old_logp, clip_coef)"),
        ("x, advs, clip=0.2", "has no parameter for old_logp (understood: x as logp, advs as advantages"),
        ("x, tau=1.0, *rest", "has no parameter for old_logp and advantages"),
        ("logp, old_logp, advantages, values, *, clip_coef", "its parameter `values` (understood: logp, old_logp, adv"),
        ("logp, old_logp, advantages, mask, extra, *, clip_coef", "its parameter `extra` (understood: logp, old_logp,"),
        ("logp, old_logp, advantages, *, temperature", "its parameter `temperature`"),
        ("new_logps, old_logps, ref_logps, advantages, beta=0.05", "its parameter `ref_logps`"),
        ("logp, ref_logp, advantages", "its parameter `ref_logp` (understood: logp, advantages);"),
        ("prob, old_prob, adv", "its parameter `prob` (understood: adv as advantages"),
        ("ratio, advantages, clip_eps", "its parameter `ratio`"),
        ("neglogpac, old_neglogpac, advs", "its parameter `neglogpac`"),
        ("logp, logp_2, logp_3, advantages", "its parameter `logp_3`"),
        ("log_probs, old_log_probs, advantages, padding_mask", "its parameter `padding_mask`"),
        (
            "old_log_prob, log_prob, advantages, response_mask, config",
            "its parameter `config` (understood: old_log_prob",
        ),
    ],
)
def test_a_wrong_signature_is_named_before_anything_is_called(arguments, message, tmp_path, capsys):
    spec = write(tmp_path, "raise SystemExit('called')", arguments)
    assert main(["check", spec, "ppo_clip"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "wrap the loss: a loss takes (logp, old_logp, advantages, " in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.py:loss", "nowhere.py: no such file"),
        ("no.such.module:loss", "importing no.such.module raised ModuleNotFoundError"),
        (f"{EXAMPLES}:nothing", "nothing does not exist in tests/examples/my_losses.py; it has detached_ratio"),
        (f"{EXAMPLES}:torch", "torch is not a function"),
        (f"{EXAMPLES}:Trainer.nothing", "nothing does not exist in Trainer; it has loss, static_loss, class_loss"),
        (f"{EXAMPLES}:trainer.name", "trainer.name is not a function in tests/examples/my_losses.py; it has loss"),
        (f"{EXAMPLES}:trainer.broken", "broken of trainer raised KeyError: 'gone' (my_losses.py, line "),
        (
            f"{EXAMPLES}:Trainer.loss",
            f"LOSS={EXAMPLES}:Trainer.loss: is a method and needs its object; make it a @staticmethod, or name",
        ),
        (
            f"{EXAMPLES}:Trainer",
            f"LOSS={EXAMPLES}:Trainer: is a class; name a function in it (Class.function), or an instance of it",
        ),
        (f"{EXAMPLES}:PolicyLoss", "PolicyLoss: is a class; name a function in it"),
        ("ppo_clp", "did you mean ppo_clip"),
        ("rlloss.losses", "file.py:function"),
    ],
)
def test_a_loss_that_is_not_there(spec, message, capsys):
    assert main(["check", "ppo_clip", spec]) == 2
    err = capsys.readouterr().err
    assert message in err.replace("it has group_update, ", "it has ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("body", ["raise SystemExit(3)", "import nothing_of_the_kind", "1 / 0", "def ("])
def test_a_file_that_does_not_import(body, tmp_path, capsys):
    (tmp_path / "broken.py").write_text(body)
    assert main(["check", "ppo_clip", f"{tmp_path / 'broken.py'}:loss"]) == 2
    err = capsys.readouterr().err
    assert "broken.py raised" in err
    assert len(err.splitlines()) == 1


def test_a_detached_ratio_leaves_no_gradient(capsys):
    assert main(["check", "ppo_clip", f"{EXAMPLES}:detached_ratio"]) == 2
    assert "detached_ratio has no gradient" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_may_import_its_neighbour_and_a_module_is_found_from_here(tmp_path):
    (tmp_path / "helper.py").write_text("def ratio(logp, old):\n    return (logp - old).exp()\n")
    body = "from helper import ratio\nreturn -ratio(logp, old_logp) * advantages"
    assert compare("ppo_unclipped", write(tmp_path, body), dtypes=F32).verdict == IDENTICAL
    assert compare("ppo_unclipped", "rlloss.losses:reinforce_unclipped", dtypes=F32).verdict == IDENTICAL
    command = [sys.executable, "-m", "rlloss", "check", "ppo_unclipped", "mine:loss", "--dtype", "float32"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ppo_unclipped and mine:loss: IDENTICAL")


def test_inputs_are_copies_that_a_loss_may_spoil(tmp_path):
    body = f"loss = {SURROGATE}.clone()\nold_logp.zero_()\nadvantages.fill_(9)\nreturn loss.mean()"
    assert compare("ppo_unclipped", write(tmp_path, body), dtypes=F32).verdict == IDENTICAL


def test_a_loss_that_one_sample_makes_nan_is_compared_on_the_others(tmp_path):
    """Advantages normalised inside the loss: as many do, and with one sample there is nothing to divide by."""
    body = "A = (advantages - advantages.mean()) / (advantages.std() + 1e-8)\nreturn -torch.exp(logp - old_logp) * A"
    result = compare("ppo_unclipped", write(tmp_path, body), dtypes=F32)
    assert result.verdict == DIFFERENT
    assert any(", N = 1 " in line for line in result.not_finite)


def test_per_sample_scalar_and_tuple_are_the_same_loss():
    def scalar(*inputs, clip_coef):
        return ppo_clip(*inputs, clip_coef=clip_coef).mean()

    def with_metrics(*inputs, clip_coef):
        return ppo_clip(*inputs, clip_coef=clip_coef), {"clipped": 0.1}, "more"

    for loss in (scalar, with_metrics):
        assert compare(ppo_clip, loss, dtypes=F32).verdict == IDENTICAL


def test_resolve_knows_a_sequence_loss_by_its_mask():
    assert resolve("grpo").sequence
    assert resolve(f"{EXAMPLES}:token_mean").sequence
    assert not resolve("ppo_clip").sequence
    with pytest.raises(LossError, match=r"token_mean is a sequence loss.*ppo_clip is per sample"):
        compare(f"{EXAMPLES}:token_mean", "ppo_clip")


@pytest.mark.parametrize(
    "name",
    [
        "old_first", "Trainer.static_loss", "Trainer.class_loss", "trainer.loss", "policy_loss", "partial_loss",
        "without_clip_coef", "positions_alone", "positional_only", "keywords_only",
    ],
)  # fmt: skip
def test_a_per_sample_loss_as_people_have_it(name):
    ours = "ppo_unclipped" if name == "without_clip_coef" else "ppo_clip"
    assert compare(ours, f"{EXAMPLES}:{name}", dtypes=F32).verdict == IDENTICAL


@pytest.mark.parametrize(
    ("name", "mask_form", "advantage_form"),
    [
        ("trainer_names", "bool", "[batch]"),
        pytest.param("one_minus_mask", "float", "[batch]", marks=pytest.mark.slow),
        pytest.param("integer_mask", "int64", "[batch]", marks=pytest.mark.slow),
        pytest.param("column_of_advantages", "bool", "[batch, 1]", marks=pytest.mark.slow),
        ("advantages_per_token", "float", "[batch, tokens]"),
        pytest.param("in_float32", "bool", "[batch]", marks=pytest.mark.slow),
    ],
)
def test_a_sequence_loss_is_given_the_mask_and_the_advantages_that_it_takes(name, mask_form, advantage_form):
    formulation = resolve(f"{EXAMPLES}:{name}")
    assert formulation.sequence
    assert (formulation.mask_form, formulation.advantage_form) == (mask_form, advantage_form)
    verdict = compare(f"{EXAMPLES}:token_mean", f"{EXAMPLES}:{name}", dtypes=F32).verdict
    assert verdict in (Verdict.EQUAL, IDENTICAL)


def test_a_sequence_loss_that_no_trial_suits_is_refused_for_the_contract_s_own_form(tmp_path):
    spec = write(tmp_path, "return logp * advantages[:, None] * mask", "logp, old_logp, advantages, mask")
    with pytest.raises(LossError, match=r"returned shape \(3, 5\).*a scalar: average over the tokens.*mask.sum\(\)"):
        resolve(spec)
    spec = write(tmp_path, "return logp[mask].sum() * {}[mask.dtype, advantages.ndim]", "logp, old, advantages, mask")
    with pytest.raises(LossError, match=r"KeyError: \(torch.bool, 1\)"):
        resolve(spec)


def test_the_gradient_on_another_argument_is_found_where_places_decided(tmp_path):
    body = "return -torch.exp({} - {}) * z"
    with pytest.raises(LossError, match=r"gradient lies on its 2nd argument, `y`, and none on the 1st argument, `x`"):
        compare("ppo_clip", write(tmp_path, body.format("y", "x.detach()"), "x, y, z"), dtypes=F32)
    with pytest.raises(LossError, match=r"gradient lies on its 2nd argument, `logp_b`, and none on the 1st argument"):
        compare("ppo_clip", write(tmp_path, body.format("logp_b", "logp_a.detach()"), "logp_a, logp_b, z"), dtypes=F32)
    with pytest.raises(LossError, match=r"has no gradient: its result does not depend on logp"):
        compare("ppo_clip", write(tmp_path, body.format("y.detach()", "x.detach()"), "x, y, z"), dtypes=F32)
    named = write(tmp_path, "return -torch.exp(old_logp - logp.detach()) * adv", "logp, old_logp, adv")
    with pytest.raises(LossError, match=r"has no gradient: its result does not depend on logp"):
        compare("ppo_clip", named, dtypes=F32)


# Of a library: its loss's parameters, in its order; which of them are logp, old_logp, advantages, the lower and the
# upper half-width, and the mask. All others keep their defaults.
SIGNATURES = {
    "verl": ("old_log_prob, log_prob, advantages, response_mask, cliprange=None, cliprange_low=None, "
             "cliprange_high=None, clip_ratio_c=3.0, loss_agg_mode='token-mean'",
             "log_prob old_log_prob advantages cliprange_low cliprange_high response_mask"),
    "verl, registered": ("old_log_prob, log_prob, advantages, response_mask, loss_agg_mode='x', config=None, "
                         "rollout_is_weights=None", "log_prob old_log_prob advantages 0.2 0.2 response_mask"),
    "EasyR1": ("old_log_probs, log_probs, advantages, response_mask, clip_ratio_low, clip_ratio_high, "
               "clip_ratio_dual=3.0",
               "log_probs old_log_probs advantages clip_ratio_low clip_ratio_high response_mask"),
    "TRL, GRPO": ("per_token_logps, old_per_token_logps, advantages, completion_mask, epsilon_low=0.2, "
                  "epsilon_high=0.2, ref_per_token_logps=None, beta=0.0, delta=None",
                  "per_token_logps old_per_token_logps advantages epsilon_low epsilon_high completion_mask"),
    "TRL, PPO": ("new_logprobs, mb_logprobs, mb_advantage, cliprange=0.2, *, padding_mask=None",
                 "new_logprobs mb_logprobs mb_advantage cliprange cliprange"),
    "OpenRLHF": ("log_probs, old_log_probs, advantages, action_mask=None, rollout_log_probs=None, clip_eps_low=0.2, "
                 "clip_eps_high=0.2, dual_clip=None",
                 "log_probs old_log_probs advantages clip_eps_low clip_eps_high action_mask"),
    "CleanRL": ("newlogprob, b_logprobs, mb_advantages, clip_coef, norm_adv=True",
                "newlogprob b_logprobs mb_advantages clip_coef clip_coef"),
    "CleanRL, its batch first": ("b_logprobs, newlogprob, b_advantages, clip_coef=0.1",
                                 "newlogprob b_logprobs b_advantages clip_coef clip_coef"),
    "Stable-Baselines3": ("advantages, log_prob, old_log_prob, clip_range",
                          "log_prob old_log_prob advantages clip_range clip_range"),
    "torchrl": ("log_prob, prev_log_prob, advantage, clip_epsilon=0.2, entropy_coeff=0.01",
                "log_prob prev_log_prob advantage clip_epsilon clip_epsilon"),
    "torchrl, another": ("sample_log_prob, action_log_prob_old, gae, *, eps",
                         "sample_log_prob action_log_prob_old gae eps eps"),
    "tianshou": ("logp, logp_old, adv, eps_clip=0.2, dual_clip=None", "logp logp_old adv eps_clip eps_clip"),
    "Spinning Up": ("adv, logp_old, logp, clip_ratio=0.2", "logp logp_old adv clip_ratio clip_ratio"),
    "RLlib": ("curr_action_logp, action_logp, advantages, clip_param=0.1, kl_coeff=0.2",
              "curr_action_logp action_logp advantages clip_param clip_param"),
    "RLlib, its batch first": ("action_logp, curr_action_logp, advantages, clip_param",
                               "curr_action_logp action_logp advantages clip_param clip_param"),
    "RLlib, the older": ("prev_actions_logp, actions_logp, advantages, clip_param",
                         "actions_logp prev_actions_logp advantages clip_param clip_param"),
    "V-trace": ("behaviour_action_log_probs, target_action_log_probs, advantages",
                "target_action_log_probs behaviour_action_log_probs advantages 0.2 0.2"),
    "open-instruct": ("new_logprobs, old_logprobs, advantages, response_masks, clip_lower, clip_higher",
                      "new_logprobs old_logprobs advantages clip_lower clip_higher response_masks"),
    "nemo-rl": ("curr_logprobs, prev_logprobs, generation_logprobs, advantages, token_mask, ratio_clip_min=None, "
                "ratio_clip=0.2, reference_policy_logprobs=None",
                "curr_logprobs prev_logprobs advantages ratio_clip ratio_clip token_mask"),
    "AReaL": ("logprobs, proximal_logprobs, old_logprobs, advantages, eps_clip, loss_mask, eps_clip_higher=None, "
              "c_clip=None, behav_imp_weight_cap=None, importance_sampling_level='token'",
              "logprobs proximal_logprobs advantages eps_clip eps_clip_higher loss_mask"),
    "slime": ("log_probs, old_log_probs, advantages, eps_clip, eps_clip_high, loss_masks, eps_clip_c=None",
              "log_probs old_log_probs advantages eps_clip eps_clip_high loss_masks"),
    "slime, rollout": ("advantages, train_log_probs, rollout_log_probs, loss_masks, *, eps_clip",
                       "train_log_probs rollout_log_probs advantages eps_clip eps_clip loss_masks"),
    "unsloth": ("new, old, mask, advantages, epsilon_low=0.2, epsilon_high=0.2, beta=0.04",
                "new old advantages epsilon_low epsilon_high mask"),
    "vLLM's own": ("policy_logprobs, vllm_logps, advs, eos_mask, clip=0.2",
                   "policy_logprobs vllm_logps advs clip clip eos_mask"),
    "trlx": ("logprobs, old_logprobs, advantages, mask, cliprange, cliprange_value=0.2, vf_coef=1.0, values=None",
             "logprobs old_logprobs advantages cliprange cliprange mask"),
    "CS336": ("advantages, policy_log_probs, old_log_probs, cliprange",
              "policy_log_probs old_log_probs advantages cliprange cliprange"),
    "PyTorch-RL": ("advantages, fixed_log_probs, log_probs, clip_epsilon",
                   "log_probs fixed_log_probs advantages clip_epsilon clip_epsilon"),
    "ikostrikov": ("action_log_probs, old_action_log_probs_batch, adv_targ, clip_param",
                   "action_log_probs old_action_log_probs_batch adv_targ clip_param clip_param"),
    "rlpyt": ("logpi, old_logpi, A, ratio_clip, eps=1e-8", "logpi old_logpi A ratio_clip ratio_clip"),
    "TorchRL tutorials": ("logpi_new, logpi_mu, adv, epsilon", "logpi_new logpi_mu adv epsilon epsilon"),
    "camel case": ("oldLogProbs, newLogProbs, Advantages, clipEps",
                   "newLogProbs oldLogProbs Advantages clipEps clipEps"),
    "glued": ("oldlogps, actionlogprobs, advs, epsclip", "actionlogprobs oldlogps advs epsclip epsclip"),
    "numbered": ("logp0, logp_a, A_t, ε=0.1", "logp_a logp0 A_t ε ε"),
    "lp": ("old_lp, lp, returns, clip_low=0.2, clip_high=0.2", "lp old_lp returns clip_low clip_high"),
    "mu": ("log_mu, log_pi, advantages", "log_pi log_mu advantages 0.2 0.2"),
    "bounds": ("logp, old, adv, clip_low=0.8, clip_high=1.2", "logp old adv 0.2 0.2"),
    "GSPO": ("log_probs, old_log_probs, advantages, response_mask, epsilon=3e-4, eps=1e-6",
             "log_probs old_log_probs advantages epsilon epsilon response_mask"),
    "stored": ("logp_k, logp, A_hat, clip_eps=1e-5, cap_clip=2.0", "logp logp_k A_hat clip_eps clip_eps"),
    "a wide default": ("logp, log_probs_batch, adv, clip_coef=0.9, clip=10.0",
                       "logp log_probs_batch adv clip_coef clip_coef"),
    "a batch's": ("b_logprobs, logprobs, b_advantages", "logprobs b_logprobs b_advantages 0.2 0.2"),
    "sampling": ("sampling_logps, per_token_logps, advantages, completion_mask, old_per_token_logps=None, eps=0.2",
                 "per_token_logps sampling_logps advantages eps eps completion_mask"),
    "optional": ("logps, advantages, old_logps=None, rollout_logps=None, loss_mask=None",
                 "logps old_logps advantages 0.2 0.2 loss_mask"),
    "optional, the old one second": ("logps, advantages, rollout_logps=None, old_logps=None, m=None",
                                     "logps old_logps advantages 0.2 0.2 m"),
    "partly named": ("x, old, y, clip_eps", "x old y clip_eps clip_eps"),
    "two plain": ("logp, logq, advantages", "logp logq advantages 0.2 0.2"),
    "unnamed": ("x, y, z", "x y z 0.2 0.2"),
    "unnamed, four": ("x, y, z, w, scale=1.0", "x y z 0.2 0.2 w"),
    "unnamed, mask": ("x, y, z, mask", "x y z 0.2 0.2 mask"),
    "positional-only": ("old_logp, caps=[], logp=None, advantages=None, clip_eps=0.1, /",
                        "logp old_logp advantages clip_eps clip_eps"),
    "keyword-only": ("*, mask, adv, clip_eps, logp_old, logp", "logp logp_old adv clip_eps clip_eps mask"),
    "a gap": ("logp, temperature=1.0, old_logp=None, advantages=None, *more, eps=0.1, **rest",
              "logp old_logp advantages eps eps"),
}  # fmt: skip


def loss_of(parameters: str, roles: str):
    """A clipped loss with these parameters; it insists that those without a role kept their defaults."""
    new, old, adv, low, high, *mask = roles.split()
    lines = [
        f"def loss({parameters}):",
        "    kept(locals(), loss)",
        f"    ratio, A = torch.exp({new} - {old}), {adv}",
        f"    token = -torch.min(ratio * A, ratio.clamp(1 - {low}, 1 + {high}) * A)",
        f"    return (token * {mask[0]}).sum() / {mask[0]}.sum()" if mask else "    return token",
    ]
    if mask:
        lines[2] += "[:, None]"

    def kept(given, function):
        for name, p in inspect.signature(function).parameters.items():
            if name not in roles.split() and p.default is not p.empty:
                assert given[name] is p.default or name == "cliprange", name  # verl's third name of a half-width

    namespace = {"torch": torch, "kept": kept}
    exec("\n".join(lines), namespace)
    return namespace["loss"]


@pytest.mark.parametrize("library", SIGNATURES)
@pytest.mark.parametrize("seed", [0, 1])
def test_parameters_are_known_by_the_names_that_libraries_give_them(library, seed):
    parameters, roles = SIGNATURES[library]
    formulation = resolve(loss_of(parameters, roles))
    new, old, adv, low, _, *mask = roles.split()
    assert formulation.sequence == bool(mask)
    said = dict(formulation.binding.roles)
    assert [said[new], said[old], said[adv]] == ["logp", "old_logp", "advantages"]

    generator = torch.Generator().manual_seed(seed)
    shape = (6, 9) if mask else (64,)
    logp, old_logp = -torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    advantages = torch.randn(shape[:1], generator=generator, dtype=torch.float64)
    where = torch.rand(shape, generator=generator) < 0.7
    clip_coef = 0.2 if low == "0.2" else 0.3  # 0.3 is nobody's default; 0.2 is in the body of those that take none
    ours = token_mean if mask else ppo_clip
    gradients = []
    for loss in (formulation, ours):
        leaf = logp.clone().requires_grad_()
        given = (leaf, old_logp, advantages, *([where] if mask else []))
        gradients.append(torch.autograd.grad(loss(*given, clip_coef=clip_coef).mean(), leaf)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=0)


def test_half_widths_of_two_sizes_are_the_losss_own():
    """DAPO's 0.2 and 0.28: with one number in the place of both it would be another loss."""
    both = "logp, old_logp, advantages, clip_low=0.2, clip_high=0.28"
    own = loss_of(both, "logp old_logp advantages clip_low clip_high")
    assert [role for _, role in resolve(own).binding.roles] == ["logp", "old_logp", "advantages"]
    assert compare(own, "clip_higher", dtypes=F32).verdict == Verdict.IDENTICAL
    result = compare(own, "ppo_clip", dtypes=F32)
    assert result.verdict == Verdict.DIFFERENT
    assert result.called == ()


def test_a_half_width_in_the_place_of_a_default_is_said():
    narrow = loss_of("logp, old_logp, advantages, clip_range=0.1", "logp old_logp advantages clip_range clip_range")
    said = "loss with clip_range=0.2, whose default is 0.1: --clip-coef is handed to both losses"
    assert compare(narrow, "ppo_clip", dtypes=F32).called == (said,)
    assert compare(narrow, "ppo_clip", dtypes=F32, clip_coef=0.1).called == ()
    assert compare("reinforce", "ppo_clip", dtypes=F32).called == ()


@pytest.mark.slow
def test_a_wrapper_without_names_is_taken_for_the_contract():
    def anything(*args, **kwargs):
        return ppo_clip(*args, **kwargs)

    def positions(*args):
        return ppo_clip(*args, clip_coef=0.2)

    def names(**given):
        return ppo_clip(given["logp"], given["old_logp"], given["advantages"], clip_coef=given["clip_coef"])

    @functools.wraps(old_first)
    def wrapped(*args, **kwargs):
        return old_first(*args, **kwargs)

    @functools.wraps(policy_loss.forward)
    def wrapped_by_name(*args, clip_eps):
        return policy_loss(*args, clip_eps=clip_eps)

    for loss in (anything, positions, names, wrapped, wrapped_by_name):
        assert compare(ppo_clip, loss, dtypes=F32).verdict == IDENTICAL


def test_a_compiled_module_has_its_own_names():
    assert resolve(torch.compile(PolicyLoss())).binding == resolve(PolicyLoss()).binding != Binding()


def test_a_loss_without_an_old_policy():
    def vanilla(adv, logp):
        return -logp * adv

    assert compare("reinforce_plain", vanilla, dtypes=F32).verdict == IDENTICAL


def test_a_formulation_by_hand_follows_the_contract():
    one = Formulation("mine", token_mean, True)
    assert replace(one, name="other")(*sequences(), clip_coef=0.2) == one(*sequences(), clip_coef=0.2)
    assert replace(resolve("grpo"), name="other").binding == resolve("grpo").binding


def sequences():
    logp = torch.linspace(-1, -0.1, 6).view(2, 3)
    return logp.clone().requires_grad_(), logp.flip(1), torch.tensor([1.0, -1.0]), torch.ones(2, 3, dtype=torch.bool)


def test_the_graph_sees_a_loss_bound_by_name():
    graph, ours = trace(f"{EXAMPLES}:old_first"), trace("ppo_clip")
    assert [n.gradient for n in graph.nodes[:2]] == [n.gradient for n in ours.nodes[:2]]
    assert graph.nodes[3].gradient is None
    per_token = trace(f"{EXAMPLES}:advantages_per_token")
    for ours, theirs in zip(trace(f"{EXAMPLES}:token_mean").nodes[:4], per_token.nodes[:4], strict=True):
        assert theirs.gradient == pytest.approx(ours.gradient, rel=1e-12)
