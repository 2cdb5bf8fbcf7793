"""Numbers from run folders: curves and summaries."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlloss.runs.reader import LAST_EPISODES, RunFolder
from rlloss.verify import REFERENCE


def training_return(run: RunFolder, episodes: int = LAST_EPISODES) -> float:
    """Mean undiscounted return of the last finished training episodes; nan if none finished."""
    return float(run.episodes["episodic_return"].tail(episodes).mean()) if len(run.episodes) else float("nan")


def return_curve(run: RunFolder, window: int = 20) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Environment steps, and the mean return of the ``window`` episodes that had finished by then."""
    if not len(run.episodes):
        return np.array([], np.int64), np.array([], np.float64)
    smooth = run.episodes.assign(smooth=run.episodes["episodic_return"].rolling(window, min_periods=1).mean())
    curve = smooth.drop_duplicates("env_steps", keep="last")  # episodes that end together are one point
    return curve["env_steps"].to_numpy(), curve["smooth"].to_numpy()


def mean_metric(run: RunFolder, metric: str) -> float:
    """The mean of a metric over all iterations."""
    return float(run.metrics[metric].mean())


def mean_and_std(values: pd.Series) -> str:
    """``mean ± standard deviation`` (over seeds; n - 1), as reference tables print it."""
    return f"{values.mean():.2f} ± {values.std():.2f}"


CONFIDENCE = 0.95
FEWEST = 5  # scores that an interval needs: the bootstrap's of two or three would be their least and greatest
RESAMPLES = 2000


