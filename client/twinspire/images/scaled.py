"""Decoding of JPEG files at a fraction of their size, for an image tower that needs far fewer pixels."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from twinspire._media import Origin
from twinspire.bundle import ImageSettings
from twinspire.images.decode import Pending, finish, load, opened, to_rgb, turn_of
from twinspire.images.geometry import fit, place, resample_filter, resized_size
from twinspire.images.items import ImageLimits

OVERSAMPLING = 2
"""A JPEG is decoded at this times the size that it is resized to, or more, as by Pillow's `Image.thumbnail`."""
_QUARTER_TURNS = frozenset(
    [Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90]
)


def fit_scaled(pending: Pending, settings: ImageSettings, limits: ImageLimits, origin: Origin) -> Image.Image:
    """Load as `finish` does and resize as `fit` does, in any thread, with libjpeg's scaled decoding.

    It computes n x n pixels, n of 1, 2 or 4, from each block of 8 x 8. The whole file is still read: a damaged one
    raises the same error, and the limits count the pixels of the header. Pixels in memory, other formats, and
    JPEG files of less than four times the size that they are resized to come out as from `fit`. Raises ImageError.
    """
    image = opened(pending, limits, origin)
    reduced = None if isinstance(pending, Image.Image) else _reduce(image, settings)
    if reduced is None:
        return fit(finish(image, limits, origin), settings)
    load(image, origin)
    resized = to_rgb(image, origin).resize(reduced.size, resample_filter(settings), reduced.box)
    return place(resized if reduced.turn is None else resized.transpose(reduced.turn), settings)


class _Reduced(NamedTuple):
    """A JPEG that will be decoded at a fraction of its size.

    `box` is the part of the result that the image covers, without what fills up its last blocks; it is resized to
    `size`, both as the image is stored. `turn` then turns it upright.
    """

    size: tuple[int, int]
    box: tuple[int, int, float, float]
    turn: Image.Transpose | None


def _reduce(image: Image.Image, settings: ImageSettings) -> _Reduced | None:
    """Set a JPEG that was opened and not loaded to be decoded at a fraction of its size, None where it is too small."""
    if not isinstance(image, JpegImageFile):
        return None
    turn = turn_of(image)
    stored = image.size
    width, height = resized_size(stored[::-1] if turn in _QUARTER_TURNS else stored, settings)
    size = (height, width) if turn in _QUARTER_TURNS else (width, height)
    drafted = image.draft(None, (OVERSAMPLING * size[0], OVERSAMPLING * size[1]))
    if drafted is None or image.size == stored:
        return None
    return _Reduced(size, drafted[1], turn)
