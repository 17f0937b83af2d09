"""The files of images that may be near-equal: size and thumbnail, read in several threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from twinspire._cores import usable_cores
from twinspire._media import origin_of, read_path
from twinspire.duplicates.correlation import THUMBNAIL, Thumbnails, thumbnail_of
from twinspire.errors import ImageError
from twinspire.images import ImageLimits, load_thumbnail
from twinspire.images.decode import encoded_size
from twinspire.stores import StoredItem

_DECODED = 2 * THUMBNAIL  # pixels of a side to decode a JPEG at


@dataclass(frozen=True, slots=True)
class ImageFile:
    """The file of an item: its size and thumbnail, or the problem with it; neither where files are not read."""

    item: StoredItem
    width: int | None = None
    height: int | None = None
    size_bytes: int | None = None
    thumbnail: Thumbnails | None = None
    problem: str | None = None

    @property
    def rank(self) -> tuple[bool, int, int, int]:
        """A key to sort by: the best first. Of a file that was not read by what the store knows of it, if anything."""
        known = [
            own if own is not None else self.item.metadata.get(key)
            for own, key in ((self.width, "width"), (self.height, "height"), (self.size_bytes, "bytes"))
        ]
        width, height, size_bytes = (value if isinstance(value, int) else 0 for value in known)
        return (self.problem is not None, -width * height, -size_bytes, self.item.id)


def read_files(items: Sequence[StoredItem], limits: ImageLimits) -> Iterator[ImageFile]:
    """Yield the files of image items, in their order; one that cannot be read has a `problem`."""
    with ThreadPoolExecutor(usable_cores(), "twinspire-duplicates") as executor:
        yield from executor.map(lambda item: _read(item, limits), items)


def _read(item: StoredItem, limits: ImageLimits) -> ImageFile:
    if not item.uri.startswith("/"):
        return ImageFile(item, problem="no local file")
    try:
        data = read_path(Path(item.uri), limits, origin_of(item.uri, 0))
        width, height = encoded_size(data)
        image = load_thumbnail(data, _DECODED, limits=limits)
    except ImageError as error:
        return ImageFile(item, problem=error.cause)
    except MemoryError:
        return ImageFile(item, problem="not enough memory to decode it")
    return ImageFile(item, width, height, len(data), thumbnail_of(image))
