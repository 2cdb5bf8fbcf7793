"""The interior of an environment as plain data: read from it, given back to it, and compared.

An environment is its wrappers and the objects that they hold. What is read are numbers, strings, arrays, generators of
random numbers, and containers and plain objects of such: statistics, counters, levels, streams. What only the
environment understands, the world of a physics engine say, is not: ``replay`` makes it anew.
"""

import hashlib
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from rlloss.train.wrappers import Env, layers

Node = Any
"""A number, string or None as it is; all else a list, a tag before what it takes to make it again."""
Interior = dict[str, Node]
"""Of every layer, the outermost first, its attributes: ``0._elapsed_steps``, say, to a node."""

LARGEST = 1 << 20  # bytes of an array; a larger one is known by its digest, and not given back
SHORT = 256  # bytes that are written as text
DEEPEST = 6  # objects within objects
MOST = 20_000  # nodes of one environment
STATIC = {"spec", "_cached_spec", "_saved_kwargs", "_metadata", "_action_space", "_observation_space"}  # of Gymnasium's
PLAIN = (bool, int, float, str, type(None))
SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "deque": deque, "set": set}
STREAMS = ("generator", "legacy", "random", "torch", "space", "ale")  # tags of what random numbers come from
FOREIGN = (ModuleType, type, FunctionType, BuiltinFunctionType, MethodType, EnvSpec, torch.nn.Module)
UNKNOWN = ["unknown"]
MISSING = object()


def capture(env: Env) -> Interior:
    """Everything plain that an environment and its wrappers hold."""
    stack = [*layers(env), env.unwrapped]
    reader = _Reader({id(layer): ["same", str(i)] for i, layer in enumerate(stack)})
    return {
        f"{i}.{name}": reader.read(vars(layer)[name], f"{i}.{name}", DEEPEST)
        for i, layer in enumerate(stack)
        for name in sorted(vars(layer).keys() - STATIC, key=str)
    }


def give_back(env: Env, interior: Interior, *, streams_only: bool) -> None:
    """Make an environment's attributes what they were, as far as it has such objects now.

    ``streams_only``: of the environment itself, within its wrappers, only the generators of random numbers.
    """
    stack = [*layers(env), env.unwrapped]
    writer = _Writer({str(i): layer for i, layer in enumerate(stack)})
    for path, node in interior.items():
        i, _, name = path.partition(".")
        layer = stack[int(i)]
        if not streams_only or int(i) < len(stack) - 1 or (isinstance(node, list) and node[0] in STREAMS):
            writer.attribute(layer, name, node, path)


def changed(interior: Interior, since: Interior) -> Interior:
    """The attributes of an interior that an earlier one has not, or has with other bits, as far as both are known."""
    return {path: node for path, node in interior.items() if path not in since or not _alike(node, since[path])}


def differences(kept: Interior, now: Interior) -> list[str]:
    """Those of the attributes that were kept that now have other bits. One that is gone was mended away."""
    return [path for path, node in kept.items() if path in now and not _alike(node, now[path])]


def _alike(a: Node, b: Node) -> bool:
    if any(isinstance(node, list) and node == UNKNOWN for node in (a, b)):
        return True
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.tobytes() == b.tobytes()
    return type(a) is type(b) and repr(a) == repr(b)  # so that nan is nan, and -0 is not 0


