"""`Thumbnails`: images of items, decoded and encoded again within bounds."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from twinspire._cores import usable_cores
from twinspire._lru_cache import LruCache
from twinspire._media import origin_of, read_path
from twinspire.errors import ImageError, ServerOverloadedError
from twinspire.images import ImageLimits, load_thumbnail
from twinspire.stores import ItemKind, StoredItem
from twinspire_server.gateway.errors import GatewayError, of_twinspire

MAX_SIZE = 2048
"""The most pixels a side."""
_CACHE_BYTES = 64 * 2**20
_MOST_WAITING = 256
_JPEG_QUALITY = 82


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG, and the SHA-256 in hex of the file that it is of."""

    jpeg: bytes
    content_hash: str


class Thumbnails:
    """Makes the thumbnails of items in threads, and keeps those of the last 64 MiB.

    An item's image is the file at its uri as long as that has the content which was indexed: neither a link put in
    its place nor another image is shown.
    """

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="thumbnail")
        self._cache: LruCache[Thumbnail] = LruCache(_CACHE_BYTES, weigh=lambda thumbnail: len(thumbnail.jpeg))
        self._waiting = 0

    async def of(self, item: StoredItem, size: int) -> Thumbnail:
        """Return the thumbnail of an item, at most `size` pixels a side.

        Raises GatewayError: 404 where the item has no image or its file is gone or changed, 415 where the file is no
        image that is decoded here, 429 where too many wait.
        """
        if self._waiting >= _MOST_WAITING:
            raise of_twinspire(ServerOverloadedError(f"{self._waiting} images wait already: try again later"))
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._made, item, size)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _made(self, item: StoredItem, size: int) -> Thumbnail:
        path = _path_of(item)
        status = _status_of(path, item)
        key = (item.uri, item.content_hash, status.st_mtime_ns, status.st_size, status.st_ino, size)
        if (known := self._cache.get(key)) is not None:
            return known
        try:
            data = read_path(path, self._limits, origin_of(path, item.id))
        except ImageError as error:
            raise _gone(item, error.cause) from error
        content_hash = hashlib.sha256(data).hexdigest()
        if item.content_hash not in (None, content_hash):
            raise _gone(item, "it has changed since it was indexed: run `twinspire index sync`")
        try:
            image = load_thumbnail(data, size, limits=self._limits)
        except ImageError as error:
            raise GatewayError(
                415, f"the file of the item {item.id} is not shown: {error.cause}", code="invalid_image"
            ) from error
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=_JPEG_QUALITY, optimize=True)
        thumbnail = Thumbnail(jpeg.getvalue(), content_hash)
        self._cache.put(key, thumbnail)
        return thumbnail


def _path_of(item: StoredItem) -> Path:
    if item.kind is not ItemKind.IMAGE:
        raise GatewayError(404, f"the item {item.id} is of kind {item.kind} and has no image", code="no_image")
    if not item.uri.startswith("/"):
        raise GatewayError(404, f"the image of the item {item.id} is no file of this machine", code="no_image")
    return Path(item.uri)


def _status_of(path: Path, item: StoredItem) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise _gone(item, "no such file") from None
    except (OSError, ValueError) as error:
        raise _gone(item, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _gone(item: StoredItem, cause: str) -> GatewayError:
    return GatewayError(404, f"the file of the item {item.id} cannot be shown: {cause}", code="file_gone")
