"""Runs that do not fit into this machine's memory, refused by an estimate before anything of their size is made.

The estimate counts what a run certainly holds at one time, and no more: what it refuses would not have run.
"""

import math
import os
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from rlloss.config.schema import Config
from rlloss.errors import ConfigError
from rlloss.train.policy import Head, make_head
from rlloss.train.precision import PRECISIONS
from rlloss.train.spaces import is_image
from rlloss.train.wrappers import Env

ENVIRONMENT = 4096  # bytes of the smallest environment in Gymnasium's own wrappers
ADAMS = 2  # vectors of all parameters that Adam keeps
GIB = 1 << 30
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def refuse_too_large(config: Config, env: Env | None = None) -> None:
    """``env``: one of the run's, in its wrappers. Without one, observations and actions count as one number each.

    Raises: ConfigError for a run that needs more memory than this machine has.
    """
    numbers = math.prod(env.observation_space.shape or ()) if env else 1
    pixels = env is not None and is_image(env.observation_space)
    head = make_head(env.action_space) if env else None
    layers = 0 if pixels else parameters(config, numbers, head)
    batch = config.num_samples * sample(config, numbers, head, pixels=pixels)
    widest = max(config.hidden_sizes)
    outputs = 0 if pixels else 2 * config.num_samples * widest * _width(config)  # of a layer, before and after its tanh
    if widest > config.num_samples:
        layers += outputs
    else:
        batch += outputs
    parts = {
        f"hidden_sizes={config.hidden_sizes}": (layers, "smaller layers"),
        _batch(config): (batch, "fewer of them"),
        f"num_envs={config.num_envs}": (config.num_envs * (ENVIRONMENT + numbers), "fewer environments"),
    }
    needed, has = sum(size for size, _ in parts.values()), memory()
    if needed > has:
        key, (_, remedy) = max(parts.items(), key=lambda part: part[1][0])
        raise ConfigError(
            f"{key}: needs at least {-(-needed // GIB):,} GiB, this machine has {has / GIB:.1f} GiB; use {remedy}"
        )


def parameters(config: Config, numbers: int, head: Head | None) -> int:
    """Bytes of actor and critic on vectors: the parameters, their gradient, a copy of the last, the optimiser's."""
    weights = 0
    for outputs in (head.outputs if head else 1, 1):
        sizes = [numbers, *config.hidden_sizes, outputs]
        weights += sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(sizes))
    vectors = 2 + (config.on_nonfinite == "fail") + (ADAMS if config.optimizer.torch_optimizer()[0] == "adam" else 0)
    return weights * vectors * _width(config)


def sample(config: Config, numbers: int, head: Head | None, *, pixels: bool) -> int:
    """Bytes of one sample of a batch. All pixels of a batch are scaled at once."""
    width = _width(config)
    seen = numbers * (1 + width) if pixels else numbers * width
    noise, action = 8 * (head.outputs if head else 1), 8 if head is None or head.discrete else width
    numbers_of_a_step = 8 + 6 * width + 2  # reward; log-probability, advantage, return and three values; both ends
    return seen + noise + action + numbers_of_a_step


def memory() -> int:
    """Bytes of memory that this process may have: the machine's, or its container's where that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in LIMITS:
        with suppress(OSError, ValueError):  # none there, or "max"
            found.append(int(Path(path).read_text()))
    return min(found)


def _width(config: Config) -> int:
    """Bytes of a parameter."""
    return PRECISIONS[config.precision.name].dtype.itemsize


def _batch(config: Config) -> str:
    sizes = {"num_envs": config.num_envs, "num_steps": config.num_steps}
    large, small = sorted(sizes, key=lambda key: -sizes[key])
    return f"{large}={sizes[large]} with {small}={sizes[small]}, {config.num_samples:,} samples per iteration"
