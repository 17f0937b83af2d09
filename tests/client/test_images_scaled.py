"""Scaled decoding: JPEG files come close to exact decoding, everything else is equal to it."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from support.data import PHOTOS
from twinspire.bundle import CropRounding, ImageSettings, Interpolation, Resize
from twinspire.errors import ImageError, InputError
from twinspire.images import DecodeMode, ImageLimits, Preprocessor, load_image


def _settings(size: int = 48, **changes: Any) -> ImageSettings:
    plain = ImageSettings.centre_crop(size, interpolation=Interpolation.BICUBIC, mean=(0, 0, 0), std=(1, 1, 1))
    return replace(plain, **changes)


SETTINGS = {
    "shortest side": _settings(),
    "round": _settings(crop_rounding=CropRounding.ROUND),
    "wide": _settings(width=64),
    "stretch": _settings(width=40, resize=Resize.STRETCH, shortest_side=None, crop_rounding=None),
    "stretch and crop": _settings(resize=Resize.STRETCH_AND_CROP, shortest_side=56),
    "pad": _settings(width=40, resize=Resize.PAD, shortest_side=None, crop_rounding=None),
}


def _prepared(item: Any, chosen: ImageSettings, decode: str = "scaled", **more: Any) -> NDArray[np.uint8]:
    return Preprocessor(chosen, decode=decode, threads=1, **more).one(item)


@cache
def _photo(width: int = 640, height: int = 480) -> Image.Image:
    """Load a photograph, resized: as sharp as one of that size."""
    path = next(path for path in sorted(PHOTOS.glob("*.jpg")) if load_image(path).size == (640, 480))
    return load_image(path).resize((width, height), Image.Resampling.LANCZOS)


def _encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} if kind == "JPEG" else {}), **options)
    return file.getvalue()


def _difference(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> float:
    return float(np.abs(left.astype(int) - right).mean())


def _by_hand(data: bytes, chosen: ImageSettings) -> NDArray[np.uint8] | None:
    """Return the input of a `shortest_side` tower by Pillow alone, None where an image is too small to be reduced."""
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    short, shorter = chosen.shortest_side or 0, min(width, height)
    target = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    fraction = next((n for n in (8, 4, 2) if all(n * 2 * t <= s for t, s in zip(target, image.size, strict=True))), 1)
    if fraction == 1 or shorter < 4 * short:
        return None
    image.draft(None, (width // fraction, height // fraction))
    reduced = image.convert("RGB")
    assert reduced.size == (-(-width // fraction), -(-height // fraction))
    whole = reduced.resize(target, Image.Resampling.BICUBIC, box=(0, 0, width / fraction, height / fraction))
    left, top = ((t - c) // 2 for t, c in zip(target, (chosen.width, chosen.height), strict=True))
    return np.asarray(whole.crop((left, top, left + chosen.width, top + chosen.height)))


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(20, 700),
    height=st.integers(20, 700),
    size=st.integers(8, 64),
    mode=st.sampled_from(["L", "RGB", "CMYK"]),
)
def test_any_size(width: int, height: int, size: int, mode: str) -> None:
    """A JPEG is decoded at the smallest fraction of at least twice the size needed, and else exactly."""
    assume(max(width, height) < 20 * min(width, height))
    data, chosen = _encoded(_photo(width, height).convert(mode)), _settings(size)
    expected = _by_hand(data, chosen)
    if expected is None:
        expected = _prepared(data, chosen, "exact")
    np.testing.assert_array_equal(_prepared(data, chosen), expected)


@pytest.mark.parametrize("chosen", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("size", [(640, 480), (643, 485), (485, 643), (1201, 403)])
def test_close_to_exact(size: tuple[int, int], chosen: ImageSettings) -> None:
    """A photograph comes within 1.5 of 255 on average of exact decoding, whatever the settings and odd sizes."""
    data = _encoded(_photo(*size), subsampling=0)
    scaled, exact = _prepared(data, chosen), _prepared(data, chosen, "exact")
    assert scaled.shape == exact.shape
    assert 0 < _difference(scaled, exact) < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(orientation: int) -> None:
    """An image turned by EXIF comes out upright, as by turning it before it is resized."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encoded(_photo(643, 485), exif=exif)
    for chosen in SETTINGS.values():
        scaled, exact = _prepared(data, chosen), _prepared(data, chosen, "exact")
        assert 0 < _difference(scaled, exact) < 1.5
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert _difference(_prepared(data, SETTINGS["stretch"]), np.asarray(upright.resize((40, 48)))) < 3


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 2}, {"quality": 30}, {"optimize": True}])
def test_encodings(options: dict[str, Any]) -> None:
    """Progressive, subsampled and coarse JPEG files come close to exact decoding too."""
    file = io.BytesIO()
    _photo().save(file, "JPEG", **{"quality": 90, **options})
    difference = _difference(_prepared(file.getvalue(), _settings()), _prepared(file.getvalue(), _settings(), "exact"))
    assert 0 < difference < 1.5


