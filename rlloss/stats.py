"""Numbers from run folders: curves and summaries."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlloss.runs import LAST_EPISODES, RunFolder


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
