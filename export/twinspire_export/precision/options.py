"""How a precision is chosen, and what can be measured at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twinspire._arguments import as_member
from twinspire.bundle import Bundle, DecodeMode, Precision, Tower
from twinspire.errors import BundleError, InputError
from twinspire.images import ImageItem
from twinspire_eval.datasets import CaptionedImages
from twinspire_export.precision.recipes import MAX_RECIPES


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """How a precision is chosen.

    `max_recall_drop` is how much of fp32's R@1 may be lost, pooled over languages and directions: 0.005 is half a
    point. `recipes` is the number of int8 recipes that are tried as well, calibrated on `images` and `captions`
    (synthetic scenes where None); None is one where the bundle has fp32 only, else none. `baseline` also measures
    onnxruntime's `quantize_dynamic`, which is never chosen. `merge_tokens` lists how many tokens of an image to merge
    in each block, of the fp32 engines and of the first int8 ones; None is a sweep. `threads` is the number of threads
    of a call; None is all cores. With `decode` scaled the best engines are measured with scaled decoding too, and the
    bundle recommends it where no more than `max_recall_drop` is lost in all. Speed is measured in `rounds` rounds of
    at least `visit_s` seconds for each tower and engine.

    Raises InputError where a value is out of range.
    """

    max_recall_drop: float = 0.005
    recipes: int | None = None
    images: Sequence[ImageItem] | None = None
    captions: Sequence[str] | None = None
    baseline: bool = True
    merge_tokens: Sequence[int] | None = ()
    threads: int | None = None
    decode: DecodeMode | str = DecodeMode.EXACT
    rounds: int = 10
    visit_s: float = 0.3

    def __post_init__(self) -> None:
        as_member(self.decode, DecodeMode, "decode")
        if not 0 <= self.max_recall_drop < 1:
            raise InputError(
                f"max_recall_drop {self.max_recall_drop:g}: expected a share of R@1 from 0 to below 1, such as 0.005 "
                "for half a point"
            )
        if self.recipes is not None and not 0 <= self.recipes <= MAX_RECIPES:
            raise InputError(f"recipes {self.recipes}: expected 0 to {MAX_RECIPES}")
        if any(r < 1 for r in self.merge_tokens or ()):
            raise InputError(f"merge_tokens {list(self.merge_tokens or ())}: expected numbers of at least 1")
        if self.rounds < 1 or not self.visit_s >= 0 or (self.threads is not None and self.threads < 1):
            raise InputError(
                f"rounds {self.rounds}, visit_s {self.visit_s}, threads {self.threads}: expected rounds and threads of "
                "at least 1 and visit_s of at least 0"
            )


def check_inputs(base: Bundle, destination: Path, data: CaptionedImages) -> None:
    """Raise InputError or BundleError where a bundle cannot be measured on a data set or written to `destination`."""
    needed = (Tower.IMAGE, Tower.TEXT) if data.has_images else (Tower.TEXT,)
    if set(base.towers) != set(needed):
        raise InputError(
            f"{data.name} measures the {' and the '.join(needed)} tower, {base.path} has the "
            f"{' and the '.join(base.towers)} tower: expected captions alone (captions:FILE) for a model of texts, and "
            "images with captions for one of both"
        )
    lacking = [tower for tower in base.towers if Precision.FP32 not in base.precisions(tower)]
    if lacking:
        raise BundleError(
            f"{base.path} has no fp32 engine for the {' and the '.join(lacking)} tower, the reference of all others. "
            "Use the bundle that `twinspire export` made, or one made from it"
        )
    if Tower.AUDIO in base.towers:
        raise BundleError(
            f"{base.path} has an audio tower, whose recall cannot be measured: the data sets have images and texts. "
            "`twinspire quantize` makes its engines and measures their cosines"
        )
    if os.path.lexists(destination):
        raise BundleError(f"{destination} exists: a bundle is never changed. Give another name or remove it")
    if not destination.absolute().parent.is_dir():
        raise BundleError(f"{destination.absolute().parent} is not a folder: create it first")
