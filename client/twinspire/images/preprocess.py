"""Preprocessing of many images: a pool of threads decodes ahead while the caller does something else."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinspire._arguments import as_whole, require_list
from twinspire._cores import thread_count
from twinspire.bundle import ImageSettings
from twinspire.errors import ImageError, InputError
from twinspire.images.decode import DEFAULT_LIMITS, Pending, begin, finish
from twinspire.images.geometry import fit
from twinspire.images.items import ImageItem, ImageLimits, Origin, origin_of

Pixels = NDArray[np.uint8]


class Preprocessor:
    """Turns images into the image tower's input: (N, H, W, 3) uint8 RGB, resized and cropped, not normalised.

    Paths, bytes and arrays are processed by `threads` threads (by default one for each usable core).
    File objects are read, and PIL images that were only opened are loaded, by the calling thread, since they
    are not thread-safe. See `load_image` and `fit` for what is done to an image.
    """

    def __init__(
        self, settings: ImageSettings, *, limits: ImageLimits = DEFAULT_LIMITS, threads: int | None = None
    ) -> None:
        self.settings = settings
        self.limits = limits
        self.threads = thread_count(threads)

    def one(self, item: ImageItem, position: int = 0) -> Pixels:
        """Prepare one image: (H, W, 3) uint8. Raises ImageError with `position` and the cause."""
        origin = origin_of(item, position)
        return self._finish(begin(item, self.limits, origin), origin)

    def many(self, items: Iterable[ImageItem]) -> Pixels:
        """Prepare images: (N, H, W, 3) uint8 in the order given; (0, H, W, 3) for none.

        Raises ImageError for the first one, in that order, that cannot be used.
        """
        listed = list(_check_iterable(items))
        pixels = self._empty(len(listed))
        for position, result in self._ordered(listed, look_ahead=4 * self.threads):
            if isinstance(result, ImageError):
                raise result
            pixels[position] = result
        return pixels

    def many_or_skip(self, items: Iterable[ImageItem]) -> tuple[Pixels, list[ImageError]]:
        """Prepare images and skip those that cannot be used.

        Returns the N others as (N, H, W, 3) uint8 in the order given, and the errors of the skipped ones, with their
        positions.
        """
        listed = list(_check_iterable(items))
        pixels, errors = self._empty(len(listed)), list[ImageError]()
        for position, result in self._ordered(listed, look_ahead=4 * self.threads):
            if isinstance(result, ImageError):
                errors.append(result)
            else:
                pixels[position - len(errors)] = result
        return pixels[: len(listed) - len(errors)], errors

    def stream(self, items: Iterable[ImageItem], *, batch: int) -> Iterator[tuple[list[int], Pixels, list[ImageError]]]:
        """Prepare images batch by batch, decoding the next while the caller uses the last.

        Each step takes `batch` items and yields the positions of those that could be used, their pixels as
        (n, H, W, 3) uint8, n at most `batch`, and the errors of the others. `items` may be endless: at most
        2 x `batch` + `threads` images are in memory at a time. Closing the iterator stops the threads.
        """
        return self._batches(_check_iterable(items), as_whole(batch, "batch", minimum=1))

    def _batches(self, items: Iterable[ImageItem], batch: int) -> Iterator[tuple[list[int], Pixels, list[ImageError]]]:
        positions, rows, errors = list[int](), list[Pixels](), list[ImageError]()
        for position, result in self._ordered(items, look_ahead=batch + self.threads):
            if isinstance(result, ImageError):
                errors.append(result)
            else:
                positions.append(position)
                rows.append(result)
            if len(positions) + len(errors) == batch:
                yield positions, np.stack(rows) if rows else self._empty(0), errors
                positions, rows, errors = [], [], []
        if positions or errors:
            yield positions, np.stack(rows) if rows else self._empty(0), errors

    def _ordered(self, items: Iterable[ImageItem], *, look_ahead: int) -> Iterator[tuple[int, Pixels | ImageError]]:
        """Yield every image's pixels or error in order, with at most `look_ahead` images decoded ahead."""
        pending: deque[tuple[int, Future[Pixels | ImageError] | ImageError]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="twinspire-images")
        try:
            for position, item in enumerate(items):
                origin = origin_of(item, position)
                try:
                    begun = begin(item, self.limits, origin)
                    pending.append((position, pool.submit(self._finish_or_error, begun, origin)))
                except ImageError as error:
                    pending.append((position, error))
                if len(pending) > look_ahead:
                    yield _settled(*pending.popleft())
            while pending:
                yield _settled(*pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _finish_or_error(self, begun: Pending, origin: Origin) -> Pixels | ImageError:
        try:
            return self._finish(begun, origin)
        except ImageError as error:
            return error

    def _finish(self, begun: Pending, origin: Origin) -> Pixels:
        return np.array(fit(finish(begun, self.limits, origin), self.settings))  # (H, W, 3), writable

    def _empty(self, count: int) -> Pixels:
        return np.empty((count, self.settings.height, self.settings.width, 3), np.uint8)


def _settled(position: int, result: Future[Pixels | ImageError] | ImageError) -> tuple[int, Pixels | ImageError]:
    return position, result if isinstance(result, ImageError) else result.result()


def _check_iterable(items: Any) -> Iterable[ImageItem]:  # noqa: ANN401 - whatever the caller gave
    """Return `items`. Raises InputError for a single image, which would be read letter by letter or row by row."""
    one_array = isinstance(items, np.ndarray) and items.ndim < 4
    if one_array or isinstance(items, Image.Image) or hasattr(items, "read"):
        raise InputError(
            f"expected a list of images, got one {type(items).__name__}. Put it in a list", option="images"
        )
    return require_list(items, "images")
