"""Perceptual check: the correlation of two small grey thumbnails, over crops of either.

Template matching by normalised cross-correlation (Lewis, Fast Normalized Cross-Correlation, 1995), of thumbnails
without their local mean. It does not depend on brightness and contrast, hardly on compression and saturation, and it
compares where things are in an image, of which embeddings say little. A hash of 64 bits, such as pHash (Zauner,
Implementation and Benchmarking of Perceptual Image Hash Functions, 2010), is smaller and compares faster, but a crop of
10% changes a third of its bits: `twinspire bench search` measures both. Rotated and mirrored images do not correlate.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinspire._cores import usable_cores

THUMBNAIL = 48
"""Side of a stored thumbnail, in pixels."""
_SIDE = 32  # at which images are compared
_SIDES = range(27, _SIDE + 1)  # of an image that is a crop of another: up to 16% of a side is missing
# A quarter of the windows, compared first. For 99% of the crops of generated scenes their best correlation is less than
# 0.15 below that of all windows, and most pairs of different images are out of reach after a third of the time.
_COARSE_SIDES = range(28, _SIDE + 1, 2)
_COARSE_MARGIN = 0.25
_BLUR = 2  # radius of the local mean, in pixels of `_SIDE`
_PAIRS_AT_ONCE = 128
# Mean square of an image without its local mean, below which it has no structure to compare: rounding leaves 0.1.
_FLAT = 0.25

Thumbnails = NDArray[np.uint8]
"""(N, 48, 48) uint8, grey."""


def thumbnail_of(image: Image.Image) -> Thumbnails:
    """Return the thumbnail of an RGB image, (48, 48) uint8 grey, of whatever width and height."""
    small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(small.convert("L"), np.uint8)


def correlations(left: Thumbnails, right: Thumbnails, *, minimum: float = -1) -> NDArray[np.float32]:
    """Return the correlation of each pair of thumbnails, (N, 48, 48) uint8 each, as (N,) float32, -1 to 1.

    It is the largest of those of the whole images and of either with each crop of the other that leaves out up to 16%
    of the width and height. Two images without structure, such as blank pages, correlate with 1, one with another
    image with 0. A pair that is far below `minimum` in a quarter of the windows is not compared in the others, and
    has the largest correlation of those.
    """
    found = np.empty(len(left), np.float32)

    def compare(start: int) -> None:
        some = slice(start, start + _PAIRS_AT_ONCE)
        one, other = left[some].astype(np.float32), right[some].astype(np.float32)
        best = _largest(one, other, _COARSE_SIDES)
        near = best >= minimum - _COARSE_MARGIN
        if near.any():
            best[near] = np.maximum(best[near], _largest(one[near], other[near], _SIDES))
        found[some] = best

    starts = range(0, len(left), _PAIRS_AT_ONCE)
    if len(starts) <= 1:
        for start in starts:
            compare(start)
    else:  # NumPy releases the GIL
        with ThreadPoolExecutor(usable_cores(), "twinspire-duplicates") as executor:
            list(executor.map(compare, starts))
    return found


def _largest(left: NDArray[np.float32], right: NDArray[np.float32], sides: range) -> NDArray[np.float32]:
    """Return the largest correlation of each pair, either as a crop of the other, over windows of these sides, (N,)."""
    return np.maximum(_as_crop(left, right, sides), _as_crop(right, left, sides))


def _as_crop(crops: NDArray[np.float32], whole: NDArray[np.float32], sides: range) -> NDArray[np.float32]:
    """Return the largest correlation of each of `crops` (N, 48, 48) with a window of `whole` (N, 48, 48), (N,)."""
    full = _without_local_mean(_resized(whole, _SIDE, _SIDE))  # (N, 32, 32)
    sums, squares = _integral(full), _integral(full * full)  # (N, 33, 33)
    best = np.full(len(crops), -1, np.float32)
    for height in sides:
        rows = np.matmul(_weights(height), crops)  # (N, height, 48)
        for width in sides:
            template = _without_local_mean(np.matmul(rows, _weights(width).T))  # (N, height, width)
            template -= template.mean(axis=(1, 2), keepdims=True)
            energy = np.einsum("nhw,nhw->n", template, template)
            area = height * width
            for top, left in _offsets(height, width):
                window = full[:, top : top + height, left : left + width]
                products = np.einsum("nhw,nhw->n", window, template)
                box = (top, left, top + height, left + width)
                variance = _box_sum(squares, box) - _box_sum(sums, box) ** 2 / area
                np.maximum(best, _normalised(products, energy, variance, area), out=best)
    return best


def _normalised(
    products: NDArray[np.float32], left: NDArray[np.float32], right: NDArray[np.float32], area: int
) -> NDArray[np.float32]:
    """Return correlations from inner products and the sums of squares of both sides, (N,) each."""
    flat_left, flat_right = left < _FLAT * area, right < _FLAT * area
    scale = np.sqrt(np.maximum(left, _FLAT * area) * np.maximum(right, _FLAT * area))
    found = np.where(flat_left | flat_right, (flat_left & flat_right).astype(np.float32), products / scale)
    return np.asarray(np.clip(found, -1, 1), np.float32)


def _offsets(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the top left corners of all windows."""
    for top in range(_SIDE - height + 1):
        for left in range(_SIDE - width + 1):
            yield top, left


def _resized(images: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    resized: NDArray[np.float32] = _weights(height) @ images @ _weights(width).T
    return resized


@cache
def _weights(side: int) -> NDArray[np.float32]:
    """Return the matrix (side, 48) that averages 48 pixels to `side`, by the area that each covers."""
    edges = np.arange(side + 1) * (THUMBNAIL / side)
    start, end = edges[:-1, None], edges[1:, None]  # (side, 1)
    pixel = np.arange(THUMBNAIL)
    covered = np.clip(np.minimum(end, pixel + 1) - np.maximum(start, pixel), 0, None)
    return np.asarray(covered / covered.sum(axis=1, keepdims=True), np.float32)


def _without_local_mean(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return images (N, H, W) minus the mean of the 5 x 5 pixels around each, the edge repeated."""
    height, width = images.shape[1:]
    blurred = np.matmul(_blur(height), np.matmul(images, _blur(width).T))
    return np.asarray(images - blurred, np.float32)


@cache
def _blur(side: int) -> NDArray[np.float32]:
    """Return the matrix (side, side) that averages each pixel with its neighbours, the edge repeated."""
    matrix = np.zeros((side, side), np.float32)
    for place in range(side):
        for step in range(-_BLUR, _BLUR + 1):
            matrix[place, min(max(place + step, 0), side - 1)] += 1 / (2 * _BLUR + 1)
    return matrix


def _integral(images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the sums of all pixels above and to the left, (N, H + 1, W + 1)."""
    sums = images.astype(np.float64).cumsum(axis=1).cumsum(axis=2)
    return np.pad(sums, ((0, 0), (1, 0), (1, 0)))


def _box_sum(integral: NDArray[np.float64], box: tuple[int, int, int, int]) -> NDArray[np.float32]:
    top, left, bottom, right = box
    total = integral[:, bottom, right] - integral[:, top, right] - integral[:, bottom, left] + integral[:, top, left]
    return np.asarray(total, np.float32)
