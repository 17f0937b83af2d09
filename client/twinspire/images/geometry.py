"""Resizing and cropping of RGB images to the image tower's size, bit-equal to the code used in training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from twinspire.bundle import CropRounding, ImageSettings, Interpolation, Resize

_FILTERS = {
    Interpolation.NEAREST: (Image.Resampling.NEAREST, 0.5),  # Pillow's filter and its support in pixels
    Interpolation.BILINEAR: (Image.Resampling.BILINEAR, 1.0),
    Interpolation.BICUBIC: (Image.Resampling.BICUBIC, 2.0),
    Interpolation.LANCZOS: (Image.Resampling.LANCZOS, 3.0),
}
# A strip of 1 x 60,000 pixels resized by its shorter side would be 13 million pixels long. Above this size, a quarter
# of a gigabyte, only the part that is cut out is computed.
_WHOLE_PIXELS = 64 * 10**6


def fit(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """Resize an RGB image to the settings' height and width.

    `shortest_side` and `stretch_and_crop` with `floor`, and `stretch`, are bit-equal to transformers' slow image
    processors, `shortest_side` with `round` to torchvision's Resize and CenterCrop on PIL images, `pad` to OpenCLIP's
    resize mode "longest" (where a side of 0 pixels, which that fails on, is 1).

    Exception: where the image scaled by its shorter side would have more than 64 million pixels (an aspect ratio above
    1 : 1,275 at 224 pixels) see `fit_window`.
    """
    size = resized_size(image.size, settings)
    if settings.shortest_side is not None and size[0] * size[1] > _WHOLE_PIXELS:
        return fit_window(image, settings)
    return place(image.resize(size, resample_filter(settings)), settings)


def resample_filter(settings: ImageSettings) -> Image.Resampling:
    """Return the settings' filter of Pillow."""
    return _FILTERS[Interpolation(settings.interpolation)][0]


def resized_size(size: tuple[int, int], settings: ImageSettings) -> tuple[int, int]:
    """Return the (width, height) that an image of `size` is resized to, before `place` crops or pads it."""
    if settings.resize is Resize.STRETCH:
        return settings.width, settings.height
    if settings.resize is Resize.PAD:
        width, height = size
        ratio = max(width / settings.width, height / settings.height)
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    return scaled_size(size, settings)


def place(resized: Image.Image, settings: ImageSettings) -> Image.Image:
    """Crop the middle of an image of `resized_size`, or put it in the middle of a black one: the tower's input."""
    if settings.resize is Resize.STRETCH:
        return resized
    if settings.resize is Resize.PAD:  # odd pixels go right and below
        canvas = Image.new("RGB", (settings.width, settings.height))
        canvas.paste(resized, ((settings.width - resized.width) // 2, (settings.height - resized.height) // 2))
        return canvas
    left = crop_offset(resized.width, settings.width, settings.crop_rounding)
    top = crop_offset(resized.height, settings.height, settings.crop_rounding)
    return resized.crop((left, top, left + settings.width, top + settings.height))


def scaled_size(size: tuple[int, int], settings: ImageSettings) -> tuple[int, int]:
    """Scale (width, height) until its shorter side is `shortest_side`; the longer is rounded down.

    transformers and torchvision both round down. With `stretch_and_crop` both sides are `shortest_side`.
    """
    assert settings.shortest_side is not None
    if settings.resize is Resize.STRETCH_AND_CROP:
        return settings.shortest_side, settings.shortest_side
    width, height = size
    longer = int(settings.shortest_side * max(width, height) / min(width, height))
    return (settings.shortest_side, longer) if width <= height else (longer, settings.shortest_side)


def crop_offset(length: int, crop: int, rounding: CropRounding | None) -> int:
    """Return where a centre crop of an axis begins, negative where the axis is shorter: black goes before it.

    torchvision rounds half to even in images that are larger, and the padding before smaller ones down.
    """
    if rounding is CropRounding.FLOOR:
        return (length - crop) // 2
    return -((crop - length) // 2) if length < crop else round((length - crop) / 2)


def fit_window(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """Return what `fit` does with `shortest_side`, but compute only the pixels that are cut out.

    Within 1 of 255 of it, more where the filter overshoots black or white: Pillow takes the window's edges as float32,
    rounds and clips between its two passes, and chooses their order by the sizes.
    """
    resample, support = _FILTERS[Interpolation(settings.interpolation)]
    x, y = (
        _Span.cut(source, target, crop, support, settings.crop_rounding)
        for source, target, crop in zip(
            image.size, scaled_size(image.size, settings), (settings.width, settings.height), strict=True
        )
    )
    part = image.crop((x.part_begin, y.part_begin, x.part_end, y.part_end))
    window = part.resize((x.length, y.length), resample, box=(x.begin, y.begin, x.end, y.end))
    return window.crop((x.offset, y.offset, x.offset + settings.width, y.offset + settings.height))


@dataclass(frozen=True, kw_only=True)
class _Span:
    """One axis of a window.

    The source pixels [part_begin, part_end) hold all that the filter reads; within them, [begin, end) becomes
    `length` pixels, in which the crop starts at `offset`, negative where black goes before them.
    """

    part_begin: int
    part_end: int
    begin: float
    end: float
    length: int
    offset: int

    @classmethod
    def cut(cls, source: int, target: int, crop: int, support: float, rounding: CropRounding | None) -> _Span:
        """Cut the middle `crop` pixels of an axis that is resized from `source` to `target` pixels."""
        scale, offset = source / target, crop_offset(target, crop, rounding)
        first, last = max(0, offset), min(target, offset + crop)  # in pixels of the target
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
