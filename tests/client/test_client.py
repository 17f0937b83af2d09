"""The client: from files and words to vectors, over real tiny engines and over towers that fail."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinspire import Client, LocalTowers
from twinspire.errors import (
    BundleError,
    EngineError,
    ImageError,
    InputError,
    SpaceMismatchError,
)
from twinspire.images import ImageLimits, Preprocessor
from twinspire.towers import InferencePrecision, OpenVinoOptions

TOLERANCE = 1e-6


@pytest.fixture
def client(tiny: Any) -> Iterator[Client]:
    """Open a client on the tiny bundle's reference engines."""
    with Client.local(tiny.bundle, precision="fp32", provider="cpu", threads=1) as opened:
        yield opened


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Write 70 small images, which make three batches."""
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{place:02}.png" for place in range(70)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    return paths


def _largest(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max(initial=0.0))


# Texts


def test_texts_come_back_in_order(tiny: Any, client: Client) -> None:
    """`encode_texts` gives unit float32 rows in the order given, equal to NumPy's."""
    texts = ["a red cat on the snow", "a", "", "the blue boat left of the large house"]
    vectors = client.encode_texts(texts)
    difference = _largest(vectors, tiny.model.encode_texts(client.tokenize(texts)))
    assert difference <= TOLERANCE, f"largest difference {difference:.2e}"
    assert vectors.dtype == np.float32


def test_tokens_are_ragged(client: Client) -> None:
    """`tokenize` gives 1-D int32 arrays with start and end token and no padding."""
    tokens = client.tokenize(["a cat", ""])
    assert [ids.tolist() for ids in tokens] == [[1, 4, 10, 2], [1, 2]]
    assert {ids.dtype for ids in tokens} == {np.dtype(np.int32)}


def test_a_long_text_is_cut_and_encoded(client: Client) -> None:
    """A text beyond the context is cut to it, its end token kept, and encodes like its beginning."""
    long, exact = client.encode_texts(["cat " * 500, "cat " * 18])
    assert np.array_equal(long, exact)


@pytest.mark.parametrize("texts", ["one string", b"bytes", None, 5])
def test_one_text_is_no_list(client: Client, texts: Any) -> None:
    """A str instead of a list is an InputError, not a batch of letters."""
    for call in (client.encode_texts, client.tokenize):
        with pytest.raises(InputError, match="list"):
            call(texts)


def test_what_is_no_text_is_named(client: Client) -> None:
    """An item that is no str is an InputError with its position."""
    with pytest.raises(InputError, match="text 1"):
        client.encode_texts(["a", 1])  # type: ignore[list-item]


# Images


def test_images_from_files_agree_with_numpy(tiny: Any, client: Client, files: list[Path]) -> None:
    """Files of several batches come out in order, equal to NumPy on what `preprocess` gives."""
    pixels = client.preprocess(files)
    assert (pixels.shape, pixels.dtype) == ((70, 16, 16, 3), np.uint8)
    difference = _largest(client.encode_images(files), tiny.model.encode_images(pixels))
    assert difference <= TOLERANCE, f"largest difference {difference:.2e}"


def test_every_kind_of_item_is_taken(client: Client, files: list[Path]) -> None:
    """Path, str, bytes, file object, PIL image and array of one image give one vector."""
    data = files[0].read_bytes()
    image = Image.open(io.BytesIO(data))
    items: list[Any] = [files[0], str(files[0]), data, io.BytesIO(data), image, np.asarray(image)]
    vectors = client.encode_images(items)
    spread = _largest(vectors, np.repeat(vectors[:1], len(items), axis=0))
    assert spread <= TOLERANCE, f"largest difference {spread:.2e}"


@pytest.mark.parametrize("kind", ["str", "path", "bytes", "file", "pil", "array", "none"])
def test_one_image_is_no_list(client: Client, files: list[Path], kind: str) -> None:
    """A bare image instead of a list is an InputError that says to put it in one."""
    data = files[0].read_bytes()
    image = Image.open(io.BytesIO(data))
    bare: dict[str, Any] = {
        "str": str(files[0]),
        "path": files[0],
        "bytes": data,
        "file": io.BytesIO(data),
        "pil": image,
        "array": np.asarray(image),
        "none": None,
    }
    for call in (client.encode_images, client.preprocess):
        with pytest.raises(InputError, match="list"):
            call(bare[kind])


def test_a_bad_image_raises_with_its_position(client: Client, files: list[Path]) -> None:
    """The first image that cannot be used raises ImageError with position, name and cause."""
    files[40].write_bytes(b"not a picture")
    files[50].unlink()
    for call in (client.encode_images, client.preprocess):
        with pytest.raises(ImageError) as caught:
            call(files)
        assert (caught.value.position, caught.value.name) == (40, str(files[40]))


def test_bad_images_can_be_left_out(client: Client, files: list[Path]) -> None:
    """With `on_error="skip"` the rest is encoded in order, and every one left out is named with its cause."""
    files[3].write_bytes(b"not a picture")
    files[33].unlink()
    files[69].write_bytes(files[0].read_bytes()[:60])
    good = [path for place, path in enumerate(files) if place not in (3, 33, 69)]
    expected = client.encode_images(good)
    vectors, left_out = client.encode_images(files, on_error="skip")
    assert [error.position for error in left_out] == [3, 33, 69]
    assert all(error.cause for error in left_out)
    assert _largest(vectors, expected) <= TOLERANCE
    pixels, errors = client.preprocess(files, on_error="skip")
    assert np.array_equal(pixels, client.preprocess(good))
    assert [str(error) for error in errors] == [str(error) for error in left_out]


