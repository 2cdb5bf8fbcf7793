"""Claims are judged on run folders alone, and a broken mechanism makes each of them fail."""

import math
import shutil
import sys

import pandas as pd
import pytest
import yaml

from rlloss import figures, tables
from rlloss.claims import load_claims
from rlloss.claims.twins import Setting, judge_twins
from rlloss.config import load
from rlloss.losses import LOSSES
from rlloss.runs import RunFolder
from rlloss.runs.place import run_folder
from tests.helpers import write_config

CLAIMS = {claim.name: claim for claim in load_claims()}
ASKED = {name for name, claim in CLAIMS.items() if not claim.on_request}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_every_run_of_every_claim_composes_and_has_its_own_folder(name):
    for preset in ("quick", "paper"):
        configs = [load(overrides) for overrides in CLAIMS[name].runs(preset)]
        assert len({run_folder(config) for config in configs}) == len(configs)
        assert configs or CLAIMS[name].others(preset) or name in ("overflow", "proved"), "which train nothing"
    if configs and name in ASKED:  # on request others are tested otherwise
        assert len({config.seed for config in configs}) == 10
        assert {config.total_timesteps for config in configs} == {500_000}


LONGER = {"plateau": 3000, "early_stopping": 6000}  # environment steps, where 1,000 decide nothing


# Of a minibatch of 25 samples the halves are not small enough to be subnormal.
BATCHES = {"mixed_precision": ("num_envs=4", "num_steps=128")}


def small(name, make_run, *changes):
    """The claim's quick runs, shortened; ``changes`` maps an override to the one that takes its place."""
    swap = dict(change.split(">") for change in changes)
    short = (*BATCHES.get(name, ("num_envs=2",)), f"total_timesteps={LONGER.get(name, 1000)}")
    steps = {"num_steps=128": "num_steps=64", "num_steps=125": "num_steps=50"}

    def shorten(overrides):
        kept = [swap.get(o, steps.get(o, o)) for o in overrides if not o.startswith(("total_timesteps", "snapshot"))]
        return make_run(*kept, *short)

    return [shorten(overrides) for overrides in CLAIMS[name].runs("quick")]


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ("", True),
        pytest.param("learning_rate=0.003>learning_rate=1e-6", False, marks=pytest.mark.slow),
        pytest.param("loss=reinforce>loss=cispo", False, marks=pytest.mark.slow),
    ],
)
def test_more_environments_fails_with_another_gradient_and_where_nothing_is_clipped(make_run, change, holds):
    """On LunarLander; the others are tested one by one, in train/test_envs.py."""
    pytest.importorskip("Box2D", reason="pip install 'rlloss[box2d]'")
    swap = dict([change.split(">")] if change else [])
    short = ("num_envs=2", "num_steps=50", "total_timesteps=1000")
    lander = [overrides for overrides in CLAIMS["more_environments"].runs("quick") if "env=lunarlander" in overrides]
    runs = [make_run(*(swap.get(o, o) for o in overrides), *short) for overrides in lander]
    finding = CLAIMS["more_environments"].judge(runs)
    assert finding.holds is holds, finding
    assert finding.evidence["env"].tolist() == ["LunarLander-v3"]


@pytest.mark.slow
def test_identical_trajectories_holds_and_fails_with_the_textbook_order(make_run):
    claim = CLAIMS["identical_trajectories"]
    assert claim.judge(small(claim.name, make_run)).evidence["identical"].eq("2 of 2").all()
    broken = claim.judge(small(claim.name, make_run, "loss=reinforce>loss=reinforce_textbook"))
    assert not broken.holds
    assert broken.evidence.loc[broken.evidence["minibatch"] == 32, "identical"].eq("2 of 2").all()
    assert not broken.evidence.loc[broken.evidence["minibatch"] == 25, "identical"].eq("2 of 2").all()


def test_identical_trajectories_needs_an_active_clip(make_run):
    pair = [make_run("learning_rate=1e-6"), make_run("learning_rate=1e-6", "loss=reinforce")]
    finding = CLAIMS["identical_trajectories"].judge(pair)
    assert finding.evidence["identical"].tolist() == ["0 of 1"], "identical, but not put to the test"
    assert not finding.holds, "a run that clips nothing does not test the claim"


