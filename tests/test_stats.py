"""Aggregates over seeds: fixed numbers, the stratification, and what is said of identical pairs."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays

from rlloss.stats import (
    aggregate_table,
    estimate,
    iqm,
    iqm_interval,
    paired_difference,
    returns_table,
    training_return,
)

finite = st.floats(-1e6, 1e6)


def test_iqm_of_rliables_example():
    scores = np.array([[1, 2], [2, 2], [1, 1], [2, 1]], float)
    assert float(iqm(scores.ravel())) == np.mean(scores) == np.median(scores) == 1.5


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([1, 2, 3, 1000], 2.5), ([1, 2, 3, 4, 100], 3.0), ([7], 7), ([1, 9], 5), (range(1, 13), 6.5), ([5, 1, 3], 3)],
)
def test_iqm_leaves_out_a_quarter_at_either_end(scores, expected):
    assert float(iqm(np.array(scores, float))) == expected


@given(arrays.arrays(float, st.integers(1, 40), elements=finite))
def test_iqm_lies_between_the_quartiles_and_ignores_the_order(scores):
    found = float(iqm(scores))
    slack = 1e-9 * (1 + np.abs(scores).max())
    assert np.quantile(scores, 0.25, method="lower") - slack <= found
    assert found <= np.quantile(scores, 0.75, method="higher") + slack
    assert float(iqm(scores[::-1])) == found


def test_the_bootstrap_draws_within_each_task():
    """Two tasks without any spread of their own: however they are resampled, the estimate cannot move."""
    interval = iqm_interval([np.zeros(10), np.full(10, 100.0)])
    assert (interval.estimate, interval.low, interval.high) == (50.0, 50.0, 50.0)
    mixed = iqm_interval([np.concatenate([np.zeros(10), np.full(10, 100.0)])])
    assert mixed.low < 40 < 60 < mixed.high, "as one task the same scores do spread"


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = [
        interval.low <= 0 <= interval.high
        for interval in (iqm_interval([rng.standard_normal(30)], resamples=300, seed=i) for i in range(300))
    ]
    assert 0.88 <= np.mean(covered) <= 0.98, "a 95 % percentile interval of 30 scores; it is known to be a little short"


def test_intervals_are_reproducible_and_narrow_with_more_seeds():
    scores = np.random.default_rng(0).standard_normal(400)
    assert iqm_interval([scores]) == iqm_interval([scores])
    few, many = iqm_interval([scores[:10]]), iqm_interval([scores])
    assert many.high - many.low < few.high - few.low


def test_an_estimate_has_an_interval_from_five_scores_on_and_none_without_all_scores():
    assert estimate([np.array([1.0, 2.0, 6.0, 7.0])]) == "4.00"
    assert estimate([np.arange(5.0)]).startswith("2.00 [")
    assert estimate([np.arange(2.0), np.arange(3.0)]).startswith("0.67 ["), "the scores of all tasks count"
    missing = np.array([1.0, np.nan, 3.0, 4.0, 5.0])
    assert estimate([missing]) == "–", "a run without a finished episode is no best one"


def runs_of(make_run, loss, *overrides):
    return {seed: make_run(f"seed={seed}", f"loss={loss}", *overrides) for seed in (1, 2)}


def test_identical_pairs_are_called_identical_and_others_get_an_interval(make_run):
    ppo, twin, other = (runs_of(make_run, loss) for loss in ("ppo_clip", "reinforce", "cispo"))

    def difference(base, others):
        return paired_difference([(base, others, training_return)])

    assert difference(ppo, twin) == "identical"
    differences = [training_return(other[seed]) - training_return(ppo[seed]) for seed in (1, 2)]
    assert difference(ppo, other) == f"{np.mean(differences):.2f}", "two seeds have no interval"
    assert difference(ppo, {3: ppo[1]}) == "no seed in common"
    mixed = {1: twin[1], 2: other[2]}
    assert difference(ppo, mixed) != "identical", "one pair that differs is enough"
    table = returns_table([("short", run) for family in (other, twin, ppo) for run in family.values()])
    assert table["loss"].tolist() == ["ppo_clip", "cispo", "reinforce"]
    assert table["difference from the first loss"].tolist() == ["–", difference(ppo, other), "identical"]
    assert table["seeds"].tolist() == [2, 2, 2]


@pytest.mark.slow
def test_over_tasks_returns_are_placed_between_the_lowest_and_the_highest_of_their_environment(make_run):
    """CartPole with two discounts and Pendulum are three tasks on two environments; MountainCar tells nothing."""
    settings = {
        "cartpole": ("num_envs=2", "num_steps=200"),
        "discounted": ("num_envs=2", "num_steps=200", "gamma=0.9"),
        "pendulum": ("env=pendulum", "num_envs=2", "num_steps=200"),
        "mountaincar": ("env=mountaincar", "num_envs=2", "num_steps=200"),
    }
    runs = {
        (task, loss): runs_of(make_run, loss, *overrides)
        for task, overrides in settings.items()
        for loss in ("ppo_clip", "reinforce")
    }
    runs["cartpole", "cispo"] = runs_of(make_run, "cispo", *settings["cartpole"])
    flat = [("short", run) for seeds in runs.values() for run in seeds.values()]
    table = aggregate_table([*flat, ("alone", make_run("num_envs=2", "num_steps=200", "gamma=0.5"))])
    assert table["loss"].tolist() == ["ppo_clip", "reinforce"], "cispo ran on one task, the condition `alone` on one"
    assert table["tasks"].tolist() == [3, 3]
    assert table["runs"].tolist() == [6, 6]
    assert table["difference from the first loss"].tolist() == ["–", "identical"]
    returns = {"CartPole-v1": [], "Pendulum-v1": []}
    for _, run in [*flat, ("alone", make_run("num_envs=2", "num_steps=200", "gamma=0.5"))]:
        returns.get(run.config["env.id"], []).append(training_return(run))
    scores = []
    for task in ("cartpole", "discounted", "pendulum"):
        for run in runs[task, "ppo_clip"].values():
            low, high = (pick(returns[run.config["env.id"]]) for pick in (min, max))
            scores.append((training_return(run) - low) / (high - low))
    strata = [np.array(scores[i : i + 2]) for i in (0, 2, 4)]
    assert table["score, IQM [95 %]"].tolist() == [str(iqm_interval(strata))] * 2
    assert {0.0, 1.0} & set(scores), "an end of a range is a score of 0 or 1"
