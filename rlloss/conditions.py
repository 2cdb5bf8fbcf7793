"""What steers a run from outside the gradient: so far, learning-rate schedules.

Conditions are PyTorch's own components; what they may read is a *named* metric of the iteration that has ended.
"""

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rlloss.config import Config, lookup

Factor = Callable[[int, int], float]

# Iterations done, iterations in all -> factor of the learning rate.
SCHEDULES: dict[str, Factor] = {
    "constant": lambda done, total: 1.0,
    "linear": lambda done, total: 1.0 - done / total,
}


def make_schedule(config: Config, optimizer: Optimizer) -> LambdaLR:
    """The schedule of the learning rate; step it once per iteration. Raises: ConfigError for an unknown name."""
    factor: Factor = lookup(SCHEDULES, "schedule", config.schedule.name)
    return LambdaLR(optimizer, lambda done: factor(done, config.num_iterations))
