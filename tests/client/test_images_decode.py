"""Whatever an image is given as and however it is stored, it becomes upright RGB or an ImageError."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from support.data import ODD_IMAGES
from twinspire.errors import ImageError, InputError
from twinspire.images import ImageLimits, load_image, load_thumbnail

PRESENT = {path.name for path in ODD_IMAGES.iterdir()} - {"LICENSE.Pillow"}
OPENS = {
    "16bit.cropped.tif": (64, 64),
    "apng_mode_grayscale_alpha.png": (128, 64),
    "apng_mode_palette_alpha.png": (128, 64),
    "exif_typeerror.jpg": (800, 531),
    "first_frame_transparency.gif": (75, 50),
    "frozenpond.mpo": (640, 480),
    "hopper.Lab.tif": (128, 128),
    "hopper_1bit.pbm": (128, 128),
    "hopper_bad_exif.jpg": (500, 500),
    "hopper_gray.jpg": (128, 128),
    "hopper_orientation_6.jpg": (128, 128),
    "hopper_orientation_8.webp": (128, 128),
    "iss634.gif": (245, 245),
    "orientation_rectangle.jpg": (1, 2),
    "pil_sample_cmyk.jpg": (100, 100),
    "transparent.png": (200, 150),
    "transparent.webp": (200, 150),
}
FAILS = {
    "broken.png": "damaged",
    "broken_data_stream.png": "damaged",
    "decompression_bomb.gif": "large",
    "truncated_image.png": "truncated",
    "truncated_jpeg.jpg": "truncated",
}


def _present(table: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a table whose files are there: all 22, or the nine of tests/data."""
    return {name: value for name, value in table.items() if name in PRESENT}


def _noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _png(bits: int, colour: int, rows: NDArray[Any], *chunks: tuple[bytes, bytes]) -> bytes:
    """Write a PNG by the specification, for what Pillow cannot write; `rows` are (H, ...) in the file's byte order."""
    height = len(rows)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    width = rows.nbytes // height * 8 // (bits * channels)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


class TestOddFiles:
    """Awkward files of Pillow's own tests."""

    def test_all_are_in_the_tables(self) -> None:
        """Every file of the folder is tested here."""
        assert OPENS.keys() | FAILS.keys() >= PRESENT
        assert len(PRESENT) in (9, 22)

    @pytest.mark.parametrize(("name", "size"), _present(OPENS).items())
    def test_opens(self, name: str, size: tuple[int, int]) -> None:
        """An odd but whole file becomes RGB of its upright size, without a warning, and is not of one colour."""
        image = load_image(ODD_IMAGES / name)
        assert (image.mode, image.size) == ("RGB", size)
        lowest, highest = np.asarray(image).min(), np.asarray(image).max()
        plain = name.startswith(("apng", "first_frame", "16bit"))  # of one colour, or nearly black
        assert plain or int(highest) - lowest > 30, f"values from {lowest} to {highest}"

    def test_16_bit_file(self) -> None:
        """The 16-bit TIFF, whose values go from 291 to 694, becomes these divided by 257."""
        with Image.open(ODD_IMAGES / "16bit.cropped.tif") as image:
            expected = np.rint(np.asarray(image) / 257)
        assert (expected.min(), expected.max()) == (1, 3)
        np.testing.assert_array_equal(np.asarray(load_image(ODD_IMAGES / "16bit.cropped.tif"))[:, :, 0], expected)

    @pytest.mark.parametrize(("name", "cause"), _present(FAILS).items())
    def test_fails(self, name: str, cause: str) -> None:
        """A broken, truncated or bomb-like file is an ImageError with its position, path and cause."""
        with pytest.raises(ImageError) as caught:
            load_image(ODD_IMAGES / name, position=7)
        assert cause in caught.value.cause
        assert caught.value.position == 7
        assert caught.value.name == str(ODD_IMAGES / name)

    def test_no_image(self) -> None:
        """A text file is an ImageError that says which formats are read."""
        with pytest.raises(ImageError, match="JPEG2000"):
            load_image(ODD_IMAGES / "LICENSE.Pillow")

    def test_what_they_show(self) -> None:
        """Lab, CMYK, grey and turned versions of Pillow's hopper show nearly the same image."""
        straight = np.asarray(load_image(ODD_IMAGES / "hopper_gray.jpg").convert("L")).astype(float)
        for name in {"hopper.Lab.tif", "hopper_orientation_6.jpg", "hopper_orientation_8.webp"} & PRESENT:
            shown = np.asarray(load_image(ODD_IMAGES / name).convert("L")).astype(float)
            correlation = np.corrcoef(straight.ravel(), shown.ravel())[0, 1]
            assert correlation > 0.98, f"{name}: correlation {correlation:.3f}"

    def test_transparent_files_are_white_there(self) -> None:
        """The transparent corners of a PNG and a WebP are white."""
        for name in {"transparent.png", "transparent.webp"} & PRESENT:
            assert load_image(ODD_IMAGES / name).getpixel((0, 0)) == (255, 255, 255)


