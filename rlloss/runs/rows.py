"""The rows of a run folder's tables."""

from typing import NamedTuple


class Episode(NamedTuple):
    """A finished episode: a row of episodes.csv."""

    env_steps: int  # of all environments, up to and including its last
    env: int
    episodic_return: float  # undiscounted, of the environment's own rewards
    episodic_length: int


class Decision(NamedTuple):
    """What a condition decided after reading a metric: a row of decisions.csv."""

    iteration: int
    condition: str  # plateau, threshold, no_improvement, best, guard, grad_scaler
    monitor: str  # the metric that it read
    value: float  # of that metric
    decision: str
