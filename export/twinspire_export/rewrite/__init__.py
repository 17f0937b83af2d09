"""Lossless rewriting of towers, in torch and before ONNX: the same embeddings by less work.

`REWRITES` holds them in the order in which they are applied; `apply_rewrites` applies some to a tower,
`select_rewrites` reads a choice as a user writes it. Each is a function of its own that changes the plain modules of
`twinspire_export.towers` and leaves the checkpoint's weights alone.
"""

from twinspire_export.rewrite.registry import (
    ALL,
    REQUIRED,
    REWRITES,
    Rewrite,
    apply_rewrites,
    check_rewrites,
    select_rewrites,
)

__all__ = ["ALL", "REQUIRED", "REWRITES", "Rewrite", "apply_rewrites", "check_rewrites", "select_rewrites"]
