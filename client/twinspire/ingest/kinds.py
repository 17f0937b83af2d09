"""Kinds of files that become items: images and sounds, by their suffixes and by the towers of a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from twinspire._media import ByteLimits
from twinspire.bundle import Tower
from twinspire.errors import BundleError
from twinspire.images import formats
from twinspire.images.formats import HEIF_SUFFIXES
from twinspire.stores.items import ItemKind

if TYPE_CHECKING:
    from twinspire.client import Client

# fmt: off
IMAGE_SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".dib",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx", ".jpf",
])
AUDIO_SUFFIXES = frozenset([
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64",
])
# fmt: on
FILE_KINDS = (ItemKind.IMAGE, ItemKind.AUDIO)
"""The kinds of items that are files."""

_NOUNS = {ItemKind.IMAGE: "images", ItemKind.AUDIO: "sounds"}


@dataclass(frozen=True)
class FileKinds:
    """The kinds of files that a client encodes, with the limits of each."""

    limits: Mapping[ItemKind, ByteLimits]

    @classmethod
    def of(cls, client: Client) -> FileKinds:
        """Return those of a client's model. Raises BundleError where it has neither an image nor an audio tower."""
        limits: dict[ItemKind, ByteLimits] = {}
        if Tower.IMAGE in client.bundle.towers:
            limits[ItemKind.IMAGE] = client.limits
        if Tower.AUDIO in client.bundle.towers:
            limits[ItemKind.AUDIO] = client.audio_limits
        if not limits:
            raise BundleError(
                f"the bundle {client.bundle.name!r} has a text tower alone and cannot encode files: add texts with "
                "--texts, or use a model with an image tower or an audio tower"
            )
        return cls(limits)

    @property
    def nouns(self) -> str:
        """The files in words: "images", "sounds", "images or sounds"."""
        return nouns_of(self.limits)

    def of_file(self, path: Path) -> ItemKind:
        """Return the kind that a file is read as: by its suffix, else the first that the model has."""
        return next((kind for kind in self.limits if is_of_kind(path, kind)), next(iter(self.limits)))


def suffixes_of(kind: ItemKind) -> frozenset[str]:
    """Return the suffixes of a kind of files, in lower case, including HEIF's where its reader is installed."""
    if kind is ItemKind.AUDIO:
        return AUDIO_SUFFIXES
    return IMAGE_SUFFIXES | HEIF_SUFFIXES if formats.has_heif() else IMAGE_SUFFIXES


def is_of_kind(path: Path, *kinds: ItemKind) -> bool:
    """Whether a file has a suffix of one of these kinds."""
    suffix = path.suffix.lower()
    return any(suffix in suffixes_of(kind) for kind in kinds)


def nouns_of(kinds: Collection[ItemKind]) -> str:
    """Return kinds of files in words."""
    return " or ".join(_NOUNS[kind] for kind in FILE_KINDS if kind in kinds)
