"""Checks of what a caller gave."""

from __future__ import annotations

from collections.abc import Iterable

from twinspire._arguments import as_list, as_member, as_whole, shown
from twinspire.errors import InputError
from twinspire.stores.filters.filter import Filter
from twinspire.stores.items import ItemKind
from twinspire.stores.reference import BundleReference

_LARGEST_ID = 2**63 - 1  # SQLite's
_LARGEST_K = 2**40  # more than any index has; what is larger means the same and would overflow int64 in FAISS


def checked_ids(ids: Iterable[int]) -> list[int]:
    """Return `ids` as a list. Raises `InputError` where they are not whole numbers from 0 to 2**63 - 1."""
    return [as_whole(number, "an id", minimum=0, maximum=_LARGEST_ID) for number in as_list(ids, "ids")]


def checked_k(k: int) -> int:
    """Return `k`, at most 2**40. Raises `InputError` where it is not a whole number from 1 up."""
    return min(as_whole(k, "k (the number of hits)", minimum=1), _LARGEST_K)


def checked_effort(effort: int | None) -> int | None:
    """Return `effort`, at most 2**40. Raises `InputError` where it is not None or a whole number from 1 up."""
    return None if effort is None else min(as_whole(effort, "effort", minimum=1), _LARGEST_K)


def checked_kind(kind: ItemKind | str | None) -> ItemKind | None:
    """Return the kind of item, which may be given by name. Raises `InputError` for what is none."""
    return None if kind is None else as_member(kind, ItemKind, "a kind of item")


def checked_where(where: Filter | str | None) -> Filter | None:
    """Return the filter, compiled where its text came. Raises `InputError` for what is no filter."""
    if isinstance(where, str):
        return Filter.parse(where)
    if where is not None and not isinstance(where, Filter):
        raise InputError(f"a filter must be a Where or its text, got {shown(where)}")
    return where


def check_bundle(bundle: BundleReference) -> None:
    """Raise `InputError` for what is no reference to a bundle."""
    if not isinstance(bundle, BundleReference):
        raise InputError(f"a bundle is given as a BundleReference(name, path), got {bundle!r}")
