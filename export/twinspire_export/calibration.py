"""Images and captions on which a quantizer sees what values occur, and some kept back to measure it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from twinspire._arguments import require_list
from twinspire.bundle import Bundle
from twinspire.errors import ImageError, InputError
from twinspire.images import ImageItem, Preprocessor
from twinspire.text import Tokenizer
from twinspire_eval import scenes
from twinspire_eval.scenes import CaptionedScene, Language, scene_set

MAX_SAMPLES = 320
"""More are thinned out evenly: each costs two runs of the fp32 engine, and ranges change little any more."""

MEASURED_EVERY = 5
"""Every fifth sample is kept back from calibration, to be measured on."""

MIN_TO_HOLD_APART = 20
"""With fewer samples none is kept back: they would leave too few for either purpose."""

_SCENES_SEED = 8

_Sample = TypeVar("_Sample")


@dataclass(frozen=True)
class Split(Generic[_Sample]):
    """Samples to calibrate on and samples to measure on: disjoint where `held_apart`, else the same."""

    calibration: list[_Sample]
    measurement: list[_Sample]
    held_apart: bool

    def describe(self, what: str) -> str:
        """Say on what was measured, for a certificate."""
        if self.held_apart:
            return f"{len(self.measurement)} {what} held apart from the {len(self.calibration)} calibrated on"
        return f"the {len(self.measurement)} {what} calibrated on"


def thin_out(samples: Sequence[_Sample]) -> list[_Sample]:
    """Choose at most MAX_SAMPLES evenly. The same every time."""
    count = min(len(samples), MAX_SAMPLES)
    return [samples[position * len(samples) // count] for position in range(count)]


def split(samples: Sequence[_Sample]) -> Split[_Sample]:
    """Keep some of the samples back where there are enough. The same every time."""
    if len(samples) < MIN_TO_HOLD_APART:
        return Split(calibration=list(samples), measurement=list(samples), held_apart=False)
    return Split(
        calibration=[sample for position, sample in enumerate(samples) if position % MEASURED_EVERY],
        measurement=list(samples[::MEASURED_EVERY]),
        held_apart=True,
    )


def image_samples(
    bundle: Bundle,
    pictures: Sequence[ImageItem] | NDArray[np.uint8],
    *,
    on_bad: Callable[[ImageError], None] | None = None,
) -> Split[NDArray[np.uint8]]:
    """Bring images to the size that `bundle` takes; a sample is one of them, (1, S, S, 3) uint8.

    An array must be (N, S, S, 3) already. An image that cannot be used is an ImageError, or, with `on_bad`, is left
    out and told to it. Raises InputError where there are none, where the shape differs, and where some were left out
    and fewer than 20 stay.
    """
    size = bundle.image.size
    require_list(pictures, "pictures")
    if len(pictures) == 0:
        raise InputError("no pictures to calibrate on; give a folder with some, a hundred or more")
    if isinstance(pictures, np.ndarray):
        if pictures.dtype != np.uint8 or pictures.shape[1:] != (size, size, 3):
            raise InputError(f"pictures are {pictures.dtype} {pictures.shape}: expected uint8 (N, {size}, {size}, 3)")
        return split([pictures[position : position + 1] for position in thin_out(range(len(pictures)))])
    chosen = thin_out(pictures)
    if on_bad is None:
        prepared = Preprocessor(bundle.image).many(chosen)
    else:
        prepared, errors = Preprocessor(bundle.image).many_or_skip(chosen)
        for error in errors:
            on_bad(error)
        if errors and len(prepared) < MIN_TO_HOLD_APART:
            raise InputError(
                f"{len(prepared)} of {len(chosen)} pictures can be used, too few to calibrate on: at least "
                f"{MIN_TO_HOLD_APART} are needed where some are left out. The first that cannot be used: {errors[0]}"
            )
    return split([prepared[position : position + 1] for position in range(len(prepared))])


def text_samples(bundle: Bundle, captions: Sequence[str]) -> Split[NDArray[np.int32]]:
    """Cut captions into tokens; a sample is one of them, unpadded, (1, L) int32.

    Raises InputError where there are none.
    """
    require_list(captions, "captions")
    if len(captions) == 0:
        raise InputError("no captions to calibrate on; give a hundred or more")
    return split([ids[None] for ids in Tokenizer(bundle.tokenizer_path, bundle.text).encode(thin_out(captions))])


def read_captions(file: Path) -> list[str]:
    """Read captions: one a line, or, from a `.json`, the captions of a data set in COCO's form.

    Raises InputError where the file cannot be read or has none.
    """
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            captions = [str(annotation["caption"]) for annotation in json.loads(text)["annotations"]]
        else:
            captions = text.splitlines()
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InputError(
            f"{file} cannot be read as captions{_reason(exc)}; expected UTF-8 text with one a line, or COCO's JSON "
            "with 'annotations'"
        ) from exc
    captions = [caption.strip() for caption in captions if caption.strip()]
    if not captions:
        raise InputError(f"{file} has no captions; expected one a line")
    return captions


def _reason(error: Exception) -> str:
    """Say what the system says, where it does; a missing key says nothing to whoever wrote the file."""
    if isinstance(error, OSError):
        return f": {error.strerror or error}"
    return f": {error}" if isinstance(error, ValueError) else ""


def drawn_images() -> list[Image]:
    """Draw the images to calibrate on where none are given: scenes of the training split."""
    return [scene.draw() for scene in _scenes()]


def drawn_captions() -> list[str]:
    """Write the captions to calibrate on where none are given: those of the scenes, in each language by turns."""
    languages = tuple(Language)
    return [scene.captions[languages[position % len(languages)]] for position, scene in enumerate(_scenes())]


def _scenes() -> list[CaptionedScene]:
    return scene_set(MAX_SAMPLES, seed=_SCENES_SEED, split=scenes.Split.TRAIN)
