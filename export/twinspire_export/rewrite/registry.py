"""The rewrites by name, in the order in which they are applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from twinspire.errors import InputError
from twinspire_export.rewrite.folding import fold_normalisation, fold_norms, fold_scale
from twinspire_export.rewrite.matmuls import join_projections, patches_as_product, pool_before_last_block
from twinspire_export.rewrite.text import end_token_by_index, finite_mask, unit_length
from twinspire_export.towers import ClipTower, ImageTower, TextTower

_BOTH = (ImageTower, TextTower)


@dataclass(frozen=True)
class Rewrite:
    """One of them: what `apply` does to a tower of the classes `towers`, once; `needs` are applied before it."""

    name: str
    apply: Callable[[Any], None]
    towers: tuple[type[ClipTower], ...] = _BOTH
    needs: tuple[str, ...] = ()


REWRITES = {
    rewrite.name: rewrite
    for rewrite in (
        Rewrite("unit-length", unit_length),
        Rewrite("mask", finite_mask, (TextTower,)),
        Rewrite("end-token", end_token_by_index, (TextTower,)),
        Rewrite("normalisation", fold_normalisation, (ImageTower,)),
        Rewrite("patches", patches_as_product, (ImageTower,), needs=("normalisation",)),
        Rewrite("norms", fold_norms),
        Rewrite("scale", fold_scale),
        Rewrite("qkv", join_projections),
        Rewrite("pooled", pool_before_last_block),
    )
}
ALL = tuple(REWRITES)
REQUIRED = ("unit-length",)
"""Those without which an engine would break the contract of the towers; they are applied whatever is chosen."""


def apply_rewrites(tower: ClipTower, names: Iterable[str] = ALL) -> ClipTower:
    """Apply the rewrites `names` to `tower` itself, in the order of `REWRITES` and those in `REQUIRED` in any case.

    Names that are for the other tower have no effect. `tower` must be as made from a checkpoint. Returns it.
    Raises InputError for a name that is not known, and for one that needs another which is not among `names`.
    """
    for name in check_rewrites(names):
        if isinstance(tower, REWRITES[name].towers):
            REWRITES[name].apply(tower)
    return tower


def check_rewrites(names: Iterable[str]) -> tuple[str, ...]:
    """Put `names` and those in `REQUIRED` in order, each once. Raises InputError as `apply_rewrites` does."""
    asked = list(names)
    if unknown := [name for name in asked if name not in REWRITES]:
        raise InputError(f"no rewrite is called {unknown[0]!r}; known are: {', '.join(REWRITES)}")
    chosen = {*asked, *REQUIRED}
    for name in asked:
        if missing := [need for need in REWRITES[name].needs if need not in chosen]:
            raise InputError(
                f"the rewrite {name!r} needs {missing[0]!r}, which was not chosen; add it or leave both out"
            )
    return tuple(name for name in REWRITES if name in chosen)


def select_rewrites(choice: str) -> tuple[str, ...]:
    """Read a choice as a user writes it: `all`, `none` (which leaves those in `REQUIRED`), or names between commas.

    Raises InputError as `apply_rewrites` does.
    """
    if choice in ("all", "none"):
        return check_rewrites(ALL if choice == "all" else ())
    names = [name.strip() for name in choice.split(",")]
    if any(name in ("", "all", "none") for name in names):
        raise InputError(f"{choice!r} is no choice of rewrites; expected all, none, or some of: {', '.join(REWRITES)}")
    return check_rewrites(names)
