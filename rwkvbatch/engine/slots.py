"""Which slots of the state pool are free."""

from __future__ import annotations


class SlotAllocator:
    """Hands out the numbers 0 .. capacity - 1, each to one owner at a time."""

    def __init__(self, capacity: int) -> None:
        self._free = list(range(capacity - 1, -1, -1))
        self.capacity = capacity

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int | None:
        """A free slot, or None."""
        return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        self._free.append(slot)