class TestGivenAs:
    """The forms in which an image may be given."""

    PIXELS = _noise(5, 7, 3)

    @pytest.mark.parametrize(
        "form", ["str", "Path", "bytes", "bytearray", "memoryview", "file", "stream", "PIL", "array"]
    )
    def test_every_form_gives_the_same(self, form: str, tmp_path: Path) -> None:
        """A path, bytes, a file object, a PIL image and an array give the same pixels."""
        image = Image.fromarray(self.PIXELS)
        path = tmp_path / "picture.dat"
        path.write_bytes(_encoded(image, "PNG"))

        class Stream(io.RawIOBase):
            """Neither seekable nor generous: at most 10 bytes a read."""

            def __init__(self) -> None:
                self.rest = path.read_bytes()

            def read(self, size: int = -1) -> bytes:
                part, self.rest = self.rest[: min(size, 10)], self.rest[min(size, 10) :]
                return part

        with path.open("rb") as file, Image.open(path) as opened:
            item: Any = {
                "str": str(path),
                "Path": path,
                "bytes": path.read_bytes(),
                "bytearray": bytearray(path.read_bytes()),
                "memoryview": memoryview(path.read_bytes()),
                "file": file,
                "stream": Stream(),
                "PIL": opened,
                "array": self.PIXELS,
            }[form]
            np.testing.assert_array_equal(np.asarray(load_image(item)), self.PIXELS)

    @pytest.mark.parametrize(
        ("array", "expected"),
        [
            (PIXELS[:, :, 0], PIXELS[:, :, [0, 0, 0]]),
            (PIXELS[:, :, :1], PIXELS[:, :, [0, 0, 0]]),
            (PIXELS[::-1, ::-2], PIXELS[::-1, ::-2]),
            (np.dstack([PIXELS, np.full((5, 7), 255, np.uint8)]), PIXELS),
            (np.dstack([PIXELS, np.zeros((5, 7), np.uint8)]), np.full((5, 7, 3), 255)),
        ],
    )
    def test_arrays(self, array: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
        """Grey, RGB and RGBA arrays, contiguous or not, are taken as they are; alpha is put on white."""
        np.testing.assert_array_equal(np.asarray(load_image(array)), expected)

    @pytest.mark.parametrize(
        ("item", "cause"),
        [
            (np.zeros((4, 4, 3), np.float32), "float32"),
            (np.zeros((4, 4), bool), "bool"),
            (np.zeros((3, 8, 8), np.uint8), "transpose"),
            (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
            (np.zeros((1, 4, 4, 3), np.uint8), r"\(1, 4, 4, 3\)"),
            (np.zeros(4, np.uint8), r"\(4,\)"),
            (np.zeros((0, 4, 3), np.uint8), "4 x 0"),
            (Image.new("RGB", (0, 3)), "0 x 3"),
            (b"", "empty"),
            (io.BytesIO(b""), "empty"),
            (io.StringIO("text"), r"\bstr\b"),
            ("", "empty"),
            ("a\0b", "null byte"),
            ("/nowhere/x.jpg", "no such file"),
            ("https://example.org/cat.jpg", "no such file"),
            (Path(__file__).parent, "folder"),
            ("/dev/zero", "regular"),
            (None, "NoneType"),
            (7, r"\bint\b"),
            ([b"x"], r"\blist\b"),
        ],
    )
    def test_what_is_no_image(self, item: Any, cause: str) -> None:
        """What cannot be an image is an ImageError that says what came."""
        with pytest.raises(ImageError) as caught:
            load_image(item, position=3)
        assert re.search(cause, caught.value.cause)
        assert caught.value.position == 3

    def test_names_in_messages(self, tmp_path: Path) -> None:
        """A message names a path, a file's name, or else the type; a name that is no UTF-8 can be printed."""
        (tmp_path / "x.jpg").write_bytes(b"none")
        with (tmp_path / "x.jpg").open("rb") as file, pytest.raises(ImageError) as caught:
            load_image(file)
        assert caught.value.name == str(tmp_path / "x.jpg")
        with pytest.raises(ImageError) as caught:
            load_image(b"none")
        assert caught.value.name == "bytes"
        assert "bytes" in str(caught.value)
        with pytest.raises(ImageError) as caught:
            load_image(os.fsdecode(b"/nowhere/\xff.jpg"))
        assert b"/nowhere/\\udcff.jpg" in str(caught.value).encode()

    def test_unreadable_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file without read permission is an ImageError that says so."""
        path = tmp_path / "x.jpg"
        path.write_bytes(b"x")

        def refuse(self: Path, *arguments: Any) -> Any:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)  # root may read everything, so chmod would not do
        with pytest.raises(ImageError, match="Permission"):
            load_image(path)

    def test_closed_file(self) -> None:
        """A file object that was closed is an ImageError."""
        file = io.BytesIO(b"x")
        file.close()
        with pytest.raises(ImageError, match=r"\bclosed\b"):
            load_image(file)

    def test_a_given_image_is_not_changed(self) -> None:
        """A PIL image keeps its mode, size and pixels."""
        image = Image.fromarray(_noise(4, 6, 4))
        image.getexif()[0x0112] = 6
        before = image.tobytes()
        load_image(image)
        assert (image.mode, image.size, image.tobytes()) == ("RGBA", (6, 4), before)

    def test_truncated_file_opened_by_the_caller(self) -> None:
        """A PIL image that was opened but not loaded, of a truncated file, is an ImageError too."""
        data = _encoded(Image.fromarray(_noise(64, 64, 3)), "JPEG")
        with pytest.raises(ImageError, match="truncated"):
            load_image(Image.open(io.BytesIO(data[: len(data) // 2])))


class TestLimits:
    """How large an image may be."""

    def test_pixels(self) -> None:
        """An image of as many pixels as allowed is read, one row more is refused, as a file, array and PIL image."""
        limits = ImageLimits(max_pixels=20)
        for height, fits in ((4, True), (5, False)):
            image = Image.new("RGB", (5, height))
            for item in (_encoded(image, "PNG"), image, np.asarray(image)):
                if fits:
                    load_image(item, limits=limits)
                else:
                    with pytest.raises(ImageError, match="5 x 5"):
                        load_image(item, limits=limits)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
    def test_pixels_are_checked_before_decoding(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """An image above the limit is refused by its header: no pixel is decoded."""
        data = _encoded(Image.new("RGB", (50, 50)), kind)

        def decoded(*arguments: Any) -> None:
            pytest.fail("the picture was decoded")

        monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
        with pytest.raises(ImageError, match="50 x 50"):
            load_image(data, limits=ImageLimits(max_pixels=2499))

    @pytest.mark.parametrize("side", [8001, 9500, 13_000, 20_000, 60_000])
    def test_default_limit_of_pixels(self, side: int) -> None:
        """More than 64 megapixels are refused, above and below Pillow's own limits, and without its warning."""
        pixels = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + pixels
        png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        png += struct.pack(">I", 4) + b"IDAT" + b"\0" * 4 + struct.pack(">I", zlib.crc32(b"IDAT" + b"\0" * 4))
        with pytest.raises(ImageError, match=f"{side} x {side}"):
            load_image(png)

    def test_limit_can_be_raised_above_pillows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A raised limit counts, whatever Pillow's own limit is, and nothing warns."""
        data = _encoded(Image.new("L", (100, 100), 9), "PNG")
        for pillows in (6000, 100):
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
            assert load_image(data, limits=ImageLimits(max_pixels=10_000)).size == (100, 100)

    def test_bytes(self, tmp_path: Path) -> None:
        """A file of as many bytes as allowed is read, one byte more is refused, in every form."""
        data = _encoded(Image.new("RGB", (5, 5)), "PNG")
        (tmp_path / "x.png").write_bytes(data)
        for item in (lambda: data, lambda: tmp_path / "x.png", lambda: io.BytesIO(data)):
            load_image(item(), limits=ImageLimits(max_bytes=len(data)))
            with pytest.raises(ImageError, match="max_bytes"):
                load_image(item(), limits=ImageLimits(max_bytes=len(data) - 1))

    def test_large_file_is_not_read(self, tmp_path: Path) -> None:
        """A file above the limit of bytes is refused by its size: a sparse terabyte takes no time."""
        path = tmp_path / "huge.jpg"
        path.touch()
        os.truncate(path, 2**40)
        with pytest.raises(ImageError, match=r"1048576\.0"):
            load_image(path)

    def test_endless_file_object(self) -> None:
        """A file object that never ends is read up to the limit and refused."""
        with open("/dev/zero", "rb") as file, pytest.raises(ImageError, match="max_bytes"):  # noqa: PTH123
            load_image(file, limits=ImageLimits(max_bytes=10**6))

    @pytest.mark.parametrize("name", ["max_pixels", "max_bytes"])
    def test_limits_are_checked(self, name: str) -> None:
        """A limit below 1 is an InputError."""
        with pytest.raises(InputError, match=name):
            ImageLimits(**{name: 0})


class TestColour:
    """Every mode is converted by value."""

    def test_alpha_on_white(self) -> None:
        """RGBA and LA are composed on white: value * alpha + 255 * (1 - alpha), within 1 of 255."""
        for channels, mode in ((4, "RGBA"), (2, "LA")):
            pixels = _noise(16, 16, channels)
            colour, alpha = pixels[:, :, :-1].astype(float), pixels[:, :, -1:] / 255
            expected = np.broadcast_to(colour * alpha + 255 * (1 - alpha), (16, 16, 3))
            for item in (Image.fromarray(pixels, mode), _encoded(Image.fromarray(pixels, mode), "PNG")):
                largest = np.abs(np.asarray(load_image(item)) - expected).max()
                assert largest <= 1, f"{mode}: largest difference {largest:.2f} of 255"

    @pytest.mark.parametrize("mode", ["PA", "La", "RGBa"])
    def test_rare_alpha_modes(self, mode: str) -> None:
        """Palettes with alpha and premultiplied alpha are composed on white."""
        clear = Image.new("PA", (2, 2), (0, 0)) if mode == "PA" else Image.new(mode, (2, 2))
        assert load_image(clear).getpixel((0, 0)) == (255, 255, 255)

    def test_palette_with_transparency(self) -> None:
        """A palette entry that is transparent becomes white, as a byte for each entry or as one index."""
        image = Image.new("P", (2, 1))
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.putpixel((1, 0), 1)
        half = load_image(_encoded(image, "PNG", transparency=bytes([0, 128])))
        assert [half.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (127, 127, 255)]
        index = load_image(_encoded(image, "GIF", transparency=0))
        assert [index.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]

    def test_transparent_colour(self) -> None:
        """A PNG's transparent colour becomes white in 1-bit, grey, 16-bit grey and RGB files."""
        grey = np.array([[0, 7, 200]], np.uint8)
        rgb = np.stack([grey, grey, grey], axis=2)
        wide = grey.astype(">u2") * 257
        bit = np.array([[0b10100000]], np.uint8)
        for data, expected in (
            (_png(8, 0, grey, (b"tRNS", struct.pack(">H", 7))), [0, 255, 200]),
            (_png(8, 2, rgb, (b"tRNS", struct.pack(">HHH", 7, 7, 7))), [0, 255, 200]),
            (_png(16, 0, wide, (b"tRNS", struct.pack(">H", 7 * 257))), [0, 255, 200]),
            (_png(1, 0, bit, (b"tRNS", struct.pack(">H", 0))), [255, 255, 255]),
        ):
            image = load_image(data)
            assert [image.getpixel((x, 0)) for x in range(3)] == [(value,) * 3 for value in expected]

    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
    def test_16_bit_grey(self, kind: str) -> None:
        """16-bit grey is value / 257, rounded, for all 65,536 values: exact, and not clipped at 255."""
        values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        data = _encoded(Image.fromarray(values), kind)
        expected = np.rint(values / 257).astype(np.uint8)
        came = np.asarray(load_image(data))
        np.testing.assert_array_equal(came, np.stack([expected] * 3, axis=2))

    @pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
    def test_16_bit_images(self, mode: str) -> None:
        """PIL images of 16 bits in either byte order, or in 32, are value / 257, rounded."""
        order = {"I;16B": ">u2", "I": "<i4"}.get(mode, "<u2")
        values = np.array([[0, 128, 129, 255], [256, 32768, 65534, 65535]])
        image = Image.frombytes(mode, (4, 2), values.astype(order).tobytes())
        assert np.asarray(load_image(image))[:, :, 0].tolist() == [[0, 0, 1, 1], [1, 128, 255, 255]]

    def test_16_bit_rgb(self) -> None:
        """16-bit RGB is within 1 of value / 257: Pillow has the high byte only."""
        values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3))
        came = np.asarray(load_image(_png(16, 2, values.astype(">u2"))))
        largest = np.abs(came - values / 257).max()
        assert largest <= 1, f"largest difference {largest:.2f} of 255"

    @pytest.mark.parametrize("values", [[[0, 65536]], [[-1, 5]]])
    def test_32_bit_integers(self, values: list[list[int]]) -> None:
        """Integers outside of 16 bits have no known range: ImageError, not a clipped image."""
        with pytest.raises(ImageError, match="65535"):
            load_image(Image.fromarray(np.array(values, np.int32)))

    def test_floats(self) -> None:
        """Floating-point pixels have no known range: ImageError."""
        with pytest.raises(ImageError, match="floating-point"):
            load_image(_encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))

    def test_cmyk(self) -> None:
        """CMYK is converted by value: 255 - min(255, ink + black), within 1 of 255; a stored profile is not applied."""
        pixels = _noise(16, 16, 4)
        ink, black = pixels[:, :, :3] / 255, pixels[:, :, 3:] / 255
        expected = 255 * (1 - ink) * (1 - black)
        for item in (Image.fromarray(pixels, "CMYK"), _encoded(Image.fromarray(pixels, "CMYK"), "TIFF")):
            largest = np.abs(np.asarray(load_image(item)) - expected).max()
            assert largest <= 1, f"largest difference {largest:.2f} of 255"

    def test_one_bit(self) -> None:
        """1 bit becomes black and white."""
        image = Image.new("1", (2, 1))
        image.putpixel((1, 0), 1)
        for item in (image, _encoded(image, "PNG"), _encoded(image, "PPM"), _encoded(image, "TIFF")):
            assert np.asarray(load_image(item))[0].tolist() == [[0, 0, 0], [255, 255, 255]]

    def test_lab(self) -> None:
        """Lab becomes sRGB: white, black, mid grey and a red, within 6 of 255: 8-bit Lab is that coarse."""
        # L * 255 / 100, a + 128, b + 128; the red is L* 54.3, a* 80.8, b* 69.9, sRGB's adapted to D50.
        stored = [(255, 128, 128), (0, 128, 128), (137, 128, 128), (138, 209, 198)]
        image = Image.new("LAB", (4, 1))
        for x, lab in enumerate(stored):
            image.putpixel((x, 0), lab)
        expected = [[255, 255, 255], [0, 0, 0], [128, 128, 128], [255, 0, 0]]
        came = np.asarray(load_image(image))[0].astype(int)
        assert np.abs(came - expected).max() <= 6, came.tolist()

    @pytest.mark.parametrize("mode", ["YCbCr", "HSV", "RGBX"])
    def test_other_modes(self, mode: str) -> None:
        """YCbCr, HSV and padded RGB are converted back to the colours they were made of, within 4 of 255."""
        colours = np.array([[[255, 0, 0], [0, 255, 0], [10, 20, 250], [128, 128, 128]]], np.uint8)
        came = np.asarray(load_image(Image.fromarray(colours).convert(mode))).astype(int)
        assert np.abs(came - colours).max() <= 4, came.tolist()

    def test_profiles_are_not_applied(self) -> None:
        """An embedded colour profile changes no pixel."""
        pixels = _noise(4, 4, 3)
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
        data = _encoded(Image.fromarray(pixels), "PNG", icc_profile=profile)
        np.testing.assert_array_equal(np.asarray(load_image(data)), pixels)


