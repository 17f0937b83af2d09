"""HEIC images: read with the extra `heif`, named and counted without it; limits that are options."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from twinspire.errors import ImageError, InputError
from twinspire.images import ImageLimits, formats, load_image
from twinspire.ingest.files import read_file
from twinspire.ingest.kinds import FileKinds
from twinspire.ingest.metadata import file_metadata
from twinspire.stores import ItemKind

KINDS = FileKinds({ItemKind.IMAGE: ImageLimits()})


@pytest.fixture
def heic(tmp_path: Path) -> Path:
    """Write a HEIC image, left half red and right half blue, with a year in its EXIF."""
    import pillow_heif

    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32, 0] = pixels[:, 32:, 2] = 255
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2019:05:06 07:08:09"
    made = pillow_heif.from_pillow(Image.fromarray(pixels))
    made.info["exif"] = exif.tobytes()
    made.save(tmp_path / "photo.heic", quality=90)
    return tmp_path / "photo.heic"


def test_a_heic_image_is_decoded_from_path_and_bytes(heic: Path) -> None:
    """Its colours come back within 12 of 255 (it is compressed); no reader is added to those of the process."""
    before = set(Image.OPEN)
    for given in (heic, heic.read_bytes()):
        pixels = np.asarray(load_image(given)).astype(int)
        assert pixels.shape == (48, 64, 3)
        largest = max(abs(pixels[24, 8] - [255, 0, 0]).max(), abs(pixels[24, 56] - [0, 0, 255]).max())
        print(f"largest difference {largest}")
        assert largest <= 12
    assert set(Image.OPEN) - before <= set(formats.FORMATS)


def test_metadata_of_a_heic_image(heic: Path) -> None:
    """Size, format and what the camera wrote."""
    metadata = file_metadata(read_file(heic, KINDS))
    assert [metadata[key] for key in ("width", "height", "format", "year")] == [64, 48, "HEIF", 2019]


def test_without_the_extra_the_error_names_it(heic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A HEIC image fails by itself, with the command that installs its reader."""
    monkeypatch.setattr(formats, "has_heif", lambda: False)
    with pytest.raises(ImageError, match=r"\[heif\]"):
        load_image(heic)


def test_avif_is_no_heif(tmp_path: Path) -> None:
    """The containers are the same, brands tell them apart."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, format="AVIF")
    assert not formats.is_heif(buffer.getvalue()[:64])
    assert load_image(buffer.getvalue()).size == (16, 16)
    assert not formats.is_heif(b"")


@pytest.mark.parametrize("length", [12, 40, 200, 500])
def test_a_broken_heic_is_an_error(heic: Path, length: int) -> None:
    """Cut anywhere it is an ImageError."""
    with pytest.raises(ImageError):
        load_image(heic.read_bytes()[:length])


def test_the_limit_of_pixels_names_the_option(heic: Path) -> None:
    """Whoever sees the message knows how to raise the limit, on the command line and in Python."""
    with pytest.raises(ImageError, match="--max-megapixels") as caught:
        load_image(heic, limits=ImageLimits(max_pixels=3_000))
    assert "max_pixels" in caught.value.cause
    assert load_image(heic, limits=ImageLimits(max_pixels=64 * 48)).size == (64, 48)


def test_a_file_of_3_gib_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its size, before it is opened."""
    path = tmp_path / "huge.jpg"
    path.touch()
    os.truncate(path, 3 * 2**30)  # sparse

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the file was opened")

    monkeypatch.setattr(Path, "open", never)
    with pytest.raises(InputError, match="max_bytes"):
        read_file(path, KINDS)
