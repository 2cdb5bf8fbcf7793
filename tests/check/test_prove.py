"""Proofs of whole losses: what is proved, what is refuted and by which numbers, and what says that it is open."""

import json
import math
import re
import time

import pytest
import torch

from experiments.proved import second_words
from rlloss.check import assert_same_gradient, compare, prove
from rlloss.check.prove import Prover
from rlloss.check.result import Proof
from rlloss.check.subject import Batch, masks, probe_at
from rlloss.check.text import text
from rlloss.cli.main import main
from rlloss.errors import LossError
from rlloss.losses import LOSSES, SEQUENCE_LOSSES
from rlloss.losses.formulation import resolve
from rlloss.prove import backward
from tests.examples import hard_losses

F64 = torch.float64
TRAJECTORY = ("reinforce", "ppo_max", "ppo_clip_offset", "klip_matched")
EXACT_ONLY = ("reinforce_mask", "reinforce_textbook", "klip", "ppo_masked", "ppo_log_clamp")


def settle(f, g, **settings):
    return Prover(**settings).prove(*(resolve(loss) for loss in (f, g)))


@pytest.mark.parametrize("name", TRAJECTORY)
def test_the_losses_of_one_trajectory_are_proved_to_the_last_bit(name):
    proof, refutation = settle("ppo_clip", name)
    assert (proof.exact, proof.bitwise, refutation) == ("proved", "proved", None)
    assert proof.scope == "every input and batch size"


@pytest.mark.parametrize("name", EXACT_ONLY)
def test_exact_is_proved_and_bits_are_open(name):
    proof, refutation = settle("ppo_clip", name)
    assert (proof.exact, proof.bitwise, refutation) == ("proved", "open", None)
    assert proof.bits_why


@pytest.mark.parametrize(
    ("f", "g"),
    [
        ("ppo_unclipped", "reinforce_unclipped"),
        ("on_policy_ratio", "reinforce_plain"),
        ("reinforce_plain", "a2c"),
        ("reinforce_mask", "ppo_masked"),
    ],
)
def test_other_pairs_of_the_zoo_are_proved_to_the_last_bit(f, g):
    assert settle(f, g)[0].bitwise == "proved"


@pytest.mark.parametrize("name", ["cispo", "two_sided_mask", "dual_clip", "clip_higher", "spo", "klip_sigmoid_gate"])
def test_control_pairs_are_refuted_by_numbers_that_pytorch_agrees_to(name):
    proof, refutation = settle("ppo_clip", name)
    assert proof.exact == "refuted"
    probe = refutation.probe
    gradients = []
    for loss in ("ppo_clip", name):
        logp = probe.logp.clone().requires_grad_()
        LOSSES[loss](logp, probe.old_logp, probe.advantages, clip_coef=0.2).mean().backward()
        gradients.append(logp.grad)
    assert abs(gradients[0] - gradients[1]).max() > 1e-3 * abs(torch.cat(gradients)).max()
    assert (probe.logp <= 0).all()
    assert (probe.old_logp <= 0).all()


def test_a_proof_for_one_clip_coef():
    def fixed(logp, old_logp, advantages):
        ratio = torch.exp(logp - old_logp)
        return -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)

    def wider(logp, old_logp, advantages, *, clip_coef):
        return LOSSES["ppo_clip"](logp, old_logp, advantages, clip_coef=0.5 * clip_coef + 0.1)

    proof, _ = settle("ppo_clip", fixed)
    assert (proof.exact, proof.scope) == ("proved", "every input and batch size at clip_coef 0.2")
    assert settle("ppo_clip", fixed, clip_coef=0.3)[0].exact == "refuted"
    assert settle("ppo_clip", wider)[0].exact == "refuted", "they are one at 0.2 alone"
    assert settle("ppo_clip", wider, clip_coef=0.2)[0].exact == "proved"


