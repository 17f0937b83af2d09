"""Lines of text files into an index, as items of kind text."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index import Item, ItemKind, StoredItem
from twinspire.ingest.discovery import absolute, require_list
from twinspire.ingest.files import is_missing
from twinspire.ingest.pipeline import Flow
from twinspire.ingest.reports import IngestReport, ItemIndex

if TYPE_CHECKING:
    from twinspire.client import Client


@dataclass(slots=True)
class _Batch:
    lines: int
    already: int = 0
    items: list[Item] = field(default_factory=list)
    vectors: dict[str | None, NDArray[np.float32]] = field(default_factory=dict)  # (D,), by content
    added: int = 0
    changed: int = 0
    removed: int = 0


def add_texts(
    index: ItemIndex,
    client: Client,
    paths: Iterable[str | os.PathLike[str]],
    *,
    batch: int = 256,
    on_progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """Encode every line of the text files at `paths` and add it to `index` as an item of kind text.

    An item is a line of a file: its caption is the line without the space around it, its uri the file's absolute path,
    "#" and the line's number from 1 up, its content hash the SHA-256 of the words. The same words in several lines are
    encoded once. A second run goes on where the first ended, and follows what was edited: a line that moved within its
    file, or with its file to another path, keeps its item; a line with other words changes the item of its place, and
    an item whose place another one has taken is removed. Items behind the end of a file that is shorter now stay. Empty
    lines are passed over. All files are read before the first line is encoded; reading, encoding and writing then run
    beside each other. `on_progress` is called with the number of lines that are done since the last call.

    Raises `InputError` for a file that cannot be read or is not UTF-8, no file, or no line in any; else as
    `add_pictures` does.
    """
    if batch < 1:
        raise InputError(f"batch, the number of lines encoded together, must be 1 or more, got {batch}")
    lines = {item.uri: item for path in find_texts(paths) for item in _items(path)}
    index.check_space(client.space)
    placing = _Lines(index, client, lines)
    total = placing.settle()
    if on_progress is not None and total.lines:
        on_progress(total.lines)
    with Flow() as flow:
        read = flow.stage("read", placing.batches(batch))
        for done in flow.stage("write", map(placing.write, flow.stage("encode", map(placing.encode, read)))):
            total.added += done.added
            total.already += done.already
            total.changed += done.changed
            if on_progress is not None:
                on_progress(done.lines)
    return IngestReport(total.added, total.already, [], changed=total.changed, removed=total.removed)


class _Lines:
    """Puts lines in their places: `settle` first, then the stages, each used by one thread."""

    def __init__(self, index: ItemIndex, client: Client, lines: Mapping[str, Item]) -> None:
        self._index, self._client, self._lines = index, client, lines
        self._own: dict[str, StoredItem] = {}  # by uri: items whose line has other words now
        self._rest: list[Item] = []  # lines that need a vector
        self._displaced: dict[str, list[StoredItem]] = {}  # by content: items whose line has other words, or is no more
        self._missing: dict[str, bool] = {}  # by path of a file
        self._encoded: set[str | None] = set()  # contents that the index has by the time that what follows is written

    def settle(self) -> _Batch:
        """Find the lines that are there already and those that have moved; return how many."""
        unsettled: list[Item] = []
        for item in self._lines.values():
            there = [] if len(self._index) == 0 else _texts_of(self._index.find(uri=item.uri))
            if not any(stored.content_hash == item.content_hash for stored in there):
                unsettled.append(item)
                if there:
                    self._own[item.uri] = there[0]
        moved, known = 0, self._known(unsettled)
        for item in unsettled:
            if item.content_hash in known and (mover := self._take(item)) is not None:
                self._index.update(mover.id, uri=item.uri, metadata={**mover.metadata, **item.metadata})
                if self._own.get(mover.uri, mover).id == mover.id:
                    self._own.pop(mover.uri, None)
                moved += 1
            else:
                self._rest.append(item)
        rest = {item.uri for item in self._rest}
        stale = [stored.id for uri, stored in self._own.items() if uri not in rest]
        already = len(self._lines) - len(unsettled)
        return _Batch(already + moved, already, changed=moved, removed=self._index.remove(stale) if stale else 0)

    def batches(self, batch: int) -> Iterator[_Batch]:
        """Give the lines that need a vector."""
        for start in range(0, len(self._rest), batch):
            some = self._rest[start : start + batch]
            yield _Batch(len(some), items=some)

    def encode(self, step: _Batch) -> _Batch:
        """Encode what no item has, nor has been encoded before; the same words once."""
        words = {item.content_hash: item.caption or "" for item in step.items}
        twins = self._twins(set(words) - self._encoded)
        new = [content for content in words if content not in self._encoded and content not in twins]
        if new:
            vectors = self._client.encode_texts([words[content] for content in new])  # (n, D)
            step.vectors = dict(zip(new, vectors, strict=True))
            self._encoded.update(new)
        return step

    def write(self, step: _Batch) -> _Batch:
        """Add the lines, or change the items of their places."""
        twins = self._twins({item.content_hash for item in step.items} - set(step.vectors))
        if twins:
            step.vectors |= zip(twins, self._index.vectors(twins.values()), strict=True)
        embeddings = np.stack([step.vectors[item.content_hash] for item in step.items])  # (n, D)
        new = []
        for place, item in enumerate(step.items):
            if (own := self._own.get(item.uri)) is None:
                new.append(place)
                continue
            self._index.update(
                own.id,
                embedding=embeddings[place],
                space=self._client.space,
                caption=item.caption,
                metadata={**own.metadata, **item.metadata},
                content_hash=item.content_hash,
            )
            step.changed += 1
        if new:
            report = self._index.add(embeddings[new], [step.items[place] for place in new], space=self._client.space)
            step.added, step.already = len(report.added), len(report.skipped)
        return step

    def _known(self, items: Iterable[Item]) -> set[str]:
        """Return the contents of lines whose words the index has."""
        return self._index.known_hashes([item.content_hash or "" for item in items], kind=ItemKind.TEXT)

    def _twins(self, contents: Iterable[str | None]) -> dict[str | None, int]:
        """Return an item of the same words for each content that the index has."""
        known = self._index.known_hashes([content or "" for content in contents], kind=ItemKind.TEXT)
        return {content: _texts_of(self._index.find(content_hash=content))[0].id for content in known}

    def _take(self, item: Item) -> StoredItem | None:
        """Return an item of a line's words whose own line has other words, or is no more."""
        content = item.content_hash or ""
        if content not in self._displaced:
            stored = _texts_of(self._index.find(content_hash=content))
            self._displaced[content] = [each for each in reversed(stored) if self._is_displaced(each)]
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
        """The files that are added: all their lines are known."""
        return {uri.rpartition("#")[0] for uri in self._lines}


