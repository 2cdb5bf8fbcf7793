"""Independent random streams, all children of one seed.

Each purpose, and each environment, has a stream of its own: drawing more from one never shifts another. Children are
keyed by purpose and not by order of creation, so adding a stream leaves the others as they were.
"""

import numpy as np
import torch

INITIALISATION, ACTIONS, SHUFFLE, ENVIRONMENTS = range(4)


def _child(seed: int, *key: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=key)


def numpy_stream(seed: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(_child(seed, purpose)))


def torch_stream(seed: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(_child(seed, purpose).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def env_seeds(seed: int, num_envs: int) -> list[int]:
    """One seed per environment; the first k do not depend on how many follow."""
    return [env_seed(seed, i) for i in range(num_envs)]


def env_seed(seed: int, i: int) -> int:
    return int(_child(seed, ENVIRONMENTS, i).generate_state(1)[0])
