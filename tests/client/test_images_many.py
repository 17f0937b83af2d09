"""Many images: in order, in threads, with a bounded look-ahead, and each error at its position."""

from __future__ import annotations

import io
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import twinspire.images
from twinspire.bundle import ImageSettings
from twinspire.errors import ImageError, InputError
from twinspire.images import Preprocessor, load_image, preprocess

SETTINGS = ImageSettings.centre_crop(8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SIDE = 16


def _image(shade: int) -> bytes:
    """Encode an image of one shade, by which it is known again."""
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def _shades(pixels: Any) -> list[int]:
    return [int(row[0, 0, 0]) for row in pixels]


@pytest.fixture(params=[1, 4])
def preprocessor(request: pytest.FixtureRequest) -> Preprocessor:
    """A preprocessor with one thread, and with four."""
    return Preprocessor(SETTINGS, threads=request.param)


def test_exports() -> None:
    """The package's public names are exactly these."""
    assert twinspire.images.__all__ == [
        "DecodeMode",
        "ImageItem",
        "ImageLimits",
        "Preprocessor",
        "load_image",
        "load_thumbnail",
    ]


def test_order(preprocessor: Preprocessor) -> None:
    """Images come in the order given, from a list and from a generator."""
    shades = [int(shade) for shade in np.random.default_rng(0).permutation(200)]
    pixels = preprocessor.many([_image(shade) for shade in shades])
    assert (pixels.shape, pixels.dtype) == ((200, 8, 8, 3), np.uint8)
    assert _shades(pixels) == shades
    assert _shades(preprocessor.many(_image(shade) for shade in shades[:9])) == shades[:9]


def test_one(preprocessor: Preprocessor) -> None:
    """One image comes without the leading axis, and may be written to."""
    pixels = preprocessor.one(_image(9))
    assert pixels.shape == (8, 8, 3)
    assert pixels.flags.writeable
    with pytest.raises(ImageError) as caught:
        preprocessor.one(b"none", 5)
    assert (caught.value.position, caught.value.name) == (5, "bytes")


def test_none(preprocessor: Preprocessor) -> None:
    """No images give an empty array of the right shape."""
    assert preprocessor.many([]).shape == (0, 8, 8, 3)
    pixels, errors = preprocessor.many_or_skip([])
    assert (pixels.shape, errors) == ((0, 8, 8, 3), [])
    assert list(preprocessor.stream([], batch=3)) == []


def test_first_error_in_order(preprocessor: Preprocessor) -> None:
    """`many` raises for the first bad image in the order given, whichever thread fails first."""
    items: list[Any] = [_image(shade) for shade in range(40)]
    items[7], items[8], items[30] = _image(0)[:45], b"none", None
    for _ in range(5):
        with pytest.raises(ImageError) as caught:
            preprocessor.many(items)
        assert caught.value.position == 7


def test_skip(preprocessor: Preprocessor) -> None:
    """`many_or_skip` gives the survivors in order, and an error with its position for each of the others."""
    items: list[Any] = [_image(shade) for shade in range(40)]
    items[0], items[8], items[39] = b"none", "/nowhere.jpg", 3
    pixels, errors = preprocessor.many_or_skip(items)
    assert _shades(pixels) == [shade for shade in range(40) if shade not in (0, 8, 39)]
    assert [error.position for error in errors] == [0, 8, 39]
    assert errors[1].name == "/nowhere.jpg"


def test_skip_all(preprocessor: Preprocessor) -> None:
    """When no image can be used, the array is empty and every one has its error."""
    pixels, errors = preprocessor.many_or_skip([b"none"] * 5)
    assert pixels.shape == (0, 8, 8, 3)
    assert len(errors) == 5


def test_stream(preprocessor: Preprocessor) -> None:
    """A stream gives batches of as many items as asked, with positions and errors counted over all of it."""
    items: list[Any] = [_image(shade) for shade in range(11)]
    items[1] = items[4] = items[5] = items[6] = items[7] = b"none"
    batches = list(preprocessor.stream(iter(items), batch=4))
    assert [positions for positions, _, _ in batches] == [[0, 2, 3], [], [8, 9, 10]]
    assert [_shades(pixels) for _, pixels, _ in batches] == [[0, 2, 3], [], [8, 9, 10]]
    assert [[error.position for error in errors] for _, _, errors in batches] == [[1], [4, 5, 6, 7], []]
    assert batches[1][1].shape == (0, 8, 8, 3)


def test_bounded_look_ahead(preprocessor: Preprocessor) -> None:
    """However slow the caller is, a stream takes at most 2 x batch + threads items ahead of it."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield _image(1)

    stream = preprocessor.stream(endless(), batch=5)
    for count in range(1, 4):
        next(stream)
        time.sleep(0.02)
        assert taken <= (count - 1) * 5 + 2 * 5 + preprocessor.threads + 1
    stream.close()  # type: ignore[attr-defined]


def test_decodes_while_the_caller_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two batches the threads decode the next one: it is there when it is asked for."""
    decoded = threading.Semaphore(0)
    finish = preprocess.finish

    def watch(*arguments: Any) -> Image.Image:
        image = finish(*arguments)
        decoded.release()
        return image

    monkeypatch.setattr(preprocess, "finish", watch)
    stream = Preprocessor(SETTINGS, threads=2).stream([_image(shade) for shade in range(30)], batch=3)
    next(stream)
    for _ in range(6):  # this batch and the next, without asking for it
        assert decoded.acquire(timeout=10)
    stream.close()  # type: ignore[attr-defined]


def test_closing_a_stream_ends_its_threads(preprocessor: Preprocessor) -> None:
    """A stream that is closed early leaves no thread behind."""
    stream = preprocessor.stream((_image(1) for _ in range(100)), batch=4)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("twinspire-images")]