@pytest.mark.slow
def test_one_trajectory_holds_and_fails_if_one_of_the_four_or_klip_is_another(make_run):
    claim = CLAIMS["one_trajectory"]
    held = claim.judge(small(claim.name, make_run))
    assert held.holds
    assert (
        held.evidence.loc[held.evidence["loss"] == "klip", "identical to ppo_clip"].tolist() == ["1 of 1", "0 of 1"] * 2
    )
    for other in ("loss=klip_matched>loss=klip", "loss=ppo_masked>loss=cispo", "loss=klip>loss=klip_matched"):
        assert not claim.judge(small(claim.name, make_run, other)).holds, other


@pytest.mark.slow
def test_negative_controls_hold_and_fail_if_one_is_ppo_after_all(make_run):
    claim = CLAIMS["negative_controls"]
    held = claim.judge(small(claim.name, make_run))
    assert held.holds
    first = held.evidence.groupby("loss")["first step that differs"]
    assert first.max()["reinforce_undetached"] == first.max()["ppo_clip_ulp"] == 1, "already on-policy"
    assert first.min()["cispo"] > 1, "the first minibatch is on-policy"
    assert not claim.judge(small(claim.name, make_run, "loss=cispo>loss=reinforce")).holds


SECOND_ORDER = {  # what is exchanged -> whether the claim survives it
    "": True,
    "optimizer.penalty_coef=0.1>optimizer.penalty_coef=0": False,  # the rule is gone: nothing parts
    "optimizer.penalty_coef=0>optimizer.penalty_coef=0.1": False,  # the negative control is gone
    "optimizer.penalty_coef=1.0>optimizer.penalty_coef=1.01": False,  # H g is no derivative any more
    "optimizer.rho=1e-06>optimizer.rho=1.0": False,  # nor is the difference of gradients
    "loss=reinforce>loss=ppo_masked": False,  # nothing hides the ratio
    "loss=reinforce>loss=cispo": False,  # another gradient parts under SAM, too
    "loss=ppo_masked>loss=reinforce": False,  # the control hides it
}


@pytest.mark.parametrize("change", [pytest.param(c, marks=pytest.mark.slow) for c in SECOND_ORDER])
def test_second_order_needs_the_detached_weight_and_the_second_backward_pass(make_run, change):
    claim = CLAIMS["second_order"]
    finding = claim.judge(small(claim.name, make_run, *filter(None, [change])))
    assert finding.holds is SECOND_ORDER[change], finding
    if not change:
        table = finding.evidence.set_index(["condition", "loss"])
        assert table["first step that differs"].dropna().tolist() == [1, 1]
        errors = table["relative error of H g"].dropna().droplevel(0)
        assert errors["reinforce"] > 1 > 1e-5 > errors["ppo_clip"] == errors["ppo_masked"]


@pytest.mark.slow
def test_second_order_needs_runs_that_were_put_to_the_test(make_run):
    runs = small("second_order", make_run, "learning_rate=0.003>learning_rate=1e-6")
    assert not CLAIMS["second_order"].judge(runs).holds, "identical, but nothing was clipped"


TWIN_CLAIMS = {  # of conditions: the twin that takes the place of another, and makes everything the same, or nothing
    **dict.fromkeys(
        ("plateau", "early_stopping", "line_search", "best_checkpoint", "monitoring"),
        ("loss=reinforce>loss=ppo_clip", "loss=reinforce>loss=cispo"),
    ),
    "mixed_precision": (
        "loss=reinforce>loss=ppo_clip",
        "loss=reinforce>loss=cispo",
        "precision.loss_scale=1024>precision.loss_scale=1",
    ),
    "constant_offset": ("loss.offset=5>loss.offset=0", "loss.offset=5>loss=cispo"),
}


SLOWEST = ("mixed_precision", "constant_offset", "line_search", "plateau", "early_stopping")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOWEST)) for n in TWIN_CLAIMS])
def test_claims_about_conditions_fail_where_the_value_does_not_matter_and_where_the_gradient_differs(name, make_run):
    """What makes the twins one run, and what makes them two everywhere: neither can bear the claim out."""
    assert CLAIMS[name].judge(small(name, make_run)).holds, "unbroken, at this size"
    for other in TWIN_CLAIMS[name]:
        finding = CLAIMS[name].judge(small(name, make_run, other))
        assert not finding.holds, other


