"""Options of an ingest run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twinspire._arguments import as_whole
from twinspire.errors import InputError
from twinspire.ingest.caption_fusion import check_weight
from twinspire.ingest.captions import CaptionSource
from twinspire.ingest.reports import FolderEvent


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """How `add_images`, `sync` and `watch` turn files into items.

    `captions` gives the captions and metadata of images; several captions of an image are joined, one a line. Captions
    and metadata that the store has and the source lacks stay. With `caption_weight` w, above 0 and below 1, the vector
    of a captioned image is the unit vector of (1 - w) * image + w * mean of its captions, and its metadata has w under
    `fused_captions`. `batch` is the number of files that are encoded together. `on_event` is called from the calling
    thread for every change, once it is durable.

    Raises `InputError` for a `batch` below 1 and a `caption_weight` out of its range or without `captions`.
    """

    captions: CaptionSource | None = None
    caption_weight: float | None = None
    batch: int = 32
    on_event: Callable[[FolderEvent], None] | None = None

    def __post_init__(self) -> None:
        as_whole(self.batch, "batch, the number of files encoded together", minimum=1)
        if self.caption_weight is not None:
            check_weight(self.caption_weight)
            if self.captions is None:
                raise InputError("caption_weight came without captions: pass a source of captions too")