class _Reader:
    """Reads objects as nodes. Each object is read once; where it is met again, a node says where it was."""

    def __init__(self, seen: dict[int, Node]) -> None:
        self.seen = seen
        self.held: list[Any] = []  # so that no identity is given out twice while this reads
        self.left = MOST

    def read(self, value: Any, path: str, depth: int) -> Node:
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind is complex or isinstance(value, Enum | bytes | np.generic):
            return _frozen(value)
        if id(value) in self.seen:
            return self.seen[id(value)]
        self.left -= 1
        if depth == 0 or self.left < 0 or isinstance(value, FOREIGN):
            return UNKNOWN
        self.seen[id(value)] = ["same", path]
        self.held.append(value)
        try:
            return self._object(value, path, depth)
        except Exception:  # an object of somebody's may refuse anything; training goes on without it
            return UNKNOWN

    def _object(self, value: Any, path: str, depth: int) -> Node:
        def inner(item: Any, name: object) -> Node:
            return self.read(item, f"{path}.{name}", depth - 1)

        if isinstance(value, np.ndarray):
            return _array(value)
        if isinstance(value, torch.Tensor):
            return ["tensor", _array(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())]
        if isinstance(value, np.random.Generator):
            bits = value.bit_generator
            return ["generator", type(bits).__name__, inner(dict(bits.state), "state")]
        if isinstance(value, np.random.RandomState):
            return ["legacy", inner(value.get_state(legacy=False), "state")]
        if isinstance(value, random.Random):
            return ["random", inner(value.getstate(), "state")]
        if isinstance(value, torch.Generator):
            return ["torch", _array(value.get_state().numpy())]
        if isinstance(value, gymnasium.Space):
            stream = vars(value).get("_np_random")
            return UNKNOWN if stream is None else ["space", inner(stream, "_np_random")]
        if type(value).__name__ == "ALEInterface":
            return ["ale", _bytes(value.cloneState(include_rng=True).__getstate__())]
        if isinstance(value, Mapping):
            pairs = [[inner(key, "key"), inner(item, key)] for key, item in value.items()]
            return ["dict", pairs] if isinstance(value, dict) else UNKNOWN
        for tag, base in SEQUENCES.items():
            if isinstance(value, base):
                items = sorted(value, key=repr) if tag == "set" else value
                return [tag, [inner(item, i) for i, item in enumerate(items)], getattr(value, "maxlen", None)]
        attributes = getattr(value, "__dict__", None)
        if not isinstance(attributes, dict):
            return UNKNOWN
        return ["object", type(value).__qualname__, [[k, inner(attributes[k], k)] for k in sorted(attributes, key=str)]]


