"""What comes before the towers of actor and critic: nothing for vectors, convolutions shared by both for images."""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

SMALLEST_IMAGE = 36  # pixels either way: a smaller image leaves nothing of the third convolution's output


class Torso(Protocol):
    """Features of observations. Its parameters live in the policy's flat vector and are handed to every call."""

    shapes: dict[str, tuple[int, ...]]  # of the parameters, by name
    features: int  # per sample

    def __call__(self, obs: Tensor, parameters: Mapping[str, Tensor]) -> Tensor: ...


class VectorTorso:
    """Observations as they are, [samples, size]."""

    def __init__(self, size: int) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.features = size

    def __call__(self, obs: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return obs


class NatureTorso:
    """Three convolutions and a layer of 512, each with a ReLU, on images scaled by 1/255.

    Filters x kernel / stride: 32 x 8 / 4, 64 x 4 / 2, 64 x 3 / 1; no padding. Images are [samples, channels, height,
    width], uint8; they are scaled here and not when they are stored, which takes a quarter of the memory.

    Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning".
    """

    CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
    features = 512

    def __init__(self, shape: Sequence[int]) -> None:
        channels, *sides = shape
        self.shapes: dict[str, tuple[int, ...]] = {}
        for layer, (filters, kernel, stride) in enumerate(self.CONVOLUTIONS):
            self._add(layer, (filters, channels, kernel, kernel))
            channels, sides = filters, [(side - kernel) // stride + 1 for side in sides]
        self._add(len(self.CONVOLUTIONS), (self.features, channels * math.prod(sides)))

    def _add(self, layer: int, shape: tuple[int, ...]) -> None:
        self.shapes[f"torso.{layer}.weight"] = shape
        self.shapes[f"torso.{layer}.bias"] = shape[:1]

    def __call__(self, obs: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        layers = [(parameters[f"torso.{i}.weight"], parameters[f"torso.{i}.bias"]) for i in range(4)]
        x = obs.to(layers[0][0].dtype) / 255
        for (weight, bias), (_, _, stride) in zip(layers, self.CONVOLUTIONS, strict=False):
            x = F.relu(F.conv2d(x, weight, bias, stride))
        return F.relu(F.linear(x.flatten(1), *layers[-1]))


def make_torso(obs_shape: Sequence[int]) -> Torso:
    """For observations of [size], or images of [channels, height, width]."""
    return VectorTorso(obs_shape[0]) if len(obs_shape) == 1 else NatureTorso(obs_shape)
