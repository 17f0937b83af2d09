"""The modes of decoding images. Imports nothing heavy, for the command line."""

from __future__ import annotations

from enum import StrEnum


class DecodeMode(StrEnum):
    """How encoded images are decoded for the image tower.

    `exact` decodes all pixels: the result is bit-equal to the preprocessing of training. `scaled` lets libjpeg decode a
    JPEG at a half, a quarter or an eighth of its size, where that is at least twice the size that it is resized to; all
    other images are decoded as with `exact`.
    """

    EXACT = "exact"
    SCALED = "scaled"
