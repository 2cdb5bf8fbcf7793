"""The tensors of a training by name, and what they are hashed to."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import accumulate, takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from rlloss.errors import ConfigError

HASH = "xxh3_128"
HASH_BYTES = 16
ABSENT = bytes(HASH_BYTES)  # of a gradient that is not there
# of numbers that NumPy knows, so that a tensor need not be viewed as bytes first
PLAIN = {torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool}
ORDINARY = (Tensor, nn.Parameter)  # in one place, and no class of its own
WRAPPINGS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")  # by compile, checkpoints, FSDP
LEAVE_OUT = "; buffers=False leaves all buffers out"
MOST_WITNESSED = 1 << 14  # numbers of gradients that are read in any case
MOST_WITNESSES = 8  # of one optimiser
REFUSED = "FullyShardedDataParallel"


class Named(NamedTuple):
    """A tensor that a training has now. Its name lasts; the tensor may be another at the next step."""

    name: str
    tensor: Tensor
    is_buffer: bool


def unwrapped(model: nn.Module) -> nn.Module:
    """The module within those that only carry it: compiled, or on several devices.

    Raises: ConfigError for one that makes one tensor of many, whose names are then gone.
    """
    if type(model).__name__ == REFUSED:
        raise ConfigError(f"model: {REFUSED} flattens parameters, so that they have no names; use fully_shard (FSDP2)")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    inner = getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def models_by_name(model: nn.Module | Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """By the prefix of their tensors' names, which one model alone has not. Raises: ConfigError."""
    several = model if isinstance(model, Mapping) else {}
    models = {"": model} if isinstance(model, nn.Module) else {f"{name}.": module for name, module in several.items()}
    if not models or not all(isinstance(module, nn.Module) for module in models.values()):
        raise ConfigError(f"model={type(model).__name__}: give a torch.nn.Module, or a dictionary of them by name")
    return {name: unwrapped(models[name]) for name in sorted(models)}


def tensors(
    models: Mapping[str, nn.Module], optimizers: Sequence[torch.optim.Optimizer], *, buffers: bool
) -> list[Named]:
    """Parameters, frozen ones too, each once though it be tied; buffers; what the optimisers train besides."""
    found = [Named(plain(name), tensor, False) for name, tensor in _named(models, "named_parameters")]
    if buffers:
        found += [Named(plain(name), tensor, True) for name, tensor in _named(models, "named_buffers")]
    if len({entry.name for entry in found}) < len(found):
        twice = [name for name, times in Counter(entry.name for entry in found).items() if times > 1]
        raise ConfigError(f"model: two tensors are called {twice[0]}; name the models otherwise")
    known = {id(entry.tensor) for entry in found}
    for i, optimizer in enumerate(optimizers):
        for j, group in enumerate(optimizer.param_groups):
            for k, tensor in enumerate(group["params"]):
                if id(tensor) not in known:
                    known.add(id(tensor))
                    found.append(Named(f"optimizer.{i}.group.{j}.{k}", tensor, False))
    return found


def _named(models: Mapping[str, nn.Module], method: str) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in models.items():
        yield from getattr(module, method)(prefix.removesuffix("."))


@cache
def plain(name: str) -> str:
    """Without what wrappers put into it."""
    for wrapping in WRAPPINGS:
        name = name.replace(wrapping, "")
    return name


def hashes(found: Iterable[Named]) -> bytes:
    """16 bytes a tensor. Raises: ConfigError for one whose numbers cannot be read."""
    return b"".join([hashed(entry.tensor, entry.name, LEAVE_OUT if entry.is_buffer else "") for entry in found])


def gradients(found: Iterable[Named]) -> bytes:
    """The same of the gradients of all but buffers. -0 counts as 0: which of them it is changes no parameter."""
    out = []
    for entry in found:
        if not entry.is_buffer:
            gradient = entry.tensor.grad
            dense = (
                None if gradient is None else gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()
            )
            out.append(ABSENT if dense is None else hashed(dense + 0.0, entry.name))
    return b"".join(out)


Place = tuple[int, int]  # of a tensor in an optimiser: its group, and the place in that