def test_the_callers_errors_pass(preprocessor: Preprocessor) -> None:
    """An error of the iterable itself passes through and leaves no thread behind."""

    def failing() -> Iterator[bytes]:
        yield _image(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(preprocessor.stream(failing(), batch=4))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("twinspire-images")]


def test_the_same_object_many_times() -> None:
    """The same PIL image, opened but not loaded, or file object may stand in a list many times."""
    preprocessor = Preprocessor(SETTINGS, threads=4)
    for _ in range(10):
        opened = Image.open(io.BytesIO(_image(77)))
        assert _shades(preprocessor.many([opened] * 12)) == [77] * 12
    file = io.BytesIO(_image(5))
    pixels, errors = preprocessor.many_or_skip([file, file])
    assert _shades(pixels) == [5]
    assert ["empty" in error.cause for error in errors] == [True]


@pytest.mark.parametrize(
    "items",
    [
        "cat.jpg",
        Path("cat.jpg"),
        b"bytes",
        io.BytesIO(b"bytes"),
        Image.new("RGB", (4, 4)),
        np.zeros((4, 4, 3), np.uint8),
        7,
    ],
)
def test_one_image_instead_of_a_list(preprocessor: Preprocessor, items: Any) -> None:
    """One image where a list is due is an InputError, not an image for each letter or row."""
    for call in (preprocessor.many, preprocessor.many_or_skip, lambda given: preprocessor.stream(given, batch=2)):
        with pytest.raises(InputError, match="list"):
            call(items)


def test_an_array_of_images_is_a_list(preprocessor: Preprocessor) -> None:
    """An array (N, H, W, 3) is N images."""
    array = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(preprocessor.many(array), array)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_are_checked(threads: int) -> None:
    """Fewer than one thread is an InputError, and so is a batch of none."""
    with pytest.raises(InputError, match="threads"):
        Preprocessor(SETTINGS, threads=threads)
    with pytest.raises(InputError, match="batch"):
        Preprocessor(SETTINGS).stream([], batch=0)


# A filter that another thread puts in front while an image is decoded does get its warning: seen on a busy machine.
@pytest.mark.serial
def test_warnings_in_many_threads() -> None:
    """Whatever other threads do to the filters of warnings, none of Pillow's warnings gets out of a decoding."""
    exif = Image.Exif()
    exif[0x010F] = "a maker of cameras"
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif.tobytes()[:-9])
    picture, stop = file.getvalue(), threading.Event()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(picture)).getexif().get(0x0112)
        assert caught, "this picture no longer makes Pillow warn: find another"

    def meddle() -> None:
        while not stop.is_set():
            warnings.filterwarnings("error", category=UserWarning)
            time.sleep(0)

    with warnings.catch_warnings(), ThreadPoolExecutor(5) as pool:
        warnings.simplefilter("error")
        meddler = pool.submit(meddle)
        try:
            sizes = list(pool.map(lambda _: load_image(picture).size, range(300)))
        finally:
            stop.set()
        meddler.result()
    assert sizes == [(8, 8)] * 300
