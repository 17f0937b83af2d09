"""Files of pictures into an index: found, told apart by content, decoded beside the encoding, added batch by batch."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index import AddReport, Item, ItemKind

if TYPE_CHECKING:
    from twinspire.client import Client

# fmt: off
PICTURE_SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".dib",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx", ".jpf",
])
# fmt: on
_BATCHES_AHEAD = 2


class FailedPicture(NamedTuple):
    """A file that was not added, and why."""

    path: Path
    cause: str


@dataclass(frozen=True, slots=True)
class IngestReport:
    """How many files were added, how many had content that the index knew, and which failed."""

    added: int
    already: int
    failed: list[FailedPicture]


class PictureIndex(Protocol):
    """What `add_pictures` needs of an index; `twinspire.Index` is one."""

    def check_space(self, space: str) -> None:
        """Raise `SpaceMismatchError` where embeddings of `space` cannot be added."""

    def known_hashes(self, hashes: Iterable[str]) -> set[str]:
        """Return those of `hashes` that a picture in the index has."""

    def add(self, embeddings: NDArray[np.float32], items: Sequence[Item], *, space: str) -> AddReport:
        """Add `items` with their `embeddings`."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Files that went through everything but the towers."""

    files: int
    already: int
    failed: list[FailedPicture]
    items: list[Item]
    pixels: NDArray[np.uint8]  # (len(items), S, S, 3)


def find_pictures(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the absolute paths of the pictures at `paths`, each file once.

    A folder gives the files in it and below that have a picture's suffix, sorted by path, without following
    links to folders; a file is taken whatever its suffix. Raises `InputError` for a path where nothing is, a
    folder that cannot be read or has no picture, and where no path is given.
    """
    if isinstance(paths, str | bytes | os.PathLike):
        raise InputError(f"one {type(paths).__name__} came, expected a list of paths. Put it in a list: [{paths!r}]")
    found: dict[Path, None] = {}
    for given in paths:
        if not os.fspath(given):
            raise InputError("an empty path was given: expected pictures or folders of pictures")
        path = _absolute(given)
        if path.is_dir():
            pictures = sorted(file for file in _walk(path) if file.suffix.lower() in PICTURE_SUFFIXES)
            if not pictures:
                raise InputError(
                    f"the folder {path} has no picture in it: expected files ending in one of "
                    f"{' '.join(sorted(PICTURE_SUFFIXES))}. A file of another name can be given by itself"
                )
            found.update(dict.fromkeys(pictures))
        elif os.path.lexists(path):
            found[path] = None
        else:
            raise InputError(f"there is no file or folder {path}: expected pictures or folders of pictures")
    if not found:
        raise InputError("no path was given: expected pictures or folders of pictures")
    return list(found)


def add_pictures(
    index: PictureIndex,
    client: Client,
    paths: Iterable[str | os.PathLike[str]],
    *,
    batch: int = 32,
    on_progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """Encode the picture files at `paths` and add them to `index`, `batch` files at a time.

    An item's uri is the file's absolute path, its content hash the SHA-256 of its bytes. A file whose content
    is in the index already is not decoded. A file that fails is reported and does not stop the rest. The next
    batches are read and decoded in a thread of their own while the towers encode this one. `on_progress` is
    called, from the calling thread, with the number of files that are done since the last call. Every batch
    is durable once it is done: after an error or an interruption the same call goes on where it ended.

    Raises `SpaceMismatchError`, `IndexStoreError`, `EngineError`, and `InputError` for a `batch` below 1.
    """
    if batch < 1:
        raise InputError(f"batch, the number of files encoded together, must be 1 or more, got {batch}")
    index.check_space(client.space)
    files = list(dict.fromkeys(_absolute(path) for path in paths))
    added, already, failed = 0, 0, list[FailedPicture]()
    with closing(_ahead(_prepared(index, client, files, batch))) as batches:
        for prepared in batches:
            if prepared.items:
                embeddings = client.towers.encode_images(prepared.pixels)  # (n, D)
                report = index.add(embeddings, prepared.items, space=client.space)
                added += len(report.added)
                already += len(report.skipped)
            already += prepared.already
            failed += prepared.failed
            if on_progress is not None:
                on_progress(prepared.files)
    return IngestReport(added, already, failed)


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps "..", resolve follows links


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(f"the folder {error.filename} cannot be read: {error.strerror}") from error

    for parent, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(parent, name) for name in names)


def _prepared(index: PictureIndex, client: Client, files: Sequence[Path], batch: int) -> Iterator[_Batch]:
    """Hash, sort out what is known, and decode, batch by batch."""
    seen: set[str] = set()  # content of earlier batches, which the index may not have yet
    for start in range(0, len(files), batch):
        some = files[start : start + batch]
        failed: list[FailedPicture] = []
        hashes: dict[Path, str] = {}
        for path in some:
            try:
                hashes[path] = _content_hash(path)
            except (OSError, UnicodeEncodeError, InputError) as error:
                failed.append(FailedPicture(path, _cause(error)))
        known = seen | index.known_hashes(hashes.values())
        new = [path for path, content_hash in hashes.items() if content_hash not in known]
        pixels, errors = client.preprocess(new, on_error="skip")  # (n, S, S, 3)
        bad = {error.position: error for error in errors}
        failed += [FailedPicture(new[position], error.cause) for position, error in bad.items()]
        items = [
            Item(str(path), ItemKind.IMAGE, content_hash=hashes[path])
            for position, path in enumerate(new)
            if position not in bad
        ]
        seen |= {hashes[path] for position, path in enumerate(new) if position not in bad}
        yield _Batch(len(some), len(hashes) - len(new), failed, items, pixels)


def _content_hash(path: Path) -> str:
    str(path).encode()  # the index holds text: a name that is none fails here, before the work
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device might never end
        raise InputError("is no regular file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cause(error: OSError | UnicodeEncodeError | InputError) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "its name is not UTF-8: rename it"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    return str(error)


def _ahead(batches: Iterator[_Batch]) -> Generator[_Batch, None, None]:
    """Yield `batches`, the next two of which are made in a thread of their own."""
    with ThreadPoolExecutor(1, thread_name_prefix="twinspire-ingest") as pool:
        try:
            pending = deque(pool.submit(next, batches, None) for _ in range(_BATCHES_AHEAD))
            while (batch := pending.popleft().result()) is not None:
                pending.append(pool.submit(next, batches, None))
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