@pytest.mark.slow
def test_a_difference_at_another_clip_coef_says_at_which():
    """Equal at 0.2, which is tried, and nowhere else; the proof is for any."""

    def wider(logp, old_logp, advantages, *, clip_coef):
        return LOSSES["ppo_clip"](logp, old_logp, advantages, clip_coef=0.5 * clip_coef + 0.1)

    result = compare("ppo_clip", wider, dtypes=(F64,))
    assert result.verdict == "DIFFERENT"
    assert result.example.clip_coef != 0.2
    assert result.example.gradients[0] != result.example.gradients[1]
    assert f"DIFFERENT at clip_coef {result.example.clip_coef:g}: ratio" in text(result)
    assert compare("ppo_clip", wider, dtypes=(F64,), clip_coef=0.2).proof.exact == "proved"


def test_an_edge_is_named_and_no_difference():
    def strict(logp, old_logp, advantages, *, clip_coef):
        ratio = torch.exp(logp - old_logp)
        cut = ((advantages > 0) & (ratio >= 1 + clip_coef)) | ((advantages < 0) & (ratio <= 1 - clip_coef))
        return -(torch.where(cut, 0.0, ratio) * advantages)

    proof, refutation = settle("ppo_clip", strict)
    assert (proof.exact, refutation) == ("edges", None)
    assert set(proof.edges) == {"ratio = 1 - ε", "ratio = 1 + ε"}


@pytest.mark.parametrize("at", ["A = 0", "on-policy"])
def test_a_tie_on_which_whole_batches_lie_is_a_difference(at):
    """Advantages of 0 and ratios of 1 have no volume, and are what first minibatches and equal rewards are made of."""

    def kinked(logp, old_logp, advantages, *, clip_coef):
        loss = LOSSES["ppo_clip"](logp, old_logp, advantages, clip_coef=clip_coef)
        extra = torch.exp(logp - old_logp)
        return loss + torch.where(advantages == 0 if at == "A = 0" else logp == old_logp, extra, 0.0)

    proof, refutation = settle("ppo_clip", kinked)
    assert proof.exact == "refuted"
    assert (refutation.probe.advantages == 0).all() if at == "A = 0" else refutation.probe.on_policy


NOT_FOLLOWED = {
    "numpy": "numpy",
    "python_if": "a Python if decides in Python",
    "own_function": "has a derivative of its own, by _Straight, an autograd.Function",
    "median": "median",
    "ranked": "sort",
}


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_what_no_graph_holds_is_open_and_says_so(name):
    proof, refutation = settle("ppo_clip", getattr(hard_losses, name))
    assert (proof.exact, proof.bitwise, refutation) == ("open", "open", None)
    assert NOT_FOLLOWED[name] in proof.why


@pytest.mark.slow
@pytest.mark.parametrize("name", hard_losses.FOLLOWED)
def test_harder_operations_are_followed(name):
    """gather, cumsum, prod, std, softmax, casts, .item() of metrics: each beside the same written otherwise."""
    proof, refutation = settle(*hard_losses.FOLLOWED[name])
    assert (proof.exact, refutation) == ("proved", None), proof.why
    wrong = hard_losses.WRONG[name]
    assert settle(hard_losses.FOLLOWED[name][0], wrong)[0].exact == "refuted"


def test_a_number_of_python_and_one_of_a_tensor_round_differently():
    """In bfloat16 PyTorch multiplies by a Python number in float32, and by a tensor's in bfloat16."""

    def python(logp, old_logp, advantages):
        return 0.2 * (logp * advantages)

    def tensor(logp, old_logp, advantages):
        return torch.full_like(logp, 0.2) * (logp * advantages)

    proof, _ = settle(python, tensor)
    assert (proof.exact, proof.bitwise) == ("proved", "open")
    assert settle(python, python)[0].bitwise == "proved"
    numbers = torch.linspace(0.5, 2, 193).bfloat16()
    assert not torch.equal(0.2 * numbers, torch.full_like(numbers, 0.2) * numbers)


