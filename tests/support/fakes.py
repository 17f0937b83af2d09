"""A client without a model, for tests of what is built on `twinspire.Client`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from support.arrays import unit
from twinspire.audio import AudioLimits
from twinspire.bundle import DecodeMode, Tower
from twinspire.errors import ImageError
from twinspire.images import ImageLimits

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "红": (255, 0, 0)}


def mean_colour(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean red, green and blue of an image (S, S, 3); grey where it is black."""
    mean = pixels.reshape(-1, 3).mean(axis=0)
    return mean if mean.any() else np.ones(3)


def named_colour(text: str) -> NDArray[np.int64]:
    """Return the sum of the colours that a text names; grey where it names none."""
    named = [rgb for name, rgb in COLOURS.items() if name in text]
    return np.sum(named or [(1, 1, 1)], axis=0)


class FakeClient:
    """Encodes an image by its mean colour and a text by the colours that it names, or by the functions given.

    What the functions return is brought to length 1. `decoded` are the images that came, in order, `encoded_images` how
    many were encoded, `encoded_texts` the texts.
    """

    limits = ImageLimits()
    vectors_per_item = 1
    audio_limits = AudioLimits()
    decode = DecodeMode.EXACT

    def __init__(
        self,
        space: str = "5" * 64,
        *,
        dim: int = 3,
        image_vector: Callable[[NDArray[np.uint8]], ArrayLike] = mean_colour,
        text_vector: Callable[[str], ArrayLike] = named_colour,
        logit_bias: float | None = None,
    ) -> None:
        self.space, self.dim = space, dim
        self.bundle = SimpleNamespace(
            name="fake",
            path=Path("fake"),
            towers=(Tower.IMAGE, Tower.TEXT),
            manifest=SimpleNamespace(logit_scale=10.0, logit_bias=logit_bias),
        )
        self.decoded: list[Any] = []
        self.encoded_images = 0
        self.encoded_texts: list[str] = []
        self._image_vector, self._text_vector = image_vector, text_vector
        self.towers = SimpleNamespace(encode_images=self.encode_pixels)

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def preprocess(self, items: Iterable[Any], *, on_error: str = "raise") -> Any:
        """Resize what Pillow can load whole to (N, 4, 4, 3); return the errors too with `on_error="skip"`."""
        rows, errors = [], []
        for position, item in enumerate(items):
            self.decoded.append(item)
            try:
                with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
                    rows.append(np.asarray(image.convert("RGB").resize((4, 4), Image.Resampling.BOX)))
            except (OSError, SyntaxError):
                name = "bytes" if isinstance(item, bytes) else str(item)
                errors.append(ImageError(position, name, "is no picture"))
        if errors and on_error == "raise":
            raise errors[0]
        pixels = np.array(rows, np.uint8).reshape(-1, 4, 4, 3)
        return (pixels, errors) if on_error == "skip" else pixels

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (N, D) float32."""
        self.encoded_images += len(pixels)
        return unit(np.reshape([self._image_vector(image) for image in pixels], (-1, self.dim)))

    def encode_images(self, items: Iterable[Any], *, on_error: str = "raise") -> Any:
        """Return (N, D) float32, and the errors with `on_error="skip"`."""
        if on_error == "skip":
            pixels, errors = self.preprocess(items, on_error=on_error)
            return self.encode_pixels(pixels), errors
        return self.encode_pixels(self.preprocess(items))

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (N, D) float32."""
        self.encoded_texts += texts
        return unit(np.reshape([self._text_vector(text) for text in texts], (-1, self.dim)))