@pytest.mark.parametrize(
    "kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "array", "PIL", "small JPEG"]
)
def test_other_images_are_equal(kind: str) -> None:
    """Other formats, pixels in memory and small JPEG files are bit-equal to exact decoding."""
    photo = _photo()
    pixels: dict[str, Any] = {"array": np.asarray(photo), "PIL": photo, "small JPEG": _encoded(_photo(191, 380))}
    item = pixels[kind] if kind in pixels else _encoded(photo, kind)
    np.testing.assert_array_equal(_prepared(item, _settings()), _prepared(item, _settings(), "exact"))


def test_a_pil_image_is_not_changed() -> None:
    """A PIL image that was opened from a JPEG and given keeps its size and comes out as with exact decoding."""
    data = _encoded(_photo())
    given = Image.open(io.BytesIO(data))
    came = _prepared(given, _settings())
    assert given.size == (640, 480)
    np.testing.assert_array_equal(came, _prepared(data, _settings(), "exact"))


def test_exact_is_the_default() -> None:
    """Without a choice a JPEG is decoded exactly."""
    data = _encoded(_photo())
    default = Preprocessor(_settings(), threads=1)
    assert default.decode is DecodeMode.EXACT
    np.testing.assert_array_equal(default.one(data), _prepared(data, _settings(), "exact"))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_truncated(share: float, progressive: bool) -> None:
    """A truncated JPEG raises the error of exact decoding."""
    data = _encoded(_photo(), progressive=progressive)
    causes = []
    for decode in DecodeMode:
        with pytest.raises(ImageError) as caught:
            _prepared(data[: int(share * len(data))], _settings(), decode)
        causes.append(caught.value.cause)
    assert causes[0] == causes[1]


def test_limits_count_the_pixels_of_the_header() -> None:
    """A JPEG above the limit of pixels is refused, also where fewer of them would be decoded."""
    data = _encoded(_photo())
    _prepared(data, _settings(), limits=ImageLimits(max_pixels=640 * 480))
    with pytest.raises(ImageError, match="above the limit"):
        _prepared(data, _settings(), limits=ImageLimits(max_pixels=640 * 480 - 1))


def test_damaged_exif_is_ignored() -> None:
    """Damaged EXIF data leaves an image as it is stored."""
    plain = _encoded(_photo())
    data = _encoded(_photo(), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    np.testing.assert_array_equal(_prepared(data, _settings()), _prepared(plain, _settings()))


@pytest.mark.parametrize("decode", ["fast", "", "EXACT", None, 1])
def test_unknown_modes(decode: Any) -> None:
    """Another word than `exact` and `scaled` is an InputError that names the argument."""
    with pytest.raises(InputError, match="scaled") as caught:
        Preprocessor(_settings(), decode=decode)
    assert caught.value.option == "decode"
