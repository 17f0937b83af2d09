"""Generated scenes as a data set: nothing to download, in any number, none of them part of the sample's training."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import product, zip_longest

from twinspire.errors import InputError
from twinspire_eval.datasets.captioned import (
    Caption,
    CaptionedImages,
    DatasetOptions,
    LabelledQuery,
    LazyImages,
    sample_positions,
    sampled_name,
)
from twinspire_eval.scenes import SIDE, Language, Scene, Split, scene_set, short_queries
from twinspire_eval.scenes.dataset import JPEG_QUALITY

DEFAULT_COUNT = 1_000
DEFAULT_SEED = 101
"""The seed of the scenes on which the sample's figures were measured."""
SIDES = (32, 8_192)
"""The smallest and the largest side of an image in pixels."""
MAX_COUNT = {Split.HELDOUT: 10_000, Split.TRAIN: 40_000}
"""A tenth of any number of scenes show several equal things and nothing else: few more of those exist."""


class SceneDataset:
    """Scenes, drawn and encoded when they are accessed; byte for byte the JPEG files of `twinspire scenes draw`."""

    name = "scenes"
    usage = "scenes:COUNT:SEED:SIDE, generated scenes of SIDE x SIDE pixels (all numbers are optional)"

    def open(self, argument: str, options: DatasetOptions) -> CaptionedImages:
        """Generate `COUNT:SEED:SIDE` scenes of the split `heldout`, the default, or `train`.

        SIDE is in pixels: 3464 makes images of 12 megapixels, each drawn in half a second. The queries are the
        `short_queries` of the scenes, in each language.
        """
        if options.images is not None:
            raise InputError(f"scenes are generated and take no folder of images, got {options.images}: leave it out")
        try:
            split = Split(options.split) if options.split is not None else Split.HELDOUT
        except ValueError:
            raise InputError(f"scenes have no split {options.split!r}: expected {', '.join(Split)}") from None
        count, seed, side = _numbers(argument, MAX_COUNT[split])
        scenes = scene_set(count, seed=seed, split=split)
        sampled = [scenes[position] for position in sample_positions(count, options.limit, seed=options.seed)]

        size = "" if side == SIDE else f", {side:,} pixels a side"

        def jpeg(index: int) -> bytes:
            encoded = io.BytesIO()
            sampled[index].draw(side).save(encoded, "JPEG", quality=JPEG_QUALITY)
            return encoded.getvalue()

        return CaptionedImages(
            sampled_name(f"{count:,} {split} scenes, seed {seed}{size}", len(sampled), count, seed=options.seed),
            tuple(scene.key for scene in sampled),
            LazyImages(len(sampled), jpeg),
            tuple(tuple(Caption(text, lang.value) for lang, text in scene.captions.items()) for scene in sampled),
            queries=tuple(_queries([entry.scene for entry in sampled])),
        )


def _queries(scenes: list[Scene]) -> Iterator[LabelledQuery]:
    for query, language in product(short_queries(scenes), Language):
        yield LabelledQuery(query.texts[language], language.value, query.relevant)


def _numbers(argument: str, maximum: int) -> tuple[int, int, int]:
    given = list(zip_longest(argument.split(":"), (DEFAULT_COUNT, DEFAULT_SEED, SIDE), fillvalue=""))
    if len(given) > 3 or any(text and not (text.isascii() and text.isdigit() and len(text) < 18) for text, _ in given):
        raise InputError(
            f"the data set scenes:{argument}: expected scenes, scenes:COUNT, scenes:COUNT:SEED or "
            "scenes:COUNT:SEED:SIDE, whole numbers, such as scenes:5000:101"
        )
    numbers = [int(text or default) for text, default in given]
    if not 1 <= numbers[0] <= maximum:
        raise InputError(f"the data set scenes:{argument}: expected 1 to {maximum:,} scenes of this split")
    if not SIDES[0] <= numbers[2] <= SIDES[1]:
        raise InputError(f"the data set scenes:{argument}: expected a side of {SIDES[0]} to {SIDES[1]:,} pixels")
    return numbers[0], numbers[1], numbers[2]