def wild_runs(make_run, loss, *with_guard):
    """The claim's seeds 1 and 2: in the second, log-densities leave float16's range at once."""
    wild = ("env=pendulum", "precision=fp16", "learning_rate=0.3", "num_envs=4", "num_steps=128", "total_timesteps=512")
    wild += ("on_nonfinite=record",)
    return [
        make_run(*wild, *guard, f"seed={seed}", f"loss={twin}")
        for guard in ((), with_guard)
        for seed in (1, 2)
        for twin in ("ppo_clip", loss)
    ]


def test_the_guard_parts_what_is_identical_without_it(make_run):
    claim = CLAIMS["guard"]
    guarded = ("guard=finite", "guard.monitor=policy_loss")
    held = claim.judge(wild_runs(make_run, "reinforce", *guarded))
    assert held.holds
    assert held.evidence["the same without guard"].tolist() == [True, True]
    assert held.evidence["the same with guard"].tolist() == [True, False]
    assert not claim.judge(wild_runs(make_run, "ppo_clip", *guarded)).holds, "one loss: the guard is the same for both"
    assert not claim.judge(wild_runs(make_run, "reinforce")).holds, "no guard"


def test_overflow_holds_and_fails_for_losses_that_overflow_otherwise(monkeypatch):
    claim = CLAIMS["overflow"]
    held = claim.judge([])
    assert held.holds
    table = held.evidence.set_index(["A", "loss", "intermediate"])
    assert table.loc[(1, "ppo_clip", "ρ"), "float16: value from"] == pytest.approx(math.log(65504), abs=0.02)
    assert table.loc[(1, "ppo_clip", "ρ"), "float32: value from"] == pytest.approx(math.log(3.4028e38), abs=0.02)
    assert table.loc[(-100, "ppo_clip", "ρ · A"), "float16: value from"] == pytest.approx(math.log(655.04), abs=0.02)
    assert math.isnan(table.loc[(1, "reinforce", "log π"), "float16: gradient from"]), "never"
    for name, other in (
        ("ppo_clip", "on_policy_ratio"),
        ("ppo_clip", "reinforce"),
        ("reinforce", "reinforce_unclipped"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(LOSSES, name, LOSSES[other])
            patch.setitem(claim.judge.__globals__, "table", lambda: held.evidence)
            assert not claim.judge([]).holds, other


PROVED = CLAIMS["proved"].judge.__globals__  # the claim's own file


@pytest.fixture(scope="module")
def proved():
    return CLAIMS["proved"].judge([])


@pytest.mark.slow
def test_proved_holds(proved):
    assert proved.holds, proved
    table = proved.evidence.set_index("losses")
    assert table["bitwise"].eq("proved").sum() == 3
    assert table["regions"]["ppo_clip and reinforce"] == 5
    assert table["bounds"]["ppo_clip and reinforce"] == 4, "two bounds of the ratio, and A = 0 outside of each"
    assert table["numbers"]["ppo_clip and cispo"].endswith("ρ = 2, A = 1, ε = 0.2: 0 and -1.2")
    assert (table["numbers"] == "none").equals(table["bitwise"] == "proved")


def test_what_z3_was_asked_before_does_not_show_in_the_table_of_proved(proved):
    """Its own numbers depend on that."""
    rows = proved.evidence.to_dict("records")
    for name, expected in PROVED["EXPECTED"].items():
        if expected[0] == "refuted":
            assert PROVED["row"](PROVED["Prover"](), name, *expected) in rows


def test_another_solver_settles_every_question_of_proved(proved):
    pytest.importorskip("cvc5", reason="pip install cvc5")
    assert proved.evidence["cvc5"].tolist() == ["unsat"] * 7 + ["sat"] * 5
    assert proved.summary.endswith("cvc5 comes to the same answer for 12 of 12")


@pytest.fixture
def few_pairs(monkeypatch):
    """Of each kind one pair."""
    expected = {name: PROVED["EXPECTED"][name] for name in ("klip_matched", "reinforce_textbook", "cispo")}
    monkeypatch.setitem(PROVED, "EXPECTED", expected)
    return CLAIMS["proved"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "other", "numbers"),
    [
        ("klip_matched", "cispo", "float64, N = 1, ρ = 2, A = 1, ε = 0.2: 0 and -1.2"),  # another gradient
        ("klip_matched", "reinforce_textbook", "float32"),  # other bits
        ("reinforce_textbook", "reinforce", "none"),  # the same bits
        ("cispo", "ppo_clip", "none"),  # no other gradient
    ],
)
def test_proved_fails_for_a_loss_that_is_another(few_pairs, monkeypatch, name, other, numbers):
    resolve = PROVED["resolve"]
    monkeypatch.setitem(PROVED, "resolve", lambda loss: resolve(other if loss == name else loss))
    finding = few_pairs.judge([])
    assert not finding.holds
    wrong = finding.evidence[~finding.evidence["as expected"]]
    assert wrong["losses"].tolist() == [f"ppo_clip and {name}"]
    assert wrong["numbers"].item().startswith(numbers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "wrong"),
    [
        ("sat", ["klip_matched", "reinforce_textbook"]),
        ("unsat", ["cispo"]),
        ("", ["klip_matched", "reinforce_textbook", "cispo"]),  # it choked on the question
        ("unknown", []),
        ("not installed", []),
    ],
)
def test_proved_fails_if_another_solver_contradicts(few_pairs, monkeypatch, word, wrong):
    monkeypatch.setitem(PROVED, "second_word", lambda question: word)
    finding = few_pairs.judge([])
    assert finding.holds is not bool(wrong)
    losses = finding.evidence.loc[~finding.evidence["as expected"], "losses"]
    assert losses.tolist() == [f"ppo_clip and {name}" for name in wrong]
    assert finding.summary.endswith("cvc5 is not installed") == (word == "not installed")


