"""Groups of near-equal images in a store: copies that were re-encoded, scaled, cropped or recoloured.

report = find_duplicates(index)
for group in report.groups: print(group.best.uri, [image.uri for image in group.others])

Nothing is deleted, and the store is not changed.
"""

from __future__ import annotations

from twinspire.duplicates.correlation import correlations, thumbnail_of
from twinspire.duplicates.find import DEFAULT_MIN_CORRELATION, DEFAULT_THRESHOLD, find_duplicates
from twinspire.duplicates.report import DuplicateGroup, DuplicateImage, DuplicateReport, UnreadableImage

__all__ = [
    "DEFAULT_MIN_CORRELATION",
    "DEFAULT_THRESHOLD",
    "DuplicateGroup",
    "DuplicateImage",
    "DuplicateReport",
    "UnreadableImage",
    "correlations",
    "find_duplicates",
    "thumbnail_of",
]
