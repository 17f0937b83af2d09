"""The modes of decoding images. Imports nothing heavy, for the command line."""

from __future__ import annotations

from enum import StrEnum

from twinspire._arguments import as_member

AUTO = "auto"
"""What stands for the mode that the bundle recommends."""
DECODE_HELP = (
    "How images are decoded. exact, the default; scaled: JPEG files at a fraction of their size, several times as fast "
    "for photographs; auto: as `twinspire precision` found for the bundle."
)
"""Help of the option --decode of commands that encode images."""


class DecodeMode(StrEnum):
    """How encoded images are decoded for the image tower.

    `exact` decodes all pixels: the result is bit-equal to the preprocessing of training. `scaled` lets libjpeg decode a
    JPEG at a half, a quarter or an eighth of its size, where that is at least twice the size that it is resized to; all
    other images are decoded as with `exact`.
    """

    EXACT = "exact"
    SCALED = "scaled"


def as_decode(decode: DecodeMode | str, what: str) -> DecodeMode | None:
    """Return the mode that `decode` is or names, None for "auto". Raises InputError with the choices."""
    return None if decode == AUTO else as_member(decode, DecodeMode, what, besides=[AUTO])
