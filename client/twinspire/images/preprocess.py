"""Preprocessing of many images: files and arrays in, uint8 arrays of the image tower's size out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinspire._arguments import as_member, require_list
from twinspire._batched import BatchPreprocessor
from twinspire._media import Origin
from twinspire.bundle import DecodeMode, ImageSettings
from twinspire.errors import ImageError, InputError
from twinspire.images.decode import DEFAULT_LIMITS, Pending, begin, finish
from twinspire.images.geometry import fit
from twinspire.images.items import ImageItem, ImageLimits
from twinspire.images.scaled import fit_scaled


class Preprocessor(BatchPreprocessor[ImageError]):
    """Turns images into the image tower's input: (N, H, W, 3) uint8 RGB, resized and cropped, not normalised.

    Paths, bytes and arrays are processed by `threads` threads (by default one for each usable core).
    File objects are read, and PIL images that were only opened are loaded, by the calling thread, since they
    are not thread-safe. See `load_image` and `fit` for what is done to an image, and `DecodeMode` for `decode`.

    Raises InputError for an unknown `decode`.
    """

    error_class = ImageError
    thread_name = "twinspire-images"

    def __init__(
        self,
        settings: ImageSettings,
        *,
        decode: DecodeMode | str = DecodeMode.EXACT,
        limits: ImageLimits = DEFAULT_LIMITS,
        threads: int | None = None,
    ) -> None:
        super().__init__(threads=threads)
        self.decode = as_member(decode, DecodeMode, "decode")
        self.settings = settings
        self.limits = limits

    def _checked(self, items: Any) -> Iterable[ImageItem]:  # noqa: ANN401 - whatever the caller gave
        """Return `items`. Raises InputError for a single image, which would be read letter by letter or by rows."""
        one_array = isinstance(items, np.ndarray) and items.ndim < 4
        if one_array or isinstance(items, Image.Image) or hasattr(items, "read"):
            raise InputError(
                f"expected a list of images, got one {type(items).__name__}. Put it in a list", option="images"
            )
        return require_list(items, "images")

    def _begin(self, item: ImageItem, origin: Origin) -> Pending:
        return begin(item, self.limits, origin)

    def _finish(self, begun: Pending, origin: Origin) -> NDArray[np.uint8]:
        if self.decode is DecodeMode.SCALED:
            fitted = fit_scaled(begun, self.settings, self.limits, origin)
        else:
            fitted = fit(finish(begun, self.limits, origin), self.settings)
        return np.array(fitted)  # (H, W, 3), writable

    def _empty(self, count: int) -> NDArray[np.uint8]:
        return np.empty((count, self.settings.height, self.settings.width, 3), np.uint8)
