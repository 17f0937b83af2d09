"""Files into an index: images and lines of text, read, decoded, encoded and written beside each other."""

from __future__ import annotations

from twinspire.ingest.caption_fusion import fuse
from twinspire.ingest.captions import Captions, CaptionSource, OnConflict, Sidecars
from twinspire.ingest.discovery import IMAGE_SUFFIXES, FoundImages, find_images
from twinspire.ingest.reports import FailedImage, FolderEvent, Happened, IngestReport, ItemIndex
from twinspire.ingest.sync import add_images, sync
from twinspire.ingest.texts import add_texts
from twinspire.ingest.watch import watch

__all__ = [
    "IMAGE_SUFFIXES",
    "CaptionSource",
    "Captions",
    "FailedImage",
    "FolderEvent",
    "FoundImages",
    "Happened",
    "IngestReport",
    "ItemIndex",
    "OnConflict",
    "Sidecars",
    "add_images",
    "add_texts",
    "find_images",
    "fuse",
    "sync",
    "watch",
]
