"""Numbers from run folders: curves and summaries."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlloss.runs import LAST_EPISODES, RunFolder
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


# ------------------------------------------------------------------------------------- aggregates over seeds

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


def returns_table(labelled: Sequence[tuple[str, RunFolder]]) -> pd.DataFrame:
    """A row per condition and loss: the return as an interquartile mean over seeds with its bootstrap interval.

    ``labelled`` names each run's condition. The difference is that from the condition's first loss (PPO's, if it is
    there), paired seed by seed. Where every pair is one and the same run it says "identical": there is no distribution
    of differences to test.
    """
    groups: dict[str, dict[str, dict[int, RunFolder]]] = {}
    labels: dict[str, tuple[str, str, int]] = {}
    for label, run in labelled:
        key = repr(sorted((k, v) for k, v in run.config.items() if not k.startswith("loss.") and k != "seed"))
        groups.setdefault(key, {}).setdefault(run.label, {})[run.config["seed"]] = run
        labels.setdefault(key, (run.config["env.id"], label, run.config["total_timesteps"]))
    rows = []
    for key, group in groups.items():
        first, *others = sorted(group, key=lambda loss: (loss != REFERENCE, loss))
        for loss in (first, *others):
            returns = np.array([training_return(group[loss][seed]) for seed in sorted(group[loss])])
            difference = "–" if loss == first else paired_difference(group[first], group[loss])
            rows.append((*labels[key], loss, len(returns), estimate(returns), difference))
    columns = ["env", "condition", "env steps", "loss", "seeds", "return, IQM [95 %]", "difference from the first loss"]
    return pd.DataFrame(rows, columns=columns)


def estimate(scores: NDArray[np.floating]) -> str:
    """The interquartile mean with its interval, which fewer than FEWEST scores do not have; – if a score is missing."""
    if np.isnan(scores).any():
        return "–"
    return str(iqm_interval([scores])) if len(scores) >= FEWEST else f"{iqm(scores):.2f}"


def paired_difference(base: Mapping[int, RunFolder], other: Mapping[int, RunFolder]) -> str:
    """The difference in return, seed by seed: "identical", or its interquartile mean with the bootstrap interval."""
    seeds = sorted(set(base) & set(other))
    if not seeds:
        return "no seed in common"
    if all(is_same_run(base[seed], other[seed]) for seed in seeds):
        return "identical"
    return estimate(np.array([training_return(other[seed]) - training_return(base[seed]) for seed in seeds]))