def _texts_of(items: Iterable[StoredItem]) -> list[StoredItem]:
    return [item for item in items if item.kind is ItemKind.TEXT]


def count_lines(paths: Iterable[str | os.PathLike[str]]) -> int:
    """Return how many lines `add_texts` would look at. Raises `InputError` as it does."""
    return sum(len(_items(path)) for path in find_texts(paths))


def find_texts(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the absolute paths of text files, each once. Raises `InputError` for one list where a path came."""
    require_list(paths)
    found = list(dict.fromkeys(absolute(path) for path in paths))
    if not found:
        raise InputError("no path was given: expected files of text, an item a line")
    return found


def _items(path: Path) -> list[Item]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}): expected a text file; convert it") from error
    except OSError as error:
        raise InputError(f"the text file {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # lone surrogates or a NUL in the name
        raise InputError(f"the text file {str(path)!r} cannot be read: {error}") from error
    items = []
    for number, line in enumerate(text.split("\n"), start=1):
        if words := line.strip():
            metadata = {"name": path.name, "folder": str(path.parent), "line": number}
            content_hash = hashlib.sha256(words.encode()).hexdigest()
            try:
                items.append(Item(f"{path}#{number}", ItemKind.TEXT, words, metadata, content_hash))
            except InputError as error:
                raise InputError(f"{path}, line {number}: {error}") from error
    if not items:
        raise InputError(f"{path} has no words in it: expected a text on each line")
    return items
