"""Listening to PyTorch for one optimiser step: each operation, forward and backward, its numbers and its result.

A TorchDispatchMode sees what is computed below autograd, the sums included by which autograd accumulates gradients.
Just before a backward pass every node of its graph gets a hook, which sees the whole gradient of the tensor it made.
What cannot be heard ends the listening, and not the training that is listened to.
"""

import json
import linecache
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self, TypeVar

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from rlloss.errors import ConfigError
from rlloss.runs.writer import replace
from rlloss.version import PACKAGE
from rlloss.watch.tensors import raw

TORCH = str(Path(torch.__file__).parent)
# whose frames lie between the line that somebody wrote and the tape
MACHINERY = (TORCH, str(Path(__file__).parent), str(PACKAGE / "bisect"), os.path.dirname(os.__file__), "<frozen")
SITE = "site-packages"
TRACE, VALUES = "trace.json", "trace.safetensors"
BUDGET = 1 << 29  # bytes of values that are kept
OLD_GRADIENT = "the gradient of"  # how the names of those begin that were left from a step before
OPTIMIZER_STEP = "Optimizer.step#"  # with which PyTorch's profiler marks its beginning
SILENT = (  # that compute no number
    "profiler", "detach", "alias", "empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided",
    "_record_function",
)  # fmt: skip


BLANK = ("empty", "new_empty")  # that make memory with whatever is in it
SCRATCH = {"mkldnn_rnn_layer": 3, "_ctc_loss": 1, "_cudnn_rnn": 3, "miopen_rnn": 3}  # which output is partly that
STATISTICS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")  # that write to two inputs, and say nothing
TRAINING = 5  # which of their inputs says so
FETCHED = ("set_.source_Storage",)  # that bring numbers in, as another process of a data loader made them
AUTOGRAD: Any = torch.autograd
T = TypeVar("T")
Consumer = tuple[str, int, str]  # a node of autograd: its name, its sequence number, the author's line


class Number(NamedTuple):
    """A tensor as it was: -0 counts as 0 in its digest, and a view of another shape as the same number."""

    digest: str
    shape: tuple[int, ...]
    dtype: str


NOTHING = Number("uninitialised", (), "")
UNREADABLE = "unreadable"  # the digest of what has no numbers in one row, as a sparse tensor


@dataclass
class Entry:
    """One operation."""

    op: str  # as PyTorch calls it: mul.Tensor
    inputs: list[Number | str]  # in order; of what is no tensor its text
    outputs: list[Number]
    node: str  # of autograd in whose backward it runs; empty in the forward pass
    sequence: int  # autograd's number of the node that it makes, or in which it runs; -1 for none
    where: str  # the author's line: "losses.py:12: ratio = logratio.exp()"
    to: str = ""  # the name of the parameter, or what else has one, that is written in place


@dataclass
class Joint:
    """A tensor of the graph with its whole gradient, in the order in which backward passes complete them."""

    node: str  # autograd's, that made the tensor: MulBackward0; AccumulateGrad of a leaf
    name: str  # of the parameter, if it is one
    number: str  # digest of the tensor; empty if it is not known
    gradient: Number
    where: str
    sequence: int
    backward: int  # which backward pass, from 0
    consumers: list[Consumer]  # that pass a gradient to it


