"""pHash: a hash of 64 bits of an image's low frequencies, what other tools find near-equal images by.

Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, section 3.2.1, as the package
ImageHash computes it: grey, 32 x 32 pixels, discrete cosine transform, the 8 x 8 lowest frequencies against their
median.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE, _KEPT = 32, 8
# The rows of DCT-II without scaling, as ImageHash has them.
_COSINES = np.cos(np.pi * np.arange(_KEPT)[:, None] * (2 * np.arange(_SIDE) + 1) / (2 * _SIDE))  # (8, 32)


def hash_of(image: Image.Image) -> NDArray[np.bool_]:
    """Return the hash of an image, (64,) bool; near-equal images differ in few bits."""
    pixels = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float64)
    frequencies = _COSINES @ pixels @ _COSINES.T  # (8, 8)
    return np.asarray((frequencies > np.median(frequencies)).ravel(), np.bool_)
