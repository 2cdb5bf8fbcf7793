"""States as single files of tensors and JSON, whole or not at all: no pickle is written, and none is read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rlloss.errors import ConfigError


def pack(state: Any) -> bytes:
    """A tree of mappings, lists, tensors, arrays, numbers, strings and None as a safetensors file.

    The tree stands as JSON in the file's metadata, with a name in the place of each tensor, beside the SHA-256 of all
    of it. Tuples become lists.
    """
    tensors: dict[str, Tensor] = {}

    def encode(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            tensors[path] = node.detach().cpu().contiguous().clone()
            return {"tensor": path}
        if isinstance(node, np.ndarray):
            tensors[path] = torch.from_numpy(np.ascontiguousarray(node).copy())
            return {"array": path}
        if isinstance(node, Mapping):  # pairs, since JSON's keys are strings and an optimiser's are not
            pairs = sorted(node.items(), key=lambda pair: str(pair[0]))  # the order is no part of a state
            return {"items": [[key, encode(value, f"{path}.{key}")] for key, value in pairs]}
        if isinstance(node, list | tuple):
            return [encode(value, f"{path}.{i}") for i, value in enumerate(node)]
        return node.item() if isinstance(node, np.generic) else node

    tree = encode(state, "state")
    return bytes(save(tensors, metadata={"state": json.dumps({"tree": tree, "sha256": _digest(tree, tensors)})}))


def _digest(tree: Any, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(tree).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def unpack(path: Path, largest: int | None = None) -> Any:
    """What ``pack`` was given. Raises: ConfigError for a file that is no such state, or that has more bytes."""
    try:
        if largest is not None and path.stat().st_size > largest:
            raise ValueError(f"of {path.stat().st_size:,} bytes, at most {largest:,} are to be expected")
        with safe_open(path, framework="pt") as file:
            # copies, aligned as torch allocates: sums over a mapped file round otherwise
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, not a mapping

            def decode(node: Any) -> Any:
                if isinstance(node, list):
                    return [decode(value) for value in node]
                if not isinstance(node, dict):
                    return node
                if "items" in node:
                    return {key: decode(value) for key, value in node["items"]}
                tensor = tensors[node.get("tensor") or node["array"]]
                return tensor if "tensor" in node else tensor.numpy()

            document = json.loads(file.metadata()["state"])
            if "sha256" not in document:  # of a version before 0.2.0
                return decode(document)
            if document["sha256"] != _digest(document["tree"], tensors):
                raise ValueError("its content is not what was written")
            return decode(document["tree"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: is no checkpoint that can be read ({error}); remove it") from error
