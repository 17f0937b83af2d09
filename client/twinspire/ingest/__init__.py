"""Files into an index: pictures and lines of text, read, decoded, encoded and written beside each other."""

from __future__ import annotations

from twinspire.ingest.captions import Captions, CaptionSource, Sidecars
from twinspire.ingest.finding import PICTURE_SUFFIXES, find_pictures
from twinspire.ingest.follow import FolderEvent, Happened
from twinspire.ingest.fusing import fuse
from twinspire.ingest.pictures import add_pictures
from twinspire.ingest.reports import FailedPicture, IngestReport, ItemIndex
from twinspire.ingest.texts import add_texts
from twinspire.ingest.watch import watch

__all__ = [
    "PICTURE_SUFFIXES",
    "CaptionSource",
    "Captions",
    "FailedPicture",
    "FolderEvent",
    "Happened",
    "IngestReport",
    "ItemIndex",
    "Sidecars",
    "add_pictures",
    "add_texts",
    "find_pictures",
    "fuse",
    "watch",
]