def test_losses_that_couple_samples_are_asked_in_batches():
    def by_mean(logp, old_logp, advantages):
        return -(advantages - advantages.mean()) * logp

    def by_sum(logp, old_logp, advantages):
        return -(advantages - advantages.sum() / len(advantages)) * logp

    def leave_one_out(logp, old_logp, advantages):
        n = len(advantages)
        return -(advantages - (advantages.sum() - advantages) / max(n - 1, 1)) * logp

    proof, _ = settle(by_mean, by_sum)
    assert (proof.exact, proof.scope) == ("proved", "every input in batches of 1 to 3 samples")
    proof, refutation = settle(by_mean, leave_one_out)
    assert proof.exact == "refuted"
    assert refutation.probe.logp.numel() == 2


def test_masks_have_holes_late_starts_and_empty_answers():
    found = {batch.mask for batch in masks()}
    for rows in (((True, False, True),), ((False, True, True), (True, True, True)), ((False,) * 3, (True,) * 3)):
        assert rows in found or tuple(row[: len(rows[0])] for row in rows) in found
    assert len(found) == sum(2 ** (b * t) for b in (1, 2) for t in (1, 2, 3))


EQUAL_SEQUENCES = [("gspo", "gspo_token"), ("token_mean", "tests.examples.my_losses:token_mean")]


@pytest.mark.parametrize(("f", "g"), EQUAL_SEQUENCES)
def test_sequence_losses_are_proved_for_every_mask(f, g):
    proof, refutation = settle(f, g)
    assert (proof.exact, refutation) == ("proved", None), proof.why
    assert "mask of up to 2 × 3 tokens" in proof.scope


@pytest.mark.parametrize("name", [name for name in SEQUENCE_LOSSES if name != "grpo"])
def test_sequence_losses_that_differ_are_refuted(name):
    proof, refutation = settle("grpo", name)
    assert proof.exact == "refuted"
    assert refutation.real.any()


# -------------------------------------------------------------------------------------------- can it be fooled?


@pytest.mark.parametrize("op", ["minimum", "clamp", "exp", "where"])
def test_a_wrong_rule_of_differentiation_is_caught_before_anything_is_proved(op, monkeypatch):
    """What was found is held against autograd: a rule that is wrong on purpose never leads to a verdict."""
    right = backward.BACKWARD[op]
    monkeypatch.setitem(
        backward.BACKWARD, op, lambda c, *rest: [s if s is None else c.add(s, s) for s in right(c, *rest)]
    )
    proof, refutation = settle("ppo_clip", "dual_clip" if op == "where" else "cispo")
    assert (proof.exact, refutation) == ("open", None)
    assert "do not compute" in proof.why


def k3_below(most, ratio=None):
    """Samples whose k3 estimate of the KL divergence is small, and maybe whose ratio is, too."""

    def loss(logp, old_logp, advantages):
        logratio = logp - old_logp
        kept = logratio.exp() - 1 - logratio < most
        if ratio is not None:
            kept = kept & (logratio.exp() < ratio)
        return -torch.where(kept, logratio.exp(), 0.0) * advantages

    return loss


def test_a_number_that_does_not_differ_adds_the_lemma_that_it_violates(monkeypatch):
    """A k3 below 0.1 keeps the ratio below 1.5, which follows from exp's slope there, and from nothing simpler."""
    assert settle(k3_below(0.1), k3_below(0.1, 2))[0].exact == "proved"
    proof, refutation = settle(k3_below(0.1), k3_below(0.1, 1.3))
    assert proof.exact == "refuted"
    assert refutation.real.any()
    monkeypatch.setattr(prove.Question, "refine", lambda self: False)
    proof, refutation = settle(k3_below(0.1), k3_below(0.1, 2))
    assert (proof.exact, refutation) == ("open", None)


def test_bits_are_open_where_a_tensor_of_another_dtype_promotes_the_rest():
    """A float32 tensor of ones changes nothing in float64, and in bfloat16 the format of all that follows."""

    def plain(logp, old_logp, advantages):
        return -((logp - old_logp).exp() * advantages)

    def by_ones(logp, old_logp, advantages):
        return -((logp - old_logp).exp() * torch.ones(len(logp)) * advantages)

    def by_one(logp, old_logp, advantages):
        return -((logp - old_logp).exp() * torch.tensor(1.0) * advantages)

    proof, _ = settle(plain, by_ones)
    assert (proof.exact, proof.bitwise) == ("proved", "open")
    assert "two dtypes" in proof.bits_why
    assert settle(plain, by_one)[0].bitwise == "proved", "a number in a tensor promotes nothing"


