"""Files into an index: pictures and lines of text, read, decoded, encoded and written beside each other."""

from __future__ import annotations

from twinspire.ingest.captions import Captions, CaptionSource, OnConflict, Sidecars
from twinspire.ingest.finding import PICTURE_SUFFIXES, FoundPictures, find_pictures
from twinspire.ingest.fusing import fuse
from twinspire.ingest.pictures import add_pictures, sync
from twinspire.ingest.reports import FailedPicture, FolderEvent, Happened, IngestReport, ItemIndex
from twinspire.ingest.texts import add_texts
from twinspire.ingest.watch import watch

__all__ = [
    "PICTURE_SUFFIXES",
    "CaptionSource",
    "Captions",
    "FailedPicture",
    "FolderEvent",
    "FoundPictures",
    "Happened",
    "IngestReport",
    "ItemIndex",
    "OnConflict",
    "Sidecars",
    "add_pictures",
    "add_texts",
    "find_pictures",
    "fuse",
    "sync",
    "watch",
]