class _Writer:
    """Makes objects what their nodes say, in place where there is a place, so that what was shared stays shared."""

    def __init__(self, made: dict[str, Any]) -> None:
        self.made = made

    def attribute(self, owner: Any, name: str, node: Node, path: str) -> None:
        value = self.give(node, vars(owner).get(name, MISSING), path)
        if value is not MISSING:
            vars(owner)[name] = value

    def give(self, node: Node, now: Any, path: str) -> Any:
        """What the node says, or ``now`` where that cannot be made: MISSING, if there is nothing now."""
        if not isinstance(node, list):
            return node
        value = self._made(node[0], node[1:], now, path)
        self.made[path] = value
        return value

    def _made(self, tag: str, parts: Sequence[Any], now: Any, path: str) -> Any:
        if tag == "same":
            return self.made.get(parts[0], now)
        if tag in ("array", "scalar", "bytes", "complex", "enum"):
            return _thawed(tag, parts, now)
        if tag in STREAMS or tag == "tensor":
            return self._stream(tag, parts, now, path)
        if tag == "dict":
            return self._mapping(parts[0], now, path)
        if tag in SEQUENCES:
            return self._sequence(tag, parts[0], parts[1], now, path)
        if tag == "object" and type(now).__qualname__ == parts[0] and hasattr(now, "__dict__"):
            for name, node in parts[1]:
                self.attribute(now, name, node, f"{path}.{name}")
        return now

    def _stream(self, tag: str, parts: Sequence[Any], now: Any, path: str) -> Any:
        if tag == "generator":
            state = self.give(parts[1], MISSING, f"{path}.state")
            if not isinstance(now, np.random.Generator) or type(now.bit_generator).__name__ != parts[0]:
                kind = getattr(np.random, parts[0], None)
                if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
                    return now
                now = np.random.Generator(kind())
            now.bit_generator.state = state
        elif tag == "legacy" and isinstance(now, np.random.RandomState):
            now.set_state(self.give(parts[0], MISSING, f"{path}.state"))
        elif tag == "random" and isinstance(now, random.Random):
            now.setstate(self.give(parts[0], MISSING, f"{path}.state"))
        elif tag == "torch" and isinstance(now, torch.Generator):
            now.set_state(torch.from_numpy(_thawed("array", parts[0][1:], MISSING)))
        elif tag == "tensor" and isinstance(now, torch.Tensor):
            raw = torch.from_numpy(_thawed("array", parts[0][1:], MISSING))
            if raw.numel() == now.numel() * now.element_size():
                with torch.no_grad():
                    now.copy_(raw.reshape(-1).view(now.dtype).reshape(now.shape))
        elif tag == "space" and isinstance(now, gymnasium.Space):
            self.attribute(now, "_np_random", parts[0], f"{path}._np_random")
        elif tag == "ale" and type(now).__name__ == "ALEInterface":
            machine: Any = type(now.cloneState())
            saved = machine.__new__(machine)
            saved.__setstate__(_from_bytes(parts[0]))
            now.restoreState(saved)
        return now

    def _mapping(self, pairs: Iterable[Sequence[Node]], now: Any, path: str) -> Any:
        there = now if isinstance(now, dict) else {}
        items = {}
        for key_node, node in pairs:
            key = self.give(key_node, MISSING, f"{path}.key")
            items[key] = self.give(node, there.get(key, MISSING), f"{path}.{key}")
        if any(value is MISSING for value in items.values()):
            return now
        there.clear()
        there.update(items)
        return there

    def _sequence(self, tag: str, nodes: Sequence[Node], maxlen: int | None, now: Any, path: str) -> Any:
        base = SEQUENCES[tag]
        there = list(now) if isinstance(now, base) and tag != "set" else []
        there += [MISSING] * (len(nodes) - len(there))
        items = [self.give(node, old, f"{path}.{i}") for i, (node, old) in enumerate(zip(nodes, there, strict=False))]
        if any(item is MISSING for item in items):
            return now
        if tag == "tuple":
            make = getattr(type(now), "_make", tuple)  # of a named tuple
            return make(items)
        if not isinstance(now, base) or getattr(now, "maxlen", None) != maxlen:
            return deque(items, maxlen) if tag == "deque" else base(items)
        now.clear()
        (now.update if tag == "set" else now.extend)(items)
        return now


def _frozen(value: Any) -> Node:
    """Of a value that nothing can change."""
    if isinstance(value, Enum):
        return ["enum", value.name]
    if isinstance(value, bytes):
        return ["bytes", _bytes(value)]
    if isinstance(value, complex) and not isinstance(value, np.generic):
        return ["complex", repr(value)]
    return UNKNOWN if value.dtype.hasobject else ["scalar", value.dtype.str, _bytes(value.tobytes())]


def _array(array: NDArray[Any]) -> Node:
    if array.dtype.hasobject or array.dtype.names:
        return UNKNOWN
    if array.nbytes > LARGEST:
        return ["digest", array.dtype.str, list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    return ["array", array.dtype.str, list(array.shape), _bytes(array.tobytes())]


def _bytes(data: bytes) -> Node:
    return data.hex() if len(data) <= SHORT else np.frombuffer(data, np.uint8)


def _from_bytes(node: Node) -> bytes:
    return bytes.fromhex(node) if isinstance(node, str) else node.tobytes()


def _thawed(tag: str, parts: Sequence[Any], now: Any) -> Any:
    """An array in its place, if there is one of that kind; any other value anew."""
    if tag == "complex":
        return complex(parts[0])
    if tag == "enum":
        return type(now)[parts[0]] if isinstance(now, Enum) and parts[0] in type(now).__members__ else now
    if tag == "bytes":
        return _from_bytes(parts[0])
    flat = np.frombuffer(_from_bytes(parts[-1]), np.dtype(parts[0]))
    if tag == "scalar":
        return flat[0]
    array = flat.reshape(parts[1])
    if isinstance(now, np.ndarray) and now.shape == array.shape and now.dtype == array.dtype and now.flags.writeable:
        now[...] = array
        return now
    return array.copy()
