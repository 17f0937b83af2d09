"""Checks of what a caller gave."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from twinspire.errors import InputError
from twinspire.index.items import ItemKind
from twinspire.index.reference import BundleReference
from twinspire.index.where import Where


def checked_ids(ids: Iterable[int]) -> list[int]:
    """Return `ids` as a list. Raises `InputError` where they are not whole numbers from 0 up."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise InputError(f"ids must be a list of whole numbers, got {ids!r}")
    checked = []
    for number in ids:
        if not isinstance(number, int | np.integer) or isinstance(number, bool) or not 0 <= number < 2**63:
            raise InputError(f"an id is a whole number from 0 up, got {number!r}")
        checked.append(int(number))
    return checked


def checked_k(k: int) -> int:
    """Return `k`. Raises `InputError` where it is not a whole number from 1 up."""
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise InputError(f"k, the number of hits, must be a whole number from 1 up, got {k!r}")
    return int(k)


def check_kind(kind: ItemKind | None) -> None:
    """Raise `InputError` for what is no kind of item."""
    if kind is not None and not isinstance(kind, ItemKind):
        raise InputError(f"a kind of item must be an ItemKind ({', '.join(ItemKind)}), got {kind!r}")


def check_where(where: Where | None) -> None:
    """Raise `InputError` for what is no filter."""
    if where is not None and not isinstance(where, Where):
        raise InputError(f"a filter must be a Where, got {where!r}. Make one with Where.parse(text)")


def check_bundle(bundle: BundleReference) -> None:
    """Raise `InputError` for what is no reference to a bundle."""
    if not isinstance(bundle, BundleReference):
        raise InputError(f"a bundle is given as a BundleReference(name, path), got {bundle!r}")
