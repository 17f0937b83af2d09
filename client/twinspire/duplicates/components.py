"""Connected components of ids: disjoint sets, joined pair by pair."""

from __future__ import annotations

from collections.abc import Iterable


class Components:
    """Disjoint sets with path halving (Tarjan and van Leeuwen, Worst-case Analysis of Set Union Algorithms, 1984)."""

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}

    def connect(self, pairs: Iterable[tuple[int, int] | list[int]]) -> None:
        """Join the sets of the two ids of each pair."""
        for one, other in pairs:
            left, right = sorted((self._root(one), self._root(other)))
            self._parents[left] = left
            self._parents[right] = left

    def are_connected(self, one: int, other: int) -> bool:
        """Whether two ids are in one set."""
        return self._root(one) == self._root(other)

    def sets(self) -> list[list[int]]:
        """Return the sets of two or more ids, each in order, by their smallest id."""
        found: dict[int, list[int]] = {}
        for number in sorted(self._parents):
            found.setdefault(self._root(number), []).append(number)
        return list(found.values())

    def _root(self, number: int) -> int:
        parents = self._parents
        while (parent := parents.get(number, number)) != number:
            parents[number] = parents[parent]
            number = parents[number]
        return number
