"""Calibration samples: inputs on which value ranges are estimated, and others held out to measure on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from twinspire._arguments import require_list
from twinspire.audio import AudioItem, AudioPreprocessor
from twinspire.bundle import Bundle, Tower
from twinspire.errors import InputError, ItemError
from twinspire.images import ImageItem, Preprocessor
from twinspire.text import Tokenizer
from twinspire.towers.batching import one_batch
from twinspire_eval.scenes import CaptionedScene, Language, Split, scene_set
from twinspire_export.sounds import generated_sounds

MAX_SAMPLES = 320
"""More are subsampled evenly: each costs two runs of the fp32 engine, and ranges hardly change any more."""

MEASURED_EVERY = 5
"""Every fifth sample is held out of calibration, to measure on."""

MIN_TO_HOLD_OUT = 20
"""With fewer samples none is held out: too few would be left for either purpose."""

GENERATED_SOUNDS = 140
"""Sounds that are generated to calibrate on: 20 of each kind."""

_SCENES_SEED = 8
_SOUNDS_SEED = 8

_Sample = TypeVar("_Sample")


@dataclass(frozen=True)
class CalibrationSplit(Generic[_Sample]):
    """Samples to calibrate on and samples to measure on: disjoint where `held_out`, else the same."""

    calibration: list[_Sample]
    measurement: list[_Sample]
    held_out: bool

    def describe(self, noun: str) -> str:
        """Return what was measured on, for a certificate."""
        if self.held_out:
            return f"{len(self.measurement)} {noun} held out of calibration on {len(self.calibration)}"
        return f"the {len(self.measurement)} {noun} calibrated on"


def subsample(samples: Sequence[_Sample]) -> list[_Sample]:
    """Return at most MAX_SAMPLES, evenly spaced and always the same."""
    count = min(len(samples), MAX_SAMPLES)
    return [samples[position * len(samples) // count] for position in range(count)]


def split(samples: Sequence[_Sample]) -> CalibrationSplit[_Sample]:
    """Hold some samples out where there are enough, always the same."""
    if len(samples) < MIN_TO_HOLD_OUT:
        return CalibrationSplit(calibration=list(samples), measurement=list(samples), held_out=False)
    return CalibrationSplit(
        calibration=[sample for position, sample in enumerate(samples) if position % MEASURED_EVERY],
        measurement=list(samples[::MEASURED_EVERY]),
        held_out=True,
    )


def image_samples(
    bundle: Bundle,
    images: Sequence[ImageItem] | NDArray[np.uint8],
    *,
    on_bad: Callable[[ItemError], None] | None = None,
) -> CalibrationSplit[NDArray[np.uint8]]:
    """Preprocess images as `bundle` says; each sample is one of them, (1, H, W, 3) uint8.

    An array must be (N, H, W, 3) already. An image that cannot be read raises ImageError; with `on_bad` it is skipped
    and the error is passed to it. Raises InputError where there are none, where the shape differs, and where some were
    skipped and fewer than 20 are left.
    """
    shape = bundle.input_spec(Tower.IMAGE).shape
    require_list(images, "images")
    if len(images) == 0:
        raise InputError("no images to calibrate on: pass a hundred or more")
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            expected = ", ".join(map(str, shape))
            raise InputError(f"images are {images.dtype} {images.shape}: expected uint8 (N, {expected})")
        return split([images[position : position + 1] for position in subsample(range(len(images)))])
    return _prepared(Preprocessor(bundle.image), images, "images", on_bad)


def audio_samples(
    bundle: Bundle, sounds: Sequence[AudioItem] | None, *, on_bad: Callable[[ItemError], None] | None = None
) -> CalibrationSplit[NDArray[np.float32]]:
    """Preprocess sounds as `bundle` says, by default generated ones; each sample is one of them, (1, F, M) float32.

    Raises what `image_samples` raises.
    """
    if sounds is None:
        spectrograms = generated_sounds(GENERATED_SOUNDS, bundle.audio, seed=_SOUNDS_SEED)
        return split([spectrograms[position : position + 1] for position in range(len(spectrograms))])
    require_list(sounds, "sounds")
    if len(sounds) == 0:
        raise InputError("no sounds to calibrate on: pass a hundred or more")
    return _prepared(AudioPreprocessor(bundle.audio), sounds, "sounds", on_bad)


def _prepared(
    preprocessor: Preprocessor | AudioPreprocessor,
    items: Sequence[Any],
    noun: str,
    on_bad: Callable[[ItemError], None] | None,
) -> CalibrationSplit[NDArray[Any]]:
    """Preprocess a subsample. Raises InputError where some were skipped and fewer than 20 are left."""
    chosen = subsample(items)
    if on_bad is None:
        prepared = preprocessor.many(chosen)
    else:
        prepared, errors = preprocessor.many_or_skip(chosen)
        for error in errors:
            on_bad(error)
        if errors and len(prepared) < MIN_TO_HOLD_OUT:
            raise InputError(
                f"only {len(prepared)} of {len(chosen)} {noun} can be read, too few to calibrate on: at least "
                f"{MIN_TO_HOLD_OUT} are required where some are skipped. The first that cannot be read: {errors[0]}"
            )
    return split([prepared[position : position + 1] for position in range(len(prepared))])


def text_samples(bundle: Bundle, captions: Sequence[str]) -> CalibrationSplit[NDArray[np.int32]]:
    """Tokenize captions; each sample is one of them, (1, L) int32, unpadded unless the bundle pads to the context.

    Raises InputError where there are none.
    """
    require_list(captions, "captions")
    if len(captions) == 0:
        raise InputError("no captions to calibrate on: pass a hundred or more")
    encoded = Tokenizer(bundle.tokenizer_path, bundle.text).encode(subsample(captions))
    return split([one_batch([ids], bundle.text) for ids in encoded])


def read_captions(file: Path) -> list[str]:
    """Read captions: one on each line, or, from a `.json`, those of a data set in COCO's format.

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
            f"{file} cannot be read as captions{_cause(exc)}; expected UTF-8 text with one on each line, or COCO's "
            "JSON with 'annotations'"
        ) from exc
    captions = [caption.strip() for caption in captions if caption.strip()]
    if not captions:
        raise InputError(f"{file} has no captions: expected one on each line")
    return captions


def _cause(error: Exception) -> str:
    """Return the system's or the decoder's message; that of a missing key would not help."""
    if isinstance(error, OSError):
        return f": {error.strerror or error}"
    return f": {error}" if isinstance(error, ValueError) else ""


def scene_images() -> list[Image]:
    """Return the default images to calibrate on: synthetic scenes of the training split."""
    return [scene.draw() for scene in _scenes()]


def scene_captions() -> list[str]:
    """Return the default captions to calibrate on: those of the scenes, alternating between the languages."""
    languages = tuple(Language)
    return [scene.captions[languages[position % len(languages)]] for position, scene in enumerate(_scenes())]


def _scenes() -> list[CaptionedScene]:
    return scene_set(MAX_SAMPLES, seed=_SCENES_SEED, split=Split.TRAIN)