def iqm(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Interquartile mean over the last axis: the mean without the lowest and the highest quarter of the scores.

    ``floor(n / 4)`` scores are cut from either end. More robust than the mean, and less noisy than the median.

    Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
    """
    cut = scores.shape[-1] // 4
    return np.asarray(np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut].mean(-1))


class Interval(NamedTuple):
    """A point estimate between the ends of its bootstrap interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


def iqm_interval(strata: Sequence[NDArray[np.floating]], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The interquartile mean over all scores, with its percentile interval from a stratified bootstrap.

    ``strata`` holds each task's scores over seeds; every resample draws anew within each task, never across them. The
    generator is seeded: the same scores give the same interval.

    Source: Agarwal et al. 2021; Efron 1979.
    """
    rng = np.random.default_rng(seed)
    draws = [scores[rng.integers(len(scores), size=(resamples, len(scores)))] for scores in strata]
    ends = np.quantile(iqm(np.concatenate(draws, axis=1)), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(iqm(np.concatenate(list(strata)))), *ends.tolist())


def is_same_run(a: RunFolder, b: RunFolder) -> bool:
    """Whether two runs have the same parameters after every optimiser step, and finished the same episodes."""
    return np.array_equal(a.digests, b.digests) and len(a.digests) > 0 and a.episodes.equals(b.episodes)


BySeed = Mapping[int, RunFolder]  # of one setting and loss on one task: its runs by seed
ByLoss = Mapping[str, BySeed]
Score = Callable[[RunFolder], float]


def returns_table(labelled: Sequence[tuple[str, RunFolder]]) -> pd.DataFrame:
    """A row per setting and loss: the return as an interquartile mean over seeds with its bootstrap interval.

    ``labelled`` names each run's setting, which the table calls its condition. The difference is that from the
    setting's first loss (PPO's, if it is there), paired seed by seed. Where every pair is one and the same run it says
    "identical": there is no distribution of differences to test.
    """
    rows = []
    for label, losses in by_task(labelled):
        first = min(losses, key=place)
        for loss, seeds in losses.items():
            config = next(iter(seeds.values())).config
            difference = "–" if loss == first else paired_difference([(losses[first], seeds, training_return)])
            returns = estimate([scores(seeds, training_return)])
            steps = config["total_timesteps"]
            rows.append((config["env.id"], label, steps, loss, len(seeds), returns, difference))
    columns = ["env", "condition", "env steps", "loss", "seeds", "return, IQM [95 %]", "difference from the first loss"]
    return pd.DataFrame(rows, columns=columns)


def aggregate_table(labelled: Sequence[tuple[str, RunFolder]]) -> pd.DataFrame:
    """A row per loss and setting that was tried on several tasks: the normalised return over all of them.

    A return becomes a score by its place between the lowest, 0, and the highest, 1, that any of these runs reached on
    its environment; one on which all reached the same tells nothing, and is left out. The bootstrap is stratified: it
    draws seeds anew within each task. Losses are compared on the tasks that both were tried on.
    """
    returns: dict[str, list[float]] = {}
    for _, run in labelled:
        if not math.isnan(value := training_return(run)):
            returns.setdefault(run.config["env.id"], []).append(value)
    ranges = {env: (min(values), max(values)) for env, values in returns.items() if len(set(values)) > 1}

    def score(run: RunFolder) -> float:
        low, high = ranges[run.config["env.id"]]
        return float((training_return(run) - low) / (high - low))

    settings: dict[str, list[ByLoss]] = {}
    for label, losses in by_task(labelled):
        env = next(run.config["env.id"] for seeds in losses.values() for run in seeds.values())
        if env in ranges:
            settings.setdefault(label, []).append(losses)
    rows = []
    for label, tasks in settings.items():
        every = list(dict.fromkeys(loss for losses in tasks for loss in losses))
        first = min(every, key=place)
        for loss in every:
            tried = [losses for losses in tasks if loss in losses]
            if len(tried) < 2:
                continue
            both = [(losses[first], losses[loss], score) for losses in tried if first in losses]
            difference = "–" if loss == first else paired_difference(both)
            strata = [scores(losses[loss], score) for losses in tried]
            rows.append((label, loss, len(tried), sum(map(len, strata)), estimate(strata), difference))
    columns = ["condition", "loss", "tasks", "runs", "score, IQM [95 %]", "difference from the first loss"]
    return pd.DataFrame(rows, columns=columns)


def by_task(labelled: Sequence[tuple[str, RunFolder]]) -> list[tuple[str, ByLoss]]:
    """The setting of each task, and its runs by loss and seed, the first loss first.

    A task is a config without loss and seed.
    """
    tasks: dict[str, dict[str, dict[int, RunFolder]]] = {}
    labels: dict[str, str] = {}
    for label, run in labelled:
        task = repr(sorted((k, v) for k, v in run.config.items() if not k.startswith("loss.") and k != "seed"))
        tasks.setdefault(task, {}).setdefault(run.label, {})[run.config["seed"]] = run
        labels.setdefault(task, label)  # two claims may have it under two names
    return [
        (labels[task], {loss: losses[loss] for loss in sorted(losses, key=place)}) for task, losses in tasks.items()
    ]


def place(loss: str) -> tuple[bool, str]:
    """By which losses are sorted. The first, with which the others are compared, is PPO's if it is there."""
    return loss != REFERENCE, loss


def scores(seeds: BySeed, score: Score) -> NDArray[np.float64]:
    return np.array([score(seeds[seed]) for seed in sorted(seeds)])


def estimate(strata: Sequence[NDArray[np.floating]]) -> str:
    """The interquartile mean with its interval, which fewer than FEWEST scores do not have; – if a score is missing."""
    every = np.concatenate(list(strata))
    if np.isnan(every).any():
        return "–"
    return str(iqm_interval(strata)) if len(every) >= FEWEST else f"{iqm(every):.2f}"


def paired_difference(pairs: Sequence[tuple[BySeed, BySeed, Score]]) -> str:
    """The difference, seed by seed within each task: "identical", or its interquartile mean with the interval.

    ``pairs`` holds, per task, the runs of the first loss, those of the other, and what is compared of a run.
    """
    strata, same = [], True
    for base, other, score in pairs:
        seeds = sorted(set(base) & set(other))
        same &= all(is_same_run(base[seed], other[seed]) for seed in seeds)
        strata.append(np.array([score(other[seed]) - score(base[seed]) for seed in seeds]))
    if not any(map(len, strata)):
        return "no seed in common"
    return "identical" if same else estimate([stratum for stratum in strata if len(stratum)])
