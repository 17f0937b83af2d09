"""From RGB of any size to the image tower's square, bit-equal to transformers' CLIPImageProcessor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from twinspire.bundle import ImageSettings, Interpolation

_FILTERS = {
    Interpolation.BILINEAR: (Image.Resampling.BILINEAR, 1.0),  # Pillow's filter and its support in pixels
    Interpolation.BICUBIC: (Image.Resampling.BICUBIC, 2.0),
    Interpolation.LANCZOS: (Image.Resampling.LANCZOS, 3.0),
}
# A strip of 1 x 60,000 pixels resized by its shorter side would be 13 million pixels long. Above this size, a quarter
# of a gigabyte, only the part that is cut out is computed.
_WHOLE_PIXELS = 64 * 10**6


def fit(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """Resize and crop an RGB image to (S, S).

    Bit-equal to the slow CLIPImageProcessor, and to OpenAI's own preprocessing, unless the resized image would have
    more than 64 million pixels (an aspect ratio above 1 : 1,275 at 224 pixels); see `fit_window` for those.
    """
    size = settings.size
    resample, _ = _FILTERS[Interpolation(settings.interpolation)]
    if not settings.crop:
        return image.resize((size, size), resample)
    width, height = resized_size(image.size, settings.resize)
    if width * height > _WHOLE_PIXELS:
        return fit_window(image, settings)
    left, top = (width - size) // 2, (height - size) // 2  # negative where it is smaller: black around it
    return image.resize((width, height), resample).crop((left, top, left + size, top + size))


def resized_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Bring the shorter side of (width, height) to `shorter`; the longer is rounded down, as transformers does."""
    width, height = size
    longer = int(shorter * max(width, height) / min(width, height))
    return (shorter, longer) if width <= height else (longer, shorter)


def fit_window(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """Do what `fit` does by computing only the pixels that are cut out.

    Within 1 of 255 of it, more where the filter overshoots black or white: Pillow takes the window's edges as float32,
    rounds and clips between its two passes, and chooses their order by the sizes.
    """
    resample, support = _FILTERS[Interpolation(settings.interpolation)]
    x, y = (
        _Span.cut(source, target, settings.size, support)
        for source, target in zip(image.size, resized_size(image.size, settings.resize), strict=True)
    )
    part = image.crop((x.part_begin, y.part_begin, x.part_end, y.part_end))
    window = part.resize((x.length, y.length), resample, box=(x.begin, y.begin, x.end, y.end))
    return window.crop((x.offset, y.offset, x.offset + settings.size, y.offset + settings.size))


@dataclass(frozen=True, kw_only=True)
class _Span:
    """One axis of a window.

    The source pixels [part_begin, part_end) hold all that the filter reaches; within them, [begin, end) becomes
    `length` pixels, of which the square starts at `offset`, negative where black goes before them.
    """

    part_begin: int
    part_end: int
    begin: float
    end: float
    length: int
    offset: int

    @classmethod
    def cut(cls, source: int, target: int, size: int, support: float) -> _Span:
        """Cut the middle `size` of an axis that is resized from `source` to `target` pixels."""
        scale, offset = source / target, (target - size) // 2
        first, last = max(0, offset), min(target, offset + size)  # in pixels of the target
        margin = math.ceil(support * max(1.0, scale)) + 1
        part_begin = max(0, math.floor(first * scale) - margin)
        return cls(
            part_begin=part_begin,
            part_end=min(source, math.ceil(last * scale) + margin),
            begin=first * scale - part_begin,
            end=min(float(source), last * scale) - part_begin,
            length=last - first,
            offset=min(0, offset),
        )