def test_without_another_solver_proved_rests_on_z3(few_pairs, monkeypatch):
    monkeypatch.setitem(sys.modules, "cvc5", None)
    finding = few_pairs.judge([])
    assert finding.holds
    assert finding.evidence["cvc5"].eq("not installed").all()


@pytest.mark.slow
def test_numbers_that_pytorch_does_not_bear_out_refute_nothing(few_pairs, monkeypatch):
    broken = {"gradient": lambda loss, ratio, A: A, "differing_bits": lambda f, g: ""}
    for name, function in broken.items():
        with monkeypatch.context() as patch:
            patch.setitem(PROVED, name, function)
            assert not few_pairs.judge([]).holds, name


def test_the_regions_of_the_figure_are_where_pytorch_has_these_gradients():
    """Each formula that the figure prints, at every point of its region; drawn twice it is the same."""
    prover, resolve = PROVED["Prover"](), PROVED["resolve"]
    values = {"0": lambda r, A: 0, r"-A\rho": lambda r, A: -A * r}
    values |= {rf"-A(1{sign}\epsilon)": lambda r, A, x=x: -A * x for sign, x in (("-", 0.8), ("+", 1.2))}
    for name, most in (("ppo_clip", 5), ("reinforce", 5), ("cispo", 3)):
        found = PROVED["seen_regions"](prover, resolve(name))
        assert len(found) == most
        for (_, (polynomial,)), inside in found:
            formula = values[PROVED["formula"](polynomial)]
            for i, j in list(zip(*inside.nonzero(), strict=True))[::37]:
                r, A = float(PROVED["RATIOS"][j]), float(PROVED["ADVANTAGES"][i])
                assert PROVED["gradient"](resolve(name), r, A) == pytest.approx(formula(r, A))


