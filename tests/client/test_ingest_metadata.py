"""What is read from an image's file: name, size, and what the camera wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, TiffImagePlugin

from support.data import ODD_IMAGES
from twinspire.errors import InputError
from twinspire.images import ImageLimits
from twinspire.index import Item, ItemKind
from twinspire.ingest.files import read_file
from twinspire.ingest.kinds import FileKinds
from twinspire.ingest.metadata import file_metadata

KINDS = FileKinds({ItemKind.IMAGE: ImageLimits()})

EXIF, GPS = ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo


def exif(main: dict[int, Any], details: dict[int, Any] | None = None, gps: dict[int, Any] | None = None) -> Image.Exif:
    """Build EXIF of its three tables."""
    built = Image.Exif()
    built.update(main)
    built.get_ifd(EXIF).update(details or {})
    built.get_ifd(GPS).update(gps or {})
    return built


def metadata_of(path: Path, built: Image.Exif | None = None) -> dict[str, Any]:
    """Write an image of 30 by 20 with this EXIF and read its metadata."""
    Image.new("RGB", (30, 20)).save(path, **({"exif": built} if built is not None else {}))
    return file_metadata(read_file(path, KINDS))


def test_a_drawn_image_has_name_size_and_times(tmp_path: Path) -> None:
    """Nothing is invented where no camera wrote anything."""
    path = tmp_path / "猫 1.png"
    metadata_of(path)
    os.utime(path, (1777624200.25, 1777624200.25))
    metadata = file_metadata(read_file(path, KINDS))
    assert metadata == {
        "name": "猫 1.png",
        "folder": str(tmp_path),
        "bytes": path.stat().st_size,
        "modified": "2026-05-01T08:30:00.250000Z",
        "inode": path.stat().st_ino,
        "width": 30,
        "height": 20,
        "format": "PNG",
    }


def test_what_a_camera_wrote_is_read(tmp_path: Path) -> None:
    """Time with its offset, year, make and model said once, and the place, south and west negative."""
    details = {
        ExifTags.Base.DateTimeOriginal: "2020:05:17 12:33:10",
        ExifTags.Base.OffsetTimeOriginal: "+02:00",
        ExifTags.Base.DateTimeDigitized: "2021:01:01 00:00:00",
    }
    gps = {
        ExifTags.GPS.GPSLatitude: (TiffImagePlugin.IFDRational(33), TiffImagePlugin.IFDRational(51, 1), 35.9),
        ExifTags.GPS.GPSLatitudeRef: "S",
        ExifTags.GPS.GPSLongitude: (151.0, 12.0, 40.0),
        ExifTags.GPS.GPSLongitudeRef: "E",
    }
    built = exif({ExifTags.Base.Make: "Canon\0 ", ExifTags.Base.Model: "Canon EOS 5D"}, details, gps)
    metadata = metadata_of(tmp_path / "a.jpg", built)
    assert (metadata["taken"], metadata["year"]) == ("2020-05-17T12:33:10+02:00", 2020)
    assert metadata["camera"] == "Canon EOS 5D"
    assert metadata["latitude"] == pytest.approx(-(33 + 51 / 60 + 35.9 / 3600), abs=1e-5)
    assert metadata["longitude"] == pytest.approx(151 + 12 / 60 + 40 / 3600, abs=1e-5)


def test_make_and_model_are_put_together(tmp_path: Path) -> None:
    """A model that does not begin with its make gets it in front; either may be missing."""
    base = ExifTags.Base
    for tags, camera in (
        ({base.Make: "SONY", base.Model: "ILCE-7"}, "SONY ILCE-7"),
        ({base.Make: "NIKON CORPORATION", base.Model: "NIKON D90"}, "NIKON D90"),
        ({base.Model: "X100"}, "X100"),
        ({base.Make: "Leica"}, "Leica"),
        ({base.Make: " \0"}, None),
    ):
        assert metadata_of(tmp_path / "a.jpg", exif(tags)).get("camera") == camera


def test_a_turned_image_has_the_size_that_is_seen(tmp_path: Path) -> None:
    """Orientations 5 to 8 swap width and height."""
    for orientation, size in ((1, (30, 20)), (3, (30, 20)), (6, (20, 30)), (8, (20, 30))):
        metadata = metadata_of(tmp_path / "a.jpg", exif({ExifTags.Base.Orientation: orientation}))
        assert (metadata["width"], metadata["height"]) == size


@pytest.mark.parametrize("time", ["0000:00:00 00:00:00", "    :  :     :  :  ", "2020-05-17", "9999:99:99 99:99:99", 7])
def test_a_time_that_is_none_is_left_out(tmp_path: Path, time: Any) -> None:
    """Cameras without a clock write zeros or blanks."""
    metadata = metadata_of(tmp_path / "a.jpg", exif({}, {ExifTags.Base.DateTimeOriginal: time}))
    assert not {"taken", "year"} & set(metadata)


@pytest.mark.parametrize("latitude", [(1.0, 2.0), (95.0, 0.0, 0.0), (TiffImagePlugin.IFDRational(1, 0),) * 3])
def test_a_place_that_is_none_is_left_out(tmp_path: Path, latitude: Any) -> None:
    """Two numbers, more than 90 degrees, a division by zero."""
    gps = {ExifTags.GPS.GPSLatitude: latitude, ExifTags.GPS.GPSLongitude: (1.0, 2.0, 3.0)}
    assert "latitude" not in metadata_of(tmp_path / "a.jpg", exif({}, {}, gps))


@given(st.binary(max_size=200))
def test_damaged_exif_is_no_error_and_always_json(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever bytes stand where EXIF belongs, the item can be made."""
    path = tmp_path_factory.getbasetemp() / "damaged.jpg"
    Image.new("RGB", (3, 2)).save(path, exif=b"Exif\0\0II*\0\x08\0\0\0" + data)
    metadata = file_metadata(read_file(path, KINDS))
    assert Item(str(path), ItemKind.IMAGE, metadata=metadata).metadata["bytes"] == path.stat().st_size


def test_awkward_files_give_metadata() -> None:
    """Every real odd image, broken ones too, gives an item without a warning."""
    for path in sorted(ODD_IMAGES.iterdir()):
        if path.is_file():
            metadata = file_metadata(read_file(path, KINDS))
            assert Item(str(path), ItemKind.IMAGE, metadata=metadata).metadata["name"] == path.name


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hash would be that of half an image."""
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2)).save(path)
    fstat, calls = os.fstat, []

    def growing(descriptor: int) -> os.stat_result:
        calls.append(descriptor)
        if len(calls) == 2:
            with path.open("ab") as file:
                file.write(b"more")
        return fstat(descriptor)

    monkeypatch.setattr("twinspire.ingest.files.os.fstat", growing)
    with pytest.raises(InputError, match="written"):
        read_file(path, KINDS)
