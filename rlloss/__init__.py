"""rlloss: do two policy-gradient losses train alike, to the last bit? A harness that settles it by experiment.

- ``train(config, folder)``: one run; ``rlloss.config.load(overrides)`` makes the config.
- ``verify(runs)``: a verdict per pair of twin runs; ``rlloss.runs.find_runs(folders)`` finds them.
- ``watch(model, optimizer, folder)``: a record of your own PyTorch training, which ``verify`` compares.
- ``load_policy(run)``: the policy of a finished run; its ``act(obs)`` gives an action.
- ``compare(loss, loss)``: have two losses the same gradient? ``assert_same_gradient`` is the same for test suites.
"""

import importlib
from typing import TYPE_CHECKING, Any

from rlloss.version import __version__

if TYPE_CHECKING:
    from rlloss.check import assert_same_gradient, compare
    from rlloss.train import load_policy, train
    from rlloss.verify import verify
    from rlloss.watch import watch

__all__ = ["__version__", "assert_same_gradient", "compare", "load_policy", "train", "verify", "watch"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Load what is asked for. ``train``, ``verify`` and ``watch`` are modules that can be called (``rlloss.lazy``)."""
    if name in ("train", "verify", "watch"):
        return importlib.import_module(f"{__name__}.{name}")
    if name == "load_policy":
        return importlib.import_module(f"{__name__}.train.evaluation").load_policy
    if name in ("compare", "assert_same_gradient"):
        return getattr(importlib.import_module(f"{__name__}.check"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
