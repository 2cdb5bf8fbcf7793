"""Case distinctions as shared diagrams: which of finitely many results holds, by the signs of some quantities.

A diagram is a leaf, or a ``Case``: one quantity, and what holds where it is negative, zero and positive. Along every
path the quantities come in the order of their numbers, and equal diagrams are one object (a decision diagram with
three branches: Bryant 1986). So a path is a region of the inputs, and two gradients are compared region by region.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

NEGATIVE, ZERO, POSITIVE = -1, 0, 1
Path = tuple[tuple[Any, int], ...]  # (quantity, its sign), outermost first


@dataclass(frozen=True, eq=False)
class Case:
    """A quantity by its number, and the diagrams for each of its signs."""

    atom: int
    branches: tuple["Diagram", "Diagram", "Diagram"]  # negative, zero, positive


Diagram = Any  # a Case, or a leaf: any hashable value


class TooManyCases(Exception):
    """A diagram grew beyond what is worth asking about."""


@dataclass
class Diagrams:
    """Makes diagrams and remembers them. ``limit``: so many cases, and ``TooManyCases`` is raised."""

    limit: int = 200_000
    atoms: list[Hashable] = field(default_factory=list)
    _numbers: dict[Hashable, int] = field(default_factory=dict)
    _cases: dict[tuple[Any, ...], Case] = field(default_factory=dict)
    _memos: dict[Hashable, dict[tuple[Any, ...], Diagram]] = field(default_factory=dict)

    def number(self, quantity: Hashable) -> int:
        if quantity not in self._numbers:
            self._numbers[quantity] = len(self.atoms)
            self.atoms.append(quantity)
        return self._numbers[quantity]

    def sign(self, quantity: Hashable) -> Diagram:
        """The diagram of a quantity's sign."""
        return self._case(self.number(quantity), (NEGATIVE, ZERO, POSITIVE))

    def _case(self, atom: int, branches: tuple[Diagram, Diagram, Diagram]) -> Diagram:
        if branches[0] == branches[1] == branches[2]:
            return branches[0]
        key = (atom, *(id(b) if isinstance(b, Case) else (b,) for b in branches))
        if key not in self._cases:
            if len(self._cases) >= self.limit:
                raise TooManyCases(f"more than {self.limit:,} cases")
            self._cases[key] = Case(atom, branches)
        return self._cases[key]

    def apply(self, function: Callable[..., Any], *diagrams: Diagram, key: Hashable = None) -> Diagram:
        """``function`` of the leaves, case by case. What it returns is a leaf, or a diagram again.

        ``key`` names the function: what it made of some diagrams is then remembered as long as they are.
        """
        memo: dict[tuple[Any, ...], Diagram] = {} if key is None else self._memos.setdefault(key, {})

        def walk(parts: tuple[Diagram, ...]) -> Diagram:
            at = tuple(id(p) if isinstance(p, Case) else (p,) for p in parts)
            if at in memo:
                return memo[at]
            splits = [p.atom for p in parts if isinstance(p, Case)]
            if not splits:
                found = function(*parts)
            else:
                atom = min(splits)
                below = [
                    walk(tuple(p.branches[i] if isinstance(p, Case) and p.atom == atom else p for p in parts))
                    for i in range(3)
                ]
                found = self._choose(atom, below)
            memo[at] = found
            return found

        return walk(diagrams)

    def _choose(self, atom: int, below: list[Diagram]) -> Diagram:
        """A case on ``atom`` above diagrams that may themselves ask for quantities of a lower number."""
        if all(not isinstance(b, Case) or b.atom > atom for b in below):
            return self._case(atom, (below[0], below[1], below[2]))
        return self.select(self._case(atom, (NEGATIVE, ZERO, POSITIVE)), *below)

    def select(self, sign: Diagram, negative: Diagram, zero: Diagram, positive: Diagram) -> Diagram:
        """One of three diagrams, by the sign that another gives."""
        return self.apply(lambda s, *three: three[s + 1], sign, negative, zero, positive, key="select")

    def paths(self, diagram: Diagram, path: Path = ()) -> Iterator[tuple[Path, Any]]:
        """Every path with its leaf."""
        if not isinstance(diagram, Case):
            yield path, diagram
            return
        for sign, branch in zip((NEGATIVE, ZERO, POSITIVE), diagram.branches, strict=True):
            yield from self.paths(branch, (*path, (self.atoms[diagram.atom], sign)))
