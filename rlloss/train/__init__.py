"""The trainer: ``train(config, folder)``, the loop and its parts."""

from typing import TYPE_CHECKING

from rlloss.lazy import callable_as, lazily

if TYPE_CHECKING:
    from rlloss.train.evaluation import TrainedPolicy, load_policy, play
    from rlloss.train.loop import Run, iterate, train, validate
    from rlloss.train.state import State, prepared

__getattr__ = lazily(
    __name__,
    {"evaluation": "TrainedPolicy load_policy play", "loop": "Run iterate train validate", "state": "State prepared"},
)
callable_as(__name__, "train")
