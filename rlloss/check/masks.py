"""Masks of [answers, tokens], each made in place of one that is there: those that trainers make, and any."""

import torch
from torch import Tensor


def holes(mask: Tensor) -> None:
    mask[:, 1::3] = False


def late(mask: Tensor) -> None:
    for i, length in enumerate(mask.sum(1).tolist()):
        mask[i, : min(i, length - 1)] = False


def uneven(mask: Tensor, longest: int) -> None:
    """One long answer, one of a third of it, two short ones, all of them padded."""
    mask[:] = torch.arange(mask.shape[1]) < torch.tensor([[longest], [longest // 3 + 1], [2], [1]])


def ended(mask: Tensor) -> None:
    """Padded to the longest: every other answer is as long, and the rest end before."""
    mask[::2] = True
    mask[1::2] = torch.arange(mask.shape[1]) < mask.shape[1] // 2


def turns(mask: Tensor, tokens: int) -> None:
    """Of so many tokens each, with the environment's one between."""
    mask[:] = torch.arange(mask.shape[1]) % (tokens + 1) < tokens


def padded_left(mask: Tensor) -> None:
    """To the longest, by up to most of the width."""
    width = mask.shape[1]
    mask[:] = torch.arange(width) >= torch.tensor([[0], [width // 3], [width // 2], [3 * width // 4]])


def nothing(mask: Tensor, answers: int) -> None:
    mask[:answers] = False


def scattered(mask: Tensor, generator: torch.Generator) -> None:
    """Late starts, holes and early ends in one answer, and one that ends in the last column."""
    mask[:] = torch.rand(mask.shape, generator=generator) < 0.6
    mask[0, :3] = mask[0, -2] = False
    mask[0, 3] = mask[0, -1] = True
    mask[1:, 4] = True


def within(mask: Tensor, first: int, last: int) -> None:
    """All answers from one column to another: of one length, in a batch that is wider."""
    mask[:] = False
    mask[:, first:last] = True


def mostly_one(mask: Tensor) -> None:
    mask[1:, 1:] = False
    mask[0] = True