def test_the_derivative_of_one_kernel_is_not_that_of_its_formula_bit_for_bit():
    """PyTorch computes the slope of var in an order of its own, which no formula in Python need have."""

    def of_var(logp, old_logp, advantages):
        return logp.var() + 0 * advantages

    def of_formula(logp, old_logp, advantages):
        return ((logp - logp.mean()) ** 2).sum() / max(len(logp) - 1, 1) + 0 * advantages

    proof, _ = settle(of_var, of_formula)
    assert (proof.exact, proof.bitwise) == ("proved", "open")
    assert settle(of_var, lambda logp, old_logp, advantages: of_var(logp, old_logp, advantages))[0].bitwise == "proved"


def test_the_logarithm_of_a_product_of_negative_numbers():
    def by_log(logp, old_logp, advantages):
        return -torch.where(torch.log(advantages * advantages) > 0, logp, 0.0) * advantages

    def by_size(logp, old_logp, advantages):
        return -torch.where(advantages.abs() > 1, logp, 0.0) * advantages

    def above_1(logp, old_logp, advantages):
        return -torch.where(advantages > 1, logp, 0.0) * advantages

    assert settle(by_log, by_size)[0].exact == "proved"
    proof, refutation = settle(by_log, above_1)
    assert proof.exact == "refuted"
    assert (refutation.probe.advantages < -1).all()


def test_a_tie_of_a_logarithm_and_its_exponential_that_no_number_has_is_no_edge():
    def above_its_slope(logp, old_logp, advantages):
        return -torch.where(logp.detach().exp() > logp.detach() + 1, logp, 0.0) * advantages

    def below_0(logp, old_logp, advantages):
        return -torch.where(logp.detach() < 0, logp, 0.0) * advantages

    assert settle(above_its_slope, below_0)[0].exact == "proved"


def test_a_refutation_that_pytorch_does_not_see_is_no_refutation(monkeypatch):
    monkeypatch.setattr(prove, "measure", lambda loss, probe, clip_coef: measured_once(probe))
    monkeypatch.setattr(prove.Subject, "hold_against_function", lambda self, batch: None)
    proof, refutation = settle("ppo_clip", "cispo")
    assert (proof.exact, refutation) == ("open", None)
    assert "computed ones do not" in proof.why


def measured_once(probe):
    from rlloss.check.measure import measure

    return measure(resolve("ppo_clip"), probe, 0.2)


@pytest.mark.parametrize(
    "name",
    [*TRAJECTORY, *EXACT_ONLY, "cispo", "two_sided_mask", "dual_clip", "clip_higher", "spo"],
)
def test_another_solver_comes_to_the_same_answer(name):
    prover = Prover()
    pair = resolve("ppo_clip"), resolve(name)
    expected = {"proved": "unsat", "refuted": "sat"}[prover.prove(*pair)[0].exact]
    assert second_words(prover.written(*pair)) == [expected]


@pytest.mark.slow
def test_another_solver_on_the_laws_of_exp_and_on_masks():
    prover = Prover()
    assert second_words(prover.written(resolve("on_policy_ratio"), resolve("reinforce_plain"))) == ["unsat"]
    answers = second_words(prover.written(resolve("grpo"), resolve("dr_grpo")))
    assert len(answers) == len(list(masks()))
    same = [all(n == b.shape[1] for n in map(sum, b.mask)) or not sum(map(sum, b.mask)) for b in masks()]
    assert [a == "unsat" for a, s in zip(answers, same, strict=True) if s] == [True] * sum(same)
    assert "sat" in answers


def test_a_question_that_cannot_be_written_says_why():
    with pytest.raises(LossError, match="numpy"):
        Prover().written(resolve("ppo_clip"), resolve(hard_losses.numpy))


