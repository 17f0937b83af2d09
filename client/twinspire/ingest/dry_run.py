"""An index and a client that change and compute nothing: what a run would do, by the same code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.index import AddReport, Index, Item, ItemKind, StoredItem

if TYPE_CHECKING:
    from twinspire.client import Client


class DryRunIndex:
    """Reads an index, and remembers which items would be where."""

    def __init__(self, index: Index, dim: int) -> None:
        self._index, self._dim = index, dim
        self._updated: dict[int, StoredItem] = {}
        self._ids = count(2**62)  # of items that would be added: no index has them

    def check_space(self, space: str) -> None:
        """Raise `SpaceMismatchError` as the index does."""
        self._index.check_space(space)

    def known_hashes(self, hashes: Iterable[str], *, kind: ItemKind = ItemKind.IMAGE) -> set[str]:
        """Return those of `hashes` that the index has."""
        return self._index.known_hashes(hashes, kind=kind)

    def find(self, *, uri: str | None = None, content_hash: str | None = None) -> list[StoredItem]:
        """Return the items of the index, as they would be."""
        return [self._updated.get(item.id, item) for item in self._index.find(uri=uri, content_hash=content_hash)]

    def vectors(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Return unit vectors that mean nothing, (N, D) float32."""
        return _placeholder(len(list(ids)), self._dim)

    def add(self, embeddings: NDArray[np.float32], items: Sequence[Item], *, space: str) -> AddReport:  # noqa: ARG002
        """Add nothing."""
        return AddReport([next(self._ids) for _ in items], [])

    def update(self, id: int, **changes: Any) -> StoredItem:  # noqa: A002, ANN401 - as of `Index.update`
        """Return the item as it would be."""
        fields = {name: value for name, value in changes.items() if name not in ("embedding", "space")}
        before = self._updated[id] if id in self._updated else self._index.get([id])[0]
        self._updated[id] = replace(before, **fields)
        return self._updated[id]

    def remove(self, ids: Iterable[int]) -> int:
        """Remove nothing."""
        return len(list(ids))

    def __len__(self) -> int:
        return len(self._index)


def dry_run_client(client: Client) -> Any:  # noqa: ANN401 - has of a client what the stages use
    """Return what stands in for a client: it decodes and encodes nothing, so no file fails for what is in it."""

    def preprocess(items: Sequence[object], *, on_error: str) -> tuple[NDArray[np.uint8], list[Any]]:  # noqa: ARG001
        return np.zeros((len(items), 1, 1, 3), np.uint8), []

    def encode(things: Sequence[object]) -> NDArray[np.float32]:
        return _placeholder(len(things), client.dim)

    return SimpleNamespace(
        space=client.space,
        dim=client.dim,
        limits=client.limits,
        preprocess=preprocess,
        encode_texts=encode,
        towers=SimpleNamespace(encode_images=encode),
    )


def _placeholder(rows: int, dim: int) -> NDArray[np.float32]:
    return np.full((rows, dim), dim**-0.5, np.float32)