def witnesses(optimizer: torch.optim.Optimizer, found: Iterable[Named]) -> list[Place]:
    """The smallest tensor of each part of the models that an optimiser trains, the last one of as many; few in all.

    Its gradient hangs on all of the loss that trains its part, as that of the last layer's bias does, and costs next to
    nothing to read. A part is what names tell apart first: a model's actor and critic, or the layers of a chain.
    """
    names = {id(entry.tensor): entry.name.split(".") for entry in found}
    columns = zip(*(name[:-1] for name in names.values()), strict=False)
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    smallest: dict[tuple[int, str], tuple[int, Place]] = {}
    for i, group in enumerate(optimizer.param_groups):
        for j, tensor in enumerate(group["params"]):
            if tensor.requires_grad and 0 < tensor.numel() <= MOST_WITNESSED:
                part = i, "".join(names.get(id(tensor), [])[common : common + 1])
                size = tensor.numel(), (i, j)
                smallest[part] = min(smallest.get(part, size), size, key=lambda x: (x[0], -x[1][0], -x[1][1]))
    first = sorted(smallest.values())[:MOST_WITNESSES]
    sizes = accumulate(numel for numel, _ in first)
    return [place for (_, place), size in zip(first, sizes, strict=True) if size <= MOST_WITNESSED]


def witnessed(optimizer: torch.optim.Optimizer, places: Sequence[Place]) -> str:
    """The hash of the witnesses' gradients, and which groups have none at all; "" without one that can be read."""
    groups = [group["params"] for group in optimizer.param_groups]
    seen = [groups[i][j].grad for i, j in places if i < len(groups) and j < len(groups[i])]
    seen = [gradient for gradient in seen if gradient is not None]
    if not seen or isinstance(optimizer, torch.optim.LBFGS):
        return ""  # L-BFGS leaves that of another place
    with suppress(RuntimeError, TypeError, NotImplementedError):  # a format that cannot be put beside others, say
        without = [f"-{i}" for i, group in enumerate(groups) if all(tensor.grad is None for tensor in group)]
        return " ".join([xxhash.xxh3_128_hexdigest(_together(seen))[:16], *without])
    return ""


def _together(gradients: Sequence[Tensor]) -> Any:
    """The numbers of some gradients one after the other, -0 as 0. By NumPy where it can: it is called at every step."""
    if all(type(g) is Tensor and g.is_cpu and g.dtype == torch.float32 and g.is_contiguous() for g in gradients):
        return np.concatenate([g.detach().numpy().ravel() for g in gradients]) + np.float32(0)
    return raw(torch.cat([local(g.to_dense() if g.is_sparse else g).flatten() for g in gradients]) + 0.0)


def hashed(tensor: Tensor, name: str, remedy: str = "") -> bytes:
    try:
        return xxhash.xxh3_128_digest(raw(tensor))
    except (RuntimeError, TypeError, NotImplementedError, ValueError) as error:
        raise ConfigError(
            f"{name}: a {_kind(tensor)} cannot be read ({' '.join(str(error).split())}){remedy}"
        ) from error


def raw(tensor: Tensor) -> Any:
    """The bytes of a tensor in the order of its indices; of one that is spread over processes, this one's part."""
    plain = type(tensor) in ORDINARY and tensor.dtype in PLAIN and tensor.is_cpu and tensor.layout == torch.strided
    if plain and tensor.is_contiguous() and not tensor.is_neg():
        return tensor.detach().numpy()
    tensor = local(tensor)
    if tensor.device.type == "meta" or tensor.layout != torch.strided:
        raise TypeError("it has no numbers of its own" if tensor.is_meta else "it is sparse")
    if tensor.device.type != "cpu":
        tensor = tensor.cpu()
    if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg().contiguous()
    return (tensor if tensor.dtype in PLAIN else tensor.reshape(-1).view(torch.uint8)).numpy()


def local(tensor: Tensor) -> Tensor:
    """Of a tensor that is spread over processes, this one's part; detached."""
    part = getattr(tensor, "to_local", None)
    return (tensor if part is None else part()).detach()


def _kind(tensor: Tensor) -> str:
    return f"{type(tensor).__name__} of {tensor.dtype} on {tensor.device}"


def described(found: Iterable[Named]) -> list[list[Any]]:
    """[name, dtype, shape, whether it is a buffer] of each, for the record."""
    return [
        [entry.name, str(entry.tensor.dtype).removeprefix("torch."), list(entry.tensor.shape), entry.is_buffer]
        for entry in found
    ]
