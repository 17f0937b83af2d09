"""Drawn scenes as a data set: nothing to download, as many as are wanted, and none that the sample was trained on."""

from __future__ import annotations

import io

from twinspire.errors import InputError
from twinspire_eval.datasets.captioned import Caption, CaptionedImages, LazyImages, drawn_positions, sampled_name
from twinspire_eval.scenes import Split, scene_set
from twinspire_eval.scenes.dataset import JPEG_QUALITY

COUNT = 1_000
SEED = 101
"""The seed of the scenes on which the sample's figures were measured."""
MOST = {Split.HELDOUT: 10_000, Split.TRAIN: 40_000}
"""A tenth of any number of scenes show several equal things and nothing else: of those there are not many more."""


def open_scenes(argument: str, *, split: str | None, limit: int | None, seed: int) -> CaptionedImages:
    """Make a data set of `COUNT:SEED` scenes, either of which may be left out; drawn and encoded when they are read.

    The JPEG files are byte for byte those that `twinspire scenes draw` writes. `split` is `heldout`, also where it is
    None, or `train`; `seed` is for drawing `limit` of them.
    """
    try:
        side = Split(split) if split is not None else Split.HELDOUT
    except ValueError:
        raise InputError(f"scenes have no split {split!r}: expected {', '.join(Split)}") from None
    count, scenes_seed = _numbers(argument, MOST[side])
    scenes = scene_set(count, seed=scenes_seed, split=side)
    positions = drawn_positions(count, limit, seed=seed)
    drawn = [scenes[position] for position in positions]

    def jpeg(index: int) -> bytes:
        encoded = io.BytesIO()
        drawn[index].draw().save(encoded, "JPEG", quality=JPEG_QUALITY)
        return encoded.getvalue()

    return CaptionedImages(
        sampled_name(f"{count:,} {side} scenes, seed {scenes_seed}", len(drawn), count, seed=seed),
        tuple(scene.key for scene in drawn),
        LazyImages(len(drawn), jpeg),
        tuple(tuple(Caption(words, lang.value) for lang, words in scene.captions.items()) for scene in drawn),
    )


def _numbers(argument: str, most: int) -> tuple[int, int]:
    expected = "expected scenes, scenes:COUNT or scenes:COUNT:SEED, whole numbers such as scenes:5000:101"
    count, _, seed = argument.partition(":")
    given = [(count, COUNT), (seed, SEED)]
    if any(text and not (text.isascii() and text.isdigit() and len(text) < 18) for text, _ in given):
        raise InputError(f"the data set scenes:{argument}: {expected}")
    numbers = [int(text) if text else default for text, default in given]
    if not 1 <= numbers[0] <= most:
        raise InputError(f"the data set scenes:{argument}: expected 1 to {most:,} scenes of this split")
    return numbers[0], numbers[1]
