"""Adding images and lines of text to a store, or updating the items that they have already."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_whole
from twinspire.errors import InputError
from twinspire.ingest.captions import SIDECAR_SUFFIX, Sidecars
from twinspire.ingest.discovery import FoundImages, absolute_paths
from twinspire.ingest.files import files_of, is_gone, is_missing, is_text, read_text
from twinspire.ingest.options import IngestOptions
from twinspire.ingest.pipeline import Flow
from twinspire.ingest.reconciler import Reconciler
from twinspire.ingest.reports import FolderEvent, Happened, IngestReport, Tally
from twinspire.stores import Item, ItemKind, StoredItem, VectorStore

if TYPE_CHECKING:
    from twinspire.client import Client


def add_images(
    store: VectorStore,
    client: Client,
    paths: Iterable[str | os.PathLike[str]],
    options: IngestOptions | None = None,
    *,
    on_progress: Callable[[int], None] = lambda _: None,
) -> IngestReport:
    """Encode the image and sound files at `paths` and add them to `store`.

    A file is read as the kind of its suffix, as far as the model has the tower; see `FileKinds`.

    An item is a file: its uri is the file's absolute path, its content hash the SHA-256 of its bytes, its metadata that
    of `file_metadata` and of the caption source. A file that is unchanged since it was added is not read again, but
    its item takes a new caption and new metadata. A file with the content of another item takes over that item, with
    its id and vector, if the item's own file is gone or has changed (the file was moved); else it is a copy, an item of
    its own with the same vector. A file with other content than the item of its path changes that item. A file that
    fails is reported and does not stop the rest. Reading, decoding, encoding and writing each run in a thread of their
    own with one batch between them, so at most nine batches are in memory, of at most 128 MiB of encoded files each.

    `on_progress` is called, from the calling thread, with the number of files that are done since the last call.
    Every batch is durable once it is done: after an error or an interruption the same call continues there. The report
    includes what `find_images` could not read or skipped.

    Raises `SpaceMismatchError`, `IndexStoreError`, `EngineError`, `ServerError`, and `BundleError` for a model that
    has neither an image nor an audio tower.
    """
    options = options or IngestOptions()
    files = absolute_paths(paths)
    store.check_space(client.space)
    tally = Tally(options.on_event)
    reconciler = Reconciler(store, client, options, tally.count)
    already, _ = reconciler.run(files, _items_at(store, files), on_done=lambda more, _: on_progress(more))
    found = paths if isinstance(paths, FoundImages) else FoundImages()
    for path, cause in found.failed:
        tally.count(FolderEvent(Happened.FAILED, path, cause=cause))
    return tally.report(already=already, skipped=skipped_files(found, options))


def skipped_files(found: FoundImages, options: IngestOptions) -> dict[str, int]:
    """Return how many files of which suffix were skipped, without the text files where these are captions."""
    return {
        suffix: count
        for suffix, count in found.skipped.items()
        if not (suffix == SIDECAR_SUFFIX and isinstance(options.captions, Sidecars))
    }


def _items_at(store: VectorStore, files: Sequence[Path]) -> Iterator[StoredItem]:
    """Give the items of those files that exist."""
    if len(store) == 0:  # spares thousands of queries
        return
    for path in files:
        if is_text(path) and not is_gone(path):
            yield from files_of(store.find(uri=str(path)))


def add_texts(
    store: VectorStore,
    client: Client,
    paths: Iterable[str | os.PathLike[str]],
    *,
    batch: int = 256,
    on_progress: Callable[[int], None] = lambda _: None,
) -> IngestReport:
    """Encode every line of the text files at `paths` and add it to `store` as an item of kind text.

    An item is a line of a file: its caption is the line without the space around it, its uri the file's absolute path,
    "#" and the line's number from 1 up, its content hash the SHA-256 of the text. Lines of the same text are encoded
    once, empty lines are skipped. A second run continues where the first ended, and follows edits: a line that moved
    within its file, or with its file to another path, keeps its item; a line with another text changes the item of its
    place, and an item whose place another one has taken is removed. Items beyond the end of a file that is shorter now
    stay. All files are read before the first line is encoded; encoding and writing then run in parallel. `batch` is the
    number of lines that are encoded together; `on_progress` is called with the number of lines that are done since the
    last call.

    Raises `InputError` for a file that cannot be read or is not UTF-8, for no file and for a file without text; else as
    `add_images` does.
    """
    as_whole(batch, "batch, the number of lines encoded together", minimum=1)
    lines = {item.uri: item for path in find_texts(paths) for item in _items(path)}
    store.check_space(client.space)
    writer = _Lines(store, client, lines)
    total = writer.match()
    if total.lines:
        on_progress(total.lines)
    with Flow() as flow:
        read = flow.stage("read", writer.batches(batch))
        for done in flow.stage("write", map(writer.write, flow.stage("encode", map(writer.encode, read)))):
            total.added += done.added
            total.already += done.already
            total.changed += done.changed
            on_progress(done.lines)
    return IngestReport(total.added, total.already, [], changed=total.changed, removed=total.removed)


@dataclass(slots=True)
class _Batch:
    lines: int
    already: int = 0
    items: list[Item] = field(default_factory=list)
    vectors: dict[str | None, NDArray[np.float32]] = field(default_factory=dict)  # (D,), by content
    added: int = 0
    changed: int = 0
    removed: int = 0


class _Lines:
    """Writes lines: call `match` first, then each of the other methods from one thread."""

    def __init__(self, store: VectorStore, client: Client, lines: Mapping[str, Item]) -> None:
        self._store, self._client, self._lines = store, client, lines
        self._own: dict[str, StoredItem] = {}  # by uri: items whose line has another text now
        self._rest: list[Item] = []  # lines that need a vector
        self._displaced: dict[str, list[StoredItem]] = {}  # by content: items whose line changed or is gone
        self._missing: dict[str, bool] = {}  # by path of a file: whether it, or this line of it, is gone
        self._encoded: set[str | None] = set()  # contents that the store has before what follows is written

    def match(self) -> _Batch:
        """Find the lines that have an item and those that have moved; return how many."""
        unmatched: list[Item] = []
        for item in self._lines.values():
            stored = [] if len(self._store) == 0 else _texts_of(self._store.find(uri=item.uri))
            if not any(known.content_hash == item.content_hash for known in stored):
                unmatched.append(item)
                if stored:
                    self._own[item.uri] = stored[0]
        moved, known = 0, self._known(unmatched)
        for item in unmatched:
            if item.content_hash in known and (mover := self._take(item)) is not None:
                self._store.update(mover.id, uri=item.uri, metadata={**mover.metadata, **item.metadata})
                if self._own.get(mover.uri, mover).id == mover.id:
                    self._own.pop(mover.uri, None)
                moved += 1
            else:
                self._rest.append(item)
        rest = {item.uri for item in self._rest}
        stale = [stored.id for uri, stored in self._own.items() if uri not in rest]
        already = len(self._lines) - len(unmatched)
        return _Batch(already + moved, already, changed=moved, removed=self._store.remove(stale) if stale else 0)

    def batches(self, batch: int) -> Iterator[_Batch]:
        """Give the lines that need a vector."""
        for start in range(0, len(self._rest), batch):
            some = self._rest[start : start + batch]
            yield _Batch(len(some), items=some)

    def encode(self, step: _Batch) -> _Batch:
        """Encode the texts that no item has and that were not encoded before, each once."""
        texts = {item.content_hash: item.caption or "" for item in step.items}
        twins = self._twins(set(texts) - self._encoded)
        new = [content for content in texts if content not in self._encoded and content not in twins]
        if new:
            vectors = self._client.encode_texts([texts[content] for content in new])  # (n, D)
            step.vectors = dict(zip(new, vectors, strict=True))
            self._encoded.update(new)
        return step

    def write(self, step: _Batch) -> _Batch:
        """Add the lines, or change the items of their places."""
        twins = self._twins({item.content_hash for item in step.items} - set(step.vectors))
        if twins:
            vectors = self._store.vectors(twins.values())
            # Several vectors of a text, in a space of several an image, are all the same.
            step.vectors |= zip(twins, vectors if vectors.ndim == 2 else vectors[:, 0], strict=True)
        embeddings = np.stack([step.vectors[item.content_hash] for item in step.items])  # (n, D)
        new = []
        for place, item in enumerate(step.items):
            if (own := self._own.get(item.uri)) is None:
                new.append(place)
                continue
            self._store.update(
                own.id,
                embedding=embeddings[place],
                space=self._client.space,
                caption=item.caption,
                metadata={**own.metadata, **item.metadata},
                content_hash=item.content_hash,
            )
            step.changed += 1
        if new:
            report = self._store.add(embeddings[new], [step.items[place] for place in new], space=self._client.space)
            step.added, step.already = len(report.added), len(report.skipped)
        return step

    def _known(self, items: Iterable[Item]) -> set[str]:
        """Return the contents of those lines whose text the store has."""
        return self._store.known_hashes([item.content_hash or "" for item in items], kind=ItemKind.TEXT)

    def _twins(self, contents: Iterable[str | None]) -> dict[str | None, int]:
        """Return the id of an item with the same text for each content that the store has."""
        known = self._store.known_hashes([content or "" for content in contents], kind=ItemKind.TEXT)
        return {content: _texts_of(self._store.find(content_hash=content))[0].id for content in known}

    def _take(self, item: Item) -> StoredItem | None:
        """Return an item with a line's text whose own line has another text or is gone."""
        content = item.content_hash or ""
        if content not in self._displaced:
            stored = _texts_of(self._store.find(content_hash=content))
            self._displaced[content] = [known for known in reversed(stored) if self._is_displaced(known)]
        return self._displaced[content].pop() if self._displaced[content] else None

    def _is_displaced(self, stored: StoredItem) -> bool:
        if (line := self._lines.get(stored.uri)) is not None:
            return line.content_hash != stored.content_hash
        path = stored.uri.rpartition("#")[0]
        if path not in self._missing:
            self._missing[path] = is_missing(Path(path)) or path in self._paths
        return self._missing[path]

    @cached_property
    def _paths(self) -> set[str]:
        """The paths of the files that are added."""
        return {uri.rpartition("#")[0] for uri in self._lines}


def _texts_of(items: Iterable[StoredItem]) -> list[StoredItem]:
    return [item for item in items if item.kind is ItemKind.TEXT]


def count_lines(paths: Iterable[str | os.PathLike[str]]) -> int:
    """Return how many lines `add_texts` would add or find. Raises `InputError` as it does."""
    return sum(len(_items(path)) for path in find_texts(paths))


def find_texts(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the absolute paths of text files, each once. Raises `InputError` for one path in place of a list."""
    found = absolute_paths(paths)
    if not found:
        raise InputError("no path was given: expected text files, one item a line")
    return found


def _items(path: Path) -> list[Item]:
    items = []
    for number, line in enumerate(read_text(path, "text file").split("\n"), start=1):
        if text := line.strip():
            metadata = {"name": path.name, "folder": str(path.parent), "line": number}
            content_hash = hashlib.sha256(text.encode()).hexdigest()
            try:
                items.append(Item(f"{path}#{number}", ItemKind.TEXT, text, metadata, content_hash))
            except InputError as error:
                raise InputError(f"{path}, line {number}: {error}") from error
    if not items:
        raise InputError(f"{path} has no text in it: expected a text on each line")
    return items