def test_what_is_no_bundle_is_refused() -> None:
    """None, as of a function that found nothing, and a number are InputErrors that say what was expected.

    A connection without a bundle asks the server for it.
    """
    nothing: Any = None
    number: Any = 1
    with pytest.raises(InputError, match="Bundle"):
        Client.local(nothing)
    with pytest.raises(InputError, match="Bundle"):
        Client.connect("localhost:1", number)


def test_nothing_gives_no_rows(client: Client) -> None:
    """No texts, no images, and only bad images left out give (0, D) and (0, S, S, 3)."""
    assert client.encode_texts([]).shape == client.encode_images([]).shape == (0, client.dim)
    assert client.preprocess([]).shape == (0, 16, 16, 3)
    vectors, left_out = client.encode_images([b"bad"], on_error="skip")
    assert (vectors.shape, vectors.dtype, len(left_out)) == ((0, client.dim), np.float32, 1)


def test_an_unknown_on_error_is_refused(client: Client) -> None:
    """`on_error` is one of two words."""
    for call in (client.encode_images, client.preprocess):
        with pytest.raises(InputError, match="on_error"):
            call([], on_error="ignore")  # type: ignore[call-overload]


def test_limits_are_the_callers(tiny: Any, files: list[Path]) -> None:
    """`limits` reaches the decoder."""
    with (
        Client.local(tiny.bundle, threads=1, limits=ImageLimits(max_pixels=100)) as client,
        pytest.raises(ImageError, match="megapixels"),
    ):
        client.encode_images(files)


# How it works


class _Towers:
    """Towers that encode nothing but call `on_encode` with the number of images."""

    def __init__(self, tiny: Any, on_encode: Callable[[int], None] = lambda count: None) -> None:
        self.dim, self.space = tiny.bundle.dim, tiny.bundle.space
        self.context_length = tiny.bundle.text.context_length
        self.closed = 0
        self._on_encode = on_encode

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        self._on_encode(len(images))
        return np.eye(len(images), self.dim, dtype=np.float32)

    def encode_texts(self, sequences: Any) -> np.ndarray:
        return np.eye(len(sequences), self.dim, dtype=np.float32)

    def close(self) -> None:
        self.closed += 1


def test_few_images_are_in_memory(tiny: Any) -> None:
    """A generator is read at most three batches ahead of what was encoded, not to its end."""
    taken, encoded, ahead = 0, 0, list[int]()

    def pictures() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(200):
            taken += 1
            yield np.zeros((8, 8, 3), np.uint8)

    def on_encode(count: int) -> None:
        nonlocal encoded
        ahead.append(taken - encoded)
        encoded += count

    Client(tiny.bundle, _Towers(tiny, on_encode), threads=2).encode_images(pictures())
    assert encoded == taken == 200
    assert max(ahead) <= 96


def test_decoding_goes_on_while_the_towers_work(tiny: Any, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of the next batch are decoded while the first is encoded: here they wait for it to begin."""
    encoding, decoded = threading.Event(), threading.Event()
    place = itertools.count()
    original = Preprocessor._finish

    def finish(self: Preprocessor, *arguments: Any) -> Any:
        if next(place) == 40:
            encoding.wait(10)
            decoded.set()
        return original(self, *arguments)

    overlapped: list[bool] = []

    def on_encode(count: int) -> None:
        encoding.set()
        overlapped.append(decoded.wait(10))

    monkeypatch.setattr(Preprocessor, "_finish", finish)
    Client(tiny.bundle, _Towers(tiny, on_encode), threads=1).encode_images(files)
    assert overlapped == [True, True, True]


def test_an_error_stops_the_decoding(tiny: Any, files: list[Path]) -> None:
    """After an error of the towers or of an image no decoding thread is left, though the error is kept."""

    def fail(count: int) -> None:
        raise EngineError("out of order")

    client = Client(tiny.bundle, _Towers(tiny, fail), threads=2)
    with pytest.raises(EngineError) as first:
        client.encode_images(files)
    files[0].unlink()
    with pytest.raises(ImageError) as second:
        client.encode_images(files)
    assert first.value is not second.value  # both are still held, with their tracebacks
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("twinspire-images")]


def test_leaving_the_block_closes_the_towers(tiny: Any) -> None:
    """The client owns its towers: leaving `with` closes them, and a closed client says so."""
    towers = _Towers(tiny)
    with Client(tiny.bundle, towers) as opened:
        assert opened.towers is towers
    assert towers.closed == 1
    with Client.local(tiny.bundle, threads=1) as local:
        pass
    with pytest.raises(EngineError, match="closed"):
        local.encode_texts(["a"])


def test_towers_of_another_space_are_refused(tiny: Any, make_tiny: Callable[..., Any]) -> None:
    """Towers and bundle must be of one space."""
    other = LocalTowers(make_tiny(seed=1).bundle, threads=1)
    with pytest.raises(SpaceMismatchError, match=r"\bbundle\b"):
        Client(tiny.bundle, other)


def test_local_takes_a_path(tiny: Any) -> None:
    """`Client.local` opens a path like a bundle; a folder that is none is a BundleError."""
    with Client.local(str(tiny.bundle.path), precision="fp32", threads=1) as opened:
        assert (opened.space, opened.dim) == (tiny.bundle.space, tiny.bundle.dim)
    with pytest.raises(BundleError):
        Client.local(tiny.bundle.path.parent)


def test_local_hands_openvinos_options_on(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenVINO computes float32 in, bf16 for one, reaches the towers."""
    asked = OpenVinoOptions(inference_precision=InferencePrecision.BF16)
    given: list[Any] = []

    def open_towers(bundle: Any, **options: Any) -> LocalTowers:
        given.append(options["openvino"])
        return LocalTowers(bundle, threads=1)

    monkeypatch.setattr("twinspire.client.LocalTowers", open_towers)
    Client.local(tiny.bundle, openvino=asked).close()
    assert given == [asked]
