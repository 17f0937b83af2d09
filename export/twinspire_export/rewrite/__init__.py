"""Lossless rewrites of towers, in torch and before ONNX: the same embeddings for less computation.

`REWRITES` holds them in the order in which they are applied; each is a function in `passes.py` that replaces parts of a
tower (`twinspire_export.towers`) and never writes to the checkpoint's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from twinspire.errors import InputError
from twinspire_export.rewrite.passes import (
    end_token_by_index,
    finite_mask,
    fold_normalisation,
    fold_norms,
    fold_scale,
    join_projections,
    patches_as_matmul,
    pool_before_last_block,
)
from twinspire_export.text_encoder import TextEncoder
from twinspire_export.towers import BlockTower, ImageTower, TextTower, TransformerTower

__all__ = ["ALL", "REWRITES", "Rewrite", "apply_rewrites", "check_rewrites", "select_rewrites"]

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class Rewrite:
    """One rewrite: `apply` changes a tower of the classes `tower`, once, after the rewrites `requires`."""

    name: str
    apply: Callable[[Any], None]
    tower: type[BlockTower] | tuple[type[BlockTower], ...] = BlockTower
    requires: tuple[str, ...] = ()


REWRITES = {
    rewrite.name: rewrite
    for rewrite in (
        Rewrite("mask", finite_mask, (TextTower, TextEncoder)),
        Rewrite("end-token", end_token_by_index, TextTower),
        Rewrite("normalisation", fold_normalisation, ImageTower),
        Rewrite("patches", patches_as_matmul, ImageTower, requires=("normalisation",)),
        Rewrite("norms", fold_norms, TransformerTower),
        Rewrite("scale", fold_scale),
        Rewrite("qkv", join_projections),
        Rewrite("pooled", pool_before_last_block),
    )
}
ALL = tuple(REWRITES)


def apply_rewrites(tower: _Module, names: Iterable[str] = ALL) -> _Module:
    """Apply the rewrites `names` to `tower` itself, in the order of `REWRITES`, and return it.

    Rewrites of other classes of towers have no effect. `tower` must be as made from a checkpoint. Raises InputError for
    an unknown name, and for a rewrite that requires another which is not among `names`.
    """
    for name in check_rewrites(names):
        if isinstance(tower, REWRITES[name].tower):
            REWRITES[name].apply(tower)
    return tower


def check_rewrites(names: Iterable[str]) -> tuple[str, ...]:
    """Return `names` without repeats, in the order of `REWRITES`. Raises InputError as `apply_rewrites` does."""
    chosen = list(names)
    if unknown := [name for name in chosen if name not in REWRITES]:
        raise InputError(f"unknown rewrite {unknown[0]!r}; expected one of: {', '.join(REWRITES)}")
    for name in chosen:
        if missing := [required for required in REWRITES[name].requires if required not in chosen]:
            raise InputError(
                f"the rewrite {name!r} requires {missing[0]!r}, which was not chosen; add it or leave both out"
            )
    return tuple(name for name in REWRITES if name in chosen)


def select_rewrites(choice: str) -> tuple[str, ...]:
    """Parse the value of `--rewrites`: `all`, `none`, or names separated by commas.

    Raises InputError as `apply_rewrites` does.
    """
    if choice in ("all", "none"):
        return ALL if choice == "all" else ()
    names = [name.strip() for name in choice.split(",")]
    if any(name in ("", "all", "none") for name in names):
        raise InputError(f"rewrites {choice!r}: expected all, none, or some of: {', '.join(REWRITES)}")
    return check_rewrites(names)