@pytest.mark.slow
def test_proved_is_drawn_the_same_whatever_was_proved_before(tmp_path):
    for name in "ab":
        with figures.style():
            figures.save(CLAIMS["proved"].figure([]), tmp_path / name)
    for kind in ("pdf", "png", "svg"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_a_pair_that_cannot_be_judged_bears_nothing_out(make_run, tmp_path):
    shutil.copytree(make_run("loss=reinforce").path, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text('{"status": "running"}')
    finding = judge_twins({"cut short": Setting((), same=False)}, [make_run(), RunFolder(tmp_path / "run")])
    assert not finding.holds, "unfinished is not parted"
    assert "0 parted; 1 cannot be judged" in finding.summary
    assert "is interrupted" in finding.evidence["first decision that differs (first seed)"][0]


def test_a_claim_about_decisions_needs_some(make_run):
    pair = [make_run(), make_run("loss=reinforce")]
    conditions = {"nothing decides": Setting((), same=True)}
    assert judge_twins(conditions, pair).holds
    assert not judge_twins(conditions, pair, decided=True).holds


def order_runs(make_run, loss):
    odd, even = "num_steps=50", "num_steps=64"
    longer = ("total_timesteps=4000", "snapshot_every=4", "learning_rate=0.003")
    conditions = ((even, *longer), (odd, *longer), (odd, "precision=fp64", *longer), (odd, "optimizer=sgd", *longer))
    return [make_run(*c, *other) for c in conditions for other in ((), (f"loss={loss}",))]


@pytest.mark.slow
def test_multiplication_order_fails_without_drift(make_run):
    judged = CLAIMS["multiplication_order"].judge(order_runs(make_run, "reinforce"))
    assert not judged.holds
    assert judged.evidence["as expected"].tolist() == [True, False, False, False]


@pytest.mark.slow
def test_multiplication_order_sees_the_drift_begin_as_rounding(make_run):
    evidence = CLAIMS["multiplication_order"].judge(order_runs(make_run, "reinforce_textbook")).evidence
    assert evidence["verdict"][0] == "IDENTICAL"
    assert evidence["verdict"][1:].isin(["ROUNDING", "DIVERGED"]).all()
    assert evidence["difference then"][1] > evidence["difference then"][2] > 0, "float64 begins smaller"


@pytest.mark.slow
def test_ppo_learns_fails_for_a_policy_that_does_not(make_run):
    idle = [make_run("learning_rate=1e-9", "total_timesteps=100000", "num_envs=4", "num_steps=128")]
    finding = CLAIMS["ppo_learns"].judge(idle)
    assert not finding.holds


def test_claims_hold_on_runs_that_bear_them_out(make_run):
    clipping = [make_run(), make_run("loss=reinforce")]
    assert CLAIMS["identical_trajectories"].judge(clipping).holds


@pytest.mark.parametrize(("compiled", "holds"), [("reinforce", True), ("reinforce_textbook", False)])
def test_compiled_needs_the_classes_of_eager_runs_and_only_shows_those_of_the_heuristics(
    make_run, tmp_path, compiled, holds
):
    """The runs are eager ones, and say that they are compiled."""
    runs = []
    for way in ({}, {"update": "compiled"}, {"update": "compiled", "compiler_heuristics": True}):
        second = compiled if way == {"update": "compiled"} else "reinforce_textbook" if len(way) > 1 else "reinforce"
        for said, trained in (("ppo_clip", "ppo_clip"), ("reinforce", second)):
            folder = tmp_path / f"{len(runs)}"
            shutil.copytree(make_run("num_steps=100", f"loss={trained}").path, folder)
            config = yaml.safe_load((folder / "config.yaml").read_text())
            config |= way
            config["loss"]["name"] = said
            write_config(folder, yaml.safe_dump(config))
            runs.append(RunFolder(folder))
    finding = CLAIMS["compiled"].judge(runs)
    assert finding.holds is holds
    assert finding.evidence["classes as in eager"].tolist() == [True, holds, False]
    assert finding.summary.endswith("other classes at minibatches of 100")


@pytest.mark.slow
def test_figures_are_byte_for_byte_the_same_when_made_twice(make_run, tmp_path):
    claim = CLAIMS["multiplication_order"]
    runs = order_runs(make_run, "reinforce_textbook")
    made = []
    for attempt in ("a", "b"):
        with figures.style():
            paths = figures.save(claim.figure(runs), tmp_path / attempt / "figure")
        made.append([path.read_bytes() for path in paths])
    assert made[0] == made[1]
    assert [path.suffix for path in paths] == [".pdf", ".png", ".svg"]
    assert made[0][0].startswith(b"%PDF")
    assert b"CreationDate" not in made[0][0]


def test_tables_in_their_forms():
    table = pd.DataFrame(
        {"name": ["a", "long name"], "value": [1.23456, 12345.6], "count": [1000, None], "ok": [True, False]}
    )
    lines = tables.text(table).splitlines()
    assert lines[2].split() == ["a", "1.235", "1000", "yes"]
    assert lines[3].split() == ["long", "name", "12,346", "–", "no"]
    assert tables.markdown(table).splitlines()[1] == "| --- | ---: | ---: | --- |"