class TestOrientation:
    """EXIF orientation is honoured."""

    # What each orientation says of the stored image (EXIF 2.3, tag 0x0112), undone with NumPy.
    UNDO: ClassVar[dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "PIL"])
    def test_turned(self, orientation: int, kind: str) -> None:
        """A stored image of any orientation comes out upright, from files and from PIL images."""
        pixels = _noise(3, 5, 3)
        image = Image.fromarray(pixels)
        exif = Image.Exif()
        exif[0x0112] = orientation
        if kind == "PIL":
            item: Any = Image.open(io.BytesIO(_encoded(image, "PNG", exif=exif)))
        else:
            item = _encoded(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        np.testing.assert_array_equal(np.asarray(load_image(item)), self.UNDO[orientation](pixels))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_turned_jpeg(self, orientation: int) -> None:
        """A turned JPEG comes out as the same JPEG without the tag, turned."""
        image = Image.fromarray(_noise(24, 16, 3))
        exif = Image.Exif()
        exif[0x0112] = orientation
        plain = np.asarray(load_image(_encoded(image, "JPEG")))
        turned = np.asarray(load_image(_encoded(image, "JPEG", exif=exif)))
        np.testing.assert_array_equal(turned, self.UNDO[orientation](plain))

    @pytest.mark.parametrize("orientation", [0, 9, 65535])
    def test_meaningless(self, orientation: int) -> None:
        """An orientation that does not exist changes nothing."""
        pixels = _noise(3, 5, 3)
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = _encoded(Image.fromarray(pixels), "PNG", exif=exif)
        np.testing.assert_array_equal(np.asarray(load_image(data)), pixels)

    def test_damaged_exif(self) -> None:
        """EXIF data cut anywhere or made of noise does not keep a whole image from being read."""
        exif = Image.Exif()
        exif[0x0112], exif[0x010F], exif[0x0110] = 6, "a maker", "a model"
        whole = exif.tobytes()
        image = Image.fromarray(_noise(8, 8, 3))
        for data in [whole[:length] for length in range(0, len(whole), 3)] + [b"Exif\0\0" + os.urandom(60)]:
            assert load_image(_encoded(image, "JPEG", exif=data)).size == (8, 8)


class TestFrames:
    """Of an animation the first frame is taken."""

    @pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_first(self, kind: str) -> None:
        """The first of three frames comes out."""
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
        options = {"lossless": True} if kind == "WEBP" else {}
        data = _encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert load_image(data).getpixel((1, 1)) == (255, 0, 0)


class TestDamage:
    """Damaged files are ImageErrors, and nothing else."""

    KINDS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000")

    @pytest.mark.parametrize("kind", KINDS)
    def test_truncated(self, kind: str) -> None:
        """A file cut anywhere is an ImageError, or whole up to what follows the pixels."""
        whole = _encoded(Image.fromarray(_noise(40, 40, 3)), kind)
        for share in (0.02, 0.1, 0.3, 0.5, 0.9):
            with pytest.raises(ImageError):
                load_image(whole[: int(len(whole) * share)])

    @pytest.mark.parametrize("kind", KINDS)
    def test_flipped_bytes(self, kind: str) -> None:
        """A file with flipped bytes decodes or is an ImageError: no other exception, no warning."""
        whole = _encoded(Image.fromarray(_noise(24, 24, 3)), kind)
        generator = np.random.default_rng(1)
        for _ in range(150):
            data = bytearray(whole)
            for place in generator.integers(0, min(len(data), 300), 3):
                data[place] = generator.integers(0, 256)
            with contextlib.suppress(ImageError):
                assert load_image(bytes(data), limits=ImageLimits(max_pixels=10**6)).mode == "RGB"

    def test_formats_that_run_programs_are_not_opened(self) -> None:
        """PostScript, which Pillow hands to Ghostscript, is refused."""
        with pytest.raises(ImageError, match="JPEG2000"):
            load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")

    def test_truncated_files_stay_errors_elsewhere(self) -> None:
        """Pillow's switch for truncated files is not touched."""
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        for name in _present(FAILS):
            with pytest.raises(ImageError):
                load_image(ODD_IMAGES / name)
        assert ImageFile.LOAD_TRUNCATED_IMAGES is before is False


def test_draft_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """JPEG is decoded at full size: `draft` is not called, since its result differs."""
    monkeypatch.setattr(ImageFile.ImageFile, "draft", lambda *arguments: pytest.fail("draft was called"))
    monkeypatch.setattr(Image.Image, "draft", lambda *arguments: pytest.fail("draft was called"), raising=False)
    assert load_image(_encoded(Image.fromarray(_noise(64, 64, 3)), "JPEG")).size == (64, 64)


def test_warnings_of_others_pass(tmp_path: Path) -> None:
    """Pillow's warnings stay visible to whoever uses Pillow itself, before and after our decoding."""
    path = tmp_path / "damaged_exif.jpg"
    Image.new("RGB", (8, 8)).save(path, exif=b"Exif\0\0II*\0\x08\0\0\0damaged")
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_image(path)
            assert not caught
            with Image.open(path) as image:
                image.getexif()
            assert any("Corrupt EXIF" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("name", sorted(_present(OPENS)))
def test_a_thumbnail_is_the_image_reduced(name: str) -> None:
    """A thumbnail has the image's proportions and is like it; it is never larger, and has no metadata."""
    data = (ODD_IMAGES / name).read_bytes()
    whole = load_image(data)
    for size in (24, 4096):
        small = load_thumbnail(data, size)
        assert (small.mode, small.info) == ("RGB", {})
        assert max(small.size) == min(size, max(whole.size))
        expected = np.asarray(whole.resize(small.size, Image.Resampling.LANCZOS), float)
        # 14 for a halftone of 500 pixels at 24, below 8 for all others; a turned image is at 60.
        assert np.abs(np.asarray(small, float) - expected).mean() < 16


def test_a_large_jpeg_is_decoded_at_a_fraction() -> None:
    """Of a JPEG of 4000 x 3000 pixels a thumbnail needs a small part of the pixels."""
    file = io.BytesIO()
    Image.new("RGB", (4000, 3000), "red").save(file, "JPEG")
    loaded: list[tuple[int, int]] = []
    load = ImageFile.ImageFile.load

    def counted(image: ImageFile.ImageFile) -> Any:
        loaded.append(image.size)
        return load(image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", counted)
        assert load_thumbnail(file.getvalue(), 200).size == (200, 150)
    assert loaded[0] == (500, 375)


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0"])
def test_a_thumbnail_of_no_image_is_an_error(data: bytes) -> None:
    """What is no whole image raises, and so does one above the limits, by its header."""
    with pytest.raises(ImageError):
        load_thumbnail(data, 100)
    file = io.BytesIO()
    Image.new("1", (200, 200)).save(file, "PNG")
    with pytest.raises(ImageError, match="megapixels"):
        load_thumbnail(file.getvalue(), 100, limits=ImageLimits(max_pixels=100))
