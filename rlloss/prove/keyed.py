"""Values that are what their key says: equal, and hashed, by it."""

from functools import cached_property


class Keyed:
    """A value whose ``key`` says all of it. Terms are shared by the million, and compared as often."""

    @cached_property
    def key(self) -> str:
        raise NotImplementedError

    @cached_property
    def _hash(self) -> int:
        return hash((type(self), self.key))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and self.key == other.key)
