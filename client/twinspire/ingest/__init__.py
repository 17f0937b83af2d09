"""Adding images, sounds and lines of text to a store: reading, decoding, encoding and writing run in parallel.

`add_images` and `add_texts` add files, `sync` makes a store match folders once, `watch` keeps it so.
"""

from __future__ import annotations

from twinspire.ingest.caption_fusion import fuse
from twinspire.ingest.captions import Captions, CaptionSource, OnConflict, Sidecars
from twinspire.ingest.discovery import FoundImages, find_files, find_images
from twinspire.ingest.kinds import AUDIO_SUFFIXES, IMAGE_SUFFIXES
from twinspire.ingest.options import IngestOptions
from twinspire.ingest.reports import FailedImage, FolderEvent, Happened, IngestReport
from twinspire.ingest.sync import sync
from twinspire.ingest.upsert import add_images, add_texts
from twinspire.ingest.watch import watch

__all__ = [
    "AUDIO_SUFFIXES",
    "IMAGE_SUFFIXES",
    "CaptionSource",
    "Captions",
    "FailedImage",
    "FolderEvent",
    "FoundImages",
    "Happened",
    "IngestOptions",
    "IngestReport",
    "OnConflict",
    "Sidecars",
    "add_images",
    "add_texts",
    "find_files",
    "find_images",
    "fuse",
    "sync",
    "watch",
]