@dataclass
class Tape:
    """What was heard. ``names``: by identity, of tensors that are held, lest others get theirs. ``values``: numbers by
    digest, as far as they are kept.
    """

    names: dict[int, tuple[Tensor, str]] = field(default_factory=dict, repr=False)
    entries: list[Entry] = field(default_factory=list)
    joints: list[Joint] = field(default_factory=list)
    values: dict[str, Tensor] = field(default_factory=dict, repr=False)
    given: dict[str, str] = field(default_factory=dict)  # numbers that no operation made: digest to parameter's name
    read: list[str] = field(default_factory=list)  # the names that the forward pass read
    left: list[str] | None = None  # the names of gradients other than 0 that were there as it began; None: not known

    def __post_init__(self) -> None:
        self._bytes = 0
        self._quiet = False  # what is computed now is the tape's own
        self._backwards = 0
        self._last_sequence = _next_sequence()
        self._made: dict[int, tuple[str, str]] = {}  # by sequence number: digest of what was made, and where
        self._in_place_at = ""  # the line of the last operation, if it writes in place: autograd makes its node later
        self._known: set[str] = set()
        self._blank: dict[int, Any] = {}  # by where it lies: memory that nothing has been written to
        self._operations = _Operations(self)
        self._listens = False
        self.failure = ""  # why no more was heard, if something could not be
        self.renew: Callable[[], dict[int, tuple[Tensor, str]]] | None = None  # the names, as an optimiser begins
        self._bases: dict[int, Tensor] = {}  # by where their memory lies: those of which a part was written

    def __enter__(self) -> Self:
        """Begin to listen: below all modes that others have entered, and may leave before this."""
        self._last_sequence = _next_sequence()
        with self.paused():
            old = ((x, name) for x, name in self.names.values() if name.startswith(OLD_GRADIENT))
            self.left = [name for x, name in old if x.layout != torch.strided or x.is_meta or bool(x.any())]
        with _without_modes() as others:
            others.insert(0, self._operations)
        # By which every backward pass goes to autograd's engine, however it was called: a nested one, too.
        self._run, self._heard = AUTOGRAD._engine_run_backward, self._run_backward
        AUTOGRAD._engine_run_backward = self._heard
        self._listens = True
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._listens:
            return
        self._listens = False
        with _without_modes() as others:
            others[:] = [other for other in others if other is not self._operations]
        if AUTOGRAD._engine_run_backward is self._heard:  # or else somebody has wrapped it, and calls the engine
            AUTOGRAD._engine_run_backward = self._run

    def _safely(self, do: Callable[[], T]) -> T | None:
        """None if it fails, or something has before."""
        try:
            return None if self.failure else do()
        except Exception as error:
            self.failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within: what is computed is the tape's own, and heard by nobody."""
        self._quiet, before = True, self._quiet
        try:
            alone = _python_dispatch._disable_current_modes() if _modes() else nullcontext()
            with torch._C.DisableTorchFunction(), alone:
                yield
        finally:
            self._quiet = before

    def save(self, folder: Path, step: int) -> None:
        """As two files of a run folder: ``trace.json`` and, with the values, ``trace.safetensors``."""
        document = {
            "step": step,
            "given": self.given,
            "read": self.read,
            "left": self.left,
            "entries": [asdict(entry) for entry in self.entries],
            "joints": [asdict(joint) for joint in self.joints],
        }
        with self.paused():
            values = save(self.values)
        replace(folder / VALUES, values)
        replace(folder / TRACE, json.dumps(document).encode())

    def operation(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], call: Callable[[], Any]) -> Any:
        """Do it, and write it down."""
        if self._quiet:
            return call()
        inputs = self._safely(
            lambda: [self._input(x) if isinstance(x, Tensor) else _text(x) for x in _flat([*args, *kwargs.values()])]
        )
        result = call()
        op = str(func).removeprefix("aten.").removesuffix(".default")
        if op.startswith("profiler") and self.renew is not None and OPTIMIZER_STEP in str(args):
            renew = self.renew
            self._safely(lambda: self.names.update(renew()))  # a state that was loaded since has names, too
        writes = op in STATISTICS and len(args) > TRAINING and args[TRAINING] is True
        made = _made(result) or _written_to(func, args, kwargs)
        self._safely(lambda: self._write_down(op, inputs or [], made, _is_view(func), args[3:5] if writes else ()))
        return result

    def _write_down(
        self, op: str, inputs: list[Number | str], made: list[Tensor], views: bool, statistics: Sequence[Any]
    ) -> None:
        if op.startswith(BLANK):
            self._blank |= {_memory(x): x.untyped_storage() for x in made if _memory(x)}
        elif not views:
            for x in made:
                self._blank.pop(_memory(x), None)
        scratch = SCRATCH.get(op.partition(".")[0], len(made))
        self._blank |= {_memory(x): x.untyped_storage() for x in made[scratch : scratch + 1] if _memory(x)}
        outputs = [NOTHING if op.startswith(BLANK) or _memory(x) in self._blank else self._number(x) for x in made]
        if not op.startswith(FETCHED):
            self._known.update(number.digest for number in outputs)
            self._known.update(self._number(x).digest for x in statistics if isinstance(x, Tensor))
        node, sequence, where = torch._C._current_autograd_node(), -1, ""
        if node is not None:
            sequence, where = node._sequence_nr(), self._made.get(node._sequence_nr(), ("", ""))[1]
        else:
            where, now = author(sys._getframe(1)), _next_sequence()
            for missed in range(self._last_sequence, now - 1):  # of an operation in place, which no entry is given
                self._made.setdefault(missed, ("", self._in_place_at or where))
            self._in_place_at = ""
            if now > self._last_sequence and outputs:
                sequence, self._made[now - 1] = now - 1, (outputs[0].digest, where)
            self._last_sequence = now
        in_place = op.partition(".")[0].endswith("_")
        for x in made if in_place else ():
            self._in_place_at = where if node is None else ""
            if x._base is not None and _has_memory(x):  # the rest is made of it, though by nothing that is heard
                self._bases[x.untyped_storage().data_ptr()] = x._base
        written_to = made if in_place else [x for x in statistics if isinstance(x, Tensor)]
        to = self._written(written_to) if node is None else ""  # autograd writes to gradients
        self.entries.append(Entry(op, inputs, outputs, _short(node) if node else "", sequence, where, to))

    def _written(self, made: Sequence[Tensor]) -> str:
        """The name of the first that has one, also where it is written through a view, as ``.data`` is."""
        if name := next(filter(None, map(self._name, made)), ""):
            return name
        held = {(x.data_ptr(), x.numel()): name for x, name in self.names.values() if _has_memory(x)}
        return next(filter(None, (held.get((x.data_ptr(), x.numel()), "") for x in made if _has_memory(x))), "")

    def _run_backward(self, roots: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        """A backward pass, by autograd's engine."""
        handles: list[Any] = []
        if self._listens and not self._quiet:
            graphs = (getattr(root, "grad_fn", root) for root in roots)  # or autograd's edges
            handles = self._safely(lambda: self.begin_backward(getattr(x, "node", x) for x in graphs)) or []
        try:
            return self._run(roots, *args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def begin_backward(self, roots: Iterable[Any]) -> list[Any]:
        """Hook every node of the graph. Returns: what removes the hooks."""
        consumers: dict[Any, list[Any]] = {}
        for node in nodes(roots):
            consumers.setdefault(node, [])
            for following, _ in node.next_functions:
                if following is not None:
                    consumers.setdefault(following, []).append(node)
        which, self._backwards = self._backwards, self._backwards + 1

        def hook(node: Any) -> Callable[[Any], None]:
            users = [(_short(user), user._sequence_nr(), self._where(user)) for user in consumers[node]]
            return lambda gradients: self._safely(lambda: self._joint(node, gradients, which, users))

        return [node.register_prehook(hook(node)) for node in consumers]

    def _joint(
        self, node: Any, gradients: Sequence[Tensor | None], which: int, users: list[tuple[str, int, str]]
    ) -> None:
        """The whole gradient of what a node made has come together."""
        gradient, variable = gradients[0], getattr(node, "variable", None)
        if gradient is None or self._quiet:
            return
        made, where = self._made.get(node._sequence_nr(), ("", ""))
        name, sequence = "", node._sequence_nr()
        if variable is not None:
            made, name, sequence = self._number(variable).digest, self._name(variable), -1
        self.joints.append(Joint(_short(node), name, made, self._number(gradient), where, sequence, which, users))

    def _where(self, node: Any) -> str:
        return self._made.get(node._sequence_nr(), ("", ""))[1]

    def _input(self, tensor: Tensor) -> Number:
        if _memory(tensor) in self._blank:
            return NOTHING
        found, name = self._number(tensor), self._name(tensor)
        if _has_memory(tensor) and tensor.untyped_storage().data_ptr() in self._bases:
            self._known.add(found.digest)
        if found.digest not in self._known:
            self.given.setdefault(found.digest, name)
        if name and name not in self.read and torch._C._current_autograd_node() is None:
            self.read.append(name)
        return found

    def _name(self, tensor: Tensor) -> str:
        return self.names[id(tensor)][1] if id(tensor) in self.names else ""

    def _number(self, tensor: Tensor) -> Number:
        kind = (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        if tensor._is_zerotensor():  # of forward-mode derivatives: it has no memory
            return Number(UNREADABLE, *kind)
        with self.paused():
            plain = tensor.detach()
            try:
                plain = plain.to_dense() if plain.layout != torch.strided else plain  # a sparse gradient, say
                if plain.is_floating_point() and plain.dtype.itemsize > 1:
                    plain = plain + 0.0
                digest = xxhash.xxh3_128_hexdigest(raw(plain), seed=zlib.crc32(str(plain.dtype).encode()))
            except (RuntimeError, TypeError, NotImplementedError):
                return Number(UNREADABLE, *kind)
            if digest not in self.values and self._bytes + plain.nbytes < BUDGET:
                self._bytes += plain.nbytes
                self.values[digest] = plain.to("cpu").contiguous().clone()
            return Number(digest, *kind)


def read_tape(folder: Path) -> tuple[int, Tape]:
    """The optimiser step and what was heard of it. Raises: ConfigError for files that cannot be read."""
    try:
        document = json.loads((folder / TRACE).read_bytes())
        entries = [
            Entry(
                entry["op"],
                [value if isinstance(value, str) else _read_number(value) for value in entry["inputs"]],
                [_read_number(value) for value in entry["outputs"]],
                *(entry[key] for key in ("node", "sequence", "where", "to")),
            )
            for entry in document["entries"]
        ]
        joints = [
            Joint(**{
                **joint, "gradient": _read_number(joint["gradient"]), "consumers": list(map(tuple, joint["consumers"]))
            })
            for joint in document["joints"]
        ]  # fmt: skip
        values = load((folder / VALUES).read_bytes())
        given, read = dict(document["given"]), list(document["read"])
        return int(document["step"]), Tape({}, entries, joints, values, given, read, document.get("left"))
    except KeyError as error:
        raise ConfigError(f"{folder / TRACE}: has no {error}, as of another version; trace the step again") from error
    except (OSError, ValueError, TypeError, SafetensorError, RecursionError) as error:
        raise ConfigError(f"{folder / TRACE}: cannot be read ({' '.join(str(error).split())})") from error


def _read_number(value: Any) -> Number:
    digest, shape, dtype = value
    return Number(digest, tuple(shape), dtype)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return self.tape.operation(func, args, kwargs, lambda: func(*args, **kwargs))


@contextmanager
def _without_modes() -> Iterator[list[Any]]:
    """The dispatch modes that are entered, from the outermost on; what is left in the list is entered again."""
    modes = list(_python_dispatch._get_current_dispatch_mode_stack())
    for _ in modes:
        _python_dispatch._pop_mode()
    try:
        yield modes
    finally:
        for mode in modes:
            _python_dispatch._push_mode(mode)


def nodes(roots: Iterable[Any]) -> list[Any]:
    """All of a graph."""
    found: dict[Any, None] = {}
    todo = [root for root in roots if root is not None]
    while todo:
        node = todo.pop()
        if node not in found:
            found[node] = None
            todo += [following for following, _ in node.next_functions if following is not None]
    return list(found)


def _modes() -> int:
    """How many listen to torch's dispatcher now."""
    before: int = torch._ops._len_torch_dispatch_stack_pre_dispatch()  # type: ignore[no-untyped-call]
    return torch._C._len_torch_dispatch_stack() + before


def names_of(
    named: Iterable[tuple[str, Tensor]], optimizers: Iterable[torch.optim.Optimizer]
) -> dict[int, tuple[Tensor, str]]:
    """By identity: parameters, the gradients that they have already, and what the optimisers keep of each."""
    parameters = dict(named)
    names = {id(tensor): (tensor, name) for name, tensor in parameters.items()}
    known = {id(tensor): name for name, tensor in parameters.items()}
    for name, tensor in parameters.items():
        if tensor.grad is not None:
            names[id(tensor.grad)] = tensor.grad, old_gradient(name)
    for optimizer in optimizers:
        for tensor, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    names[id(value)] = value, f"{key} of {known.get(id(tensor), 'a parameter')} in the optimiser"
    return names


def old_gradient(name: str) -> str:
    """What the gradient is called that a parameter has as the listening begins."""
    return f"{OLD_GRADIENT} {name}, left from a step before,"


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor._is_zerotensor() and bool(tensor.data_ptr())


def _memory(tensor: Tensor) -> int:
    """Where the memory lies that a tensor and its views share; 0 if it has none."""
    return tensor.untyped_storage().data_ptr() if _has_memory(tensor) else 0


def _is_view(func: Any) -> bool:
    """Whether an operation hands on the memory of an input, and writes nothing."""
    returns = [returned.alias_info for returned in func._schema.returns]
    return any(returns) and not any(alias is not None and alias.is_write for alias in returns)


def _next_sequence() -> int:
    return int(torch._C._autograd._get_sequence_nr())


def _short(node: Any) -> str:
    return str(node.name().rpartition("::")[2])


def _flat(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        found += _flat(value) if isinstance(value, list | tuple) else [value]
    return found


def _made(result: Any) -> list[Tensor]:
    return [x for x in _flat([result]) if isinstance(x, Tensor)]


def _written_to(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """What an operation that returns nothing has changed in place, as those on lists of tensors do."""
    parameters = {argument.name: argument.alias_info for argument in func._schema.arguments}
    given = {**dict(zip(parameters, args, strict=False)), **kwargs}
    return _made([value for name, value in given.items() if parameters[name] and parameters[name].is_write])


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, bool | int | float | str | complex | None) else str(type(value).__name__)


def written(where: str) -> str:
    """The author's line without its number."""
    return where.partition(": ")[2]


def author(frame: FrameType | None) -> str:
    """The line of whoever called PyTorch: the first that is neither PyTorch's nor ours nor Python's own.

    Of one that returns a number, which has no name there, the function, too.
    """
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(MACHINERY) or (SITE in name and not name.startswith(TORCH)):
            line, function = linecache.getline(name, frame.f_lineno).strip(), frame.f_code.co_name
            of = f" in {function}" if line.startswith("return ") and function.isidentifier() else ""
            return f"{Path(name).name}:{frame.f_lineno}{of}" + (f": {line}" if line else "")
        frame = frame.f_back
    return ""