@pytest.mark.slow
def test_every_pair_of_the_zoo_is_settled():
    """All pairs of per-sample losses, and what trying says of each; the issue's bound was 60 s on 2 cores."""
    from rlloss.check.matrix import matrix

    start = time.monotonic()
    table = matrix(list(LOSSES))
    print(f"{len(table)} pairs in {time.monotonic() - start:.1f} s")
    assert not (table["proof"] == "open").any()
    differ = (table["on-policy"] == "DIFFERENT") | (table["off-policy"] == "DIFFERENT")
    assert (differ == (table["proof"] == "refuted")).all()
    same = table[(table["on-policy"] == "IDENTICAL") & (table["off-policy"] == "IDENTICAL")]
    assert (same["proof"] == "bits").all()


def test_a_batch_of_found_numbers_fills_in_what_is_missing():
    probe = probe_at(Batch((2,)), {"logp[0]": -1.5, "A[1]": -2.0})
    assert probe.logp.tolist() == [-1.5, -1.0]
    assert probe.old_logp.tolist() == [-1.5, -1.0]
    assert probe.advantages.tolist() == [1.0, -2.0]
    assert probe.on_policy


def test_a_proof_says_what_it_holds_for():
    assert Proof("edges", "open").holds
    assert not Proof("open", "open").holds
    assert not Proof("refuted", "open").holds


def test_the_words_for_a_bound():
    proof, _ = settle("ppo_clip", hard_losses.strict_above)
    assert re.fullmatch(r"ratio = 1 \+ ε", proof.edges[0])
    assert math.isfinite(len(proof.edges))


# ------------------------------------------------------------------------------------------------ what users see


@pytest.mark.slow
def test_the_headline_says_how_a_verdict_is_known():
    def said(f, g):
        return text(compare(f, g, dtypes=(F64,))).splitlines()[0].split(": ", 1)[1]

    assert said("ppo_clip", "reinforce") == "IDENTICAL, proved for every input, dtype and batch size"
    assert said("ppo_clip", "reinforce_textbook") == "EQUAL, proved in exact arithmetic for every input and batch size"
    assert said("ppo_clip", "cispo") == "DIFFERENT: ratio 2, A = 1: gradients 0 and -1.2"
    assert said("ppo_clip", hard_losses.numpy).startswith("DIFFERENT")
    open_ = said("reinforce_unclipped", hard_losses.numpy)
    assert open_.startswith("IDENTICAL on all that was tried (not proved: ")
    assert "numpy" in open_


def test_json_has_the_proof(capsys):
    assert main(["check", "ppo_clip", "reinforce_mask", "--dtype", "float64", "--json"]) == 0
    proof = json.loads(capsys.readouterr().out)["proof"]
    assert proof["exact"] == "proved"
    assert proof["bitwise"] == "open"
    assert {"why", "scope", "edges"} <= set(proof)


@pytest.mark.slow
def test_an_assertion_may_ask_for_a_proof():
    assert_same_gradient("ppo_clip", "reinforce", proved=True, bitwise=True)
    assert_same_gradient("ppo_clip", "klip", proved=True, dtypes=(F64,))
    with pytest.raises(AssertionError, match="to the last bit not proved"):
        assert_same_gradient("ppo_clip", "ppo_masked", proved=True, bitwise=True, dtypes=(F64,))
    assert_same_gradient("reinforce_unclipped", hard_losses.numpy, dtypes=(F64,))
    with pytest.raises(AssertionError, match="not proved"):
        assert_same_gradient("reinforce_unclipped", hard_losses.numpy, proved=True, dtypes=(F64,))


def test_the_question_is_written_to_a_file(tmp_path, capsys):
    file = tmp_path / "question.smt2"
    assert main(["check", "ppo_clip", "reinforce", "--dtype", "float64", "--proof", str(file)]) == 0
    assert second_words(file.read_text()) == ["unsat"]
    assert str(file) in capsys.readouterr().err
    assert main(["check", "ppo_clip", "--proof", str(file)]) == 2
    assert "two losses" in capsys.readouterr().err
    assert main(["check", "ppo_clip", "reinforce", "--proof", str(file / "x.smt2")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
