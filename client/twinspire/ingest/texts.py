"""Lines of text files into an index, as items of kind text."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index import Item, ItemKind
from twinspire.ingest.finding import absolute, require_list
from twinspire.ingest.flow import Flow
from twinspire.ingest.reports import IngestReport, ItemIndex

if TYPE_CHECKING:
    from twinspire.client import Client


@dataclass(slots=True)
class _Batch:
    lines: int
    already: int
    items: list[Item]
    embeddings: NDArray[np.float32] | None = None  # (len(items), D)
    added: int = 0


def add_texts(
    index: ItemIndex,
    client: Client,
    paths: Iterable[str | os.PathLike[str]],
    *,
    batch: int = 256,
    on_progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """Encode every line of the text files at `paths` and add it to `index` as an item of kind text.

    An item's caption is the line without the space around it, its uri the file's absolute path, "#" and the line's
    number from 1 up, its content hash the SHA-256 of the line: the same line is taken once, and a second run goes on
    where the first ended. Empty lines are passed over. All files are read before the first line is encoded; reading,
    encoding and writing then run beside each other. `on_progress` is called with the number of lines that are done
    since the last call.

    Raises `InputError` for a file that cannot be read or is not UTF-8, no file, or no line in any; else as
    `add_pictures` does.
    """
    if batch < 1:
        raise InputError(f"batch, the number of lines encoded together, must be 1 or more, got {batch}")
    items = [item for path in find_texts(paths) for item in _items(path)]
    index.check_space(client.space)

    def encode(step: _Batch) -> _Batch:
        if step.items:
            step.embeddings = client.encode_text([item.caption or "" for item in step.items])  # (n, D)
        return step

    def write(step: _Batch) -> _Batch:
        if step.embeddings is not None:
            report = index.add(step.embeddings, step.items, space=client.space)
            step.added = len(report.added)
            step.already += len(report.skipped)
        return step

    added, already = 0, 0
    with Flow() as flow:
        encoded = flow.stage("encode", map(encode, flow.stage("read", _batches(index, items, batch))))
        for done in flow.stage("write", map(write, encoded)):
            added += done.added
            already += done.already
            if on_progress is not None:
                on_progress(done.lines)
    return IngestReport(added, already, [])


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
    items = []
    for number, line in enumerate(text.split("\n"), start=1):
        if words := line.strip():
            metadata = {"name": path.name, "folder": str(path.parent), "line": number}
            content_hash = hashlib.sha256(words.encode()).hexdigest()
            items.append(Item(f"{path}#{number}", ItemKind.TEXT, words, metadata, content_hash))
    if not items:
        raise InputError(f"{path} has no words in it: expected a text on each line")
    return items


def _batches(index: ItemIndex, items: list[Item], batch: int) -> Iterator[_Batch]:
    seen: set[str | None] = set()  # of earlier batches, which the index may not have yet
    for start in range(0, len(items), batch):
        some = items[start : start + batch]
        unique = {item.content_hash: item for item in reversed(some)}  # the first of each stays
        known = seen | index.known_hashes((item.content_hash for item in some if item.content_hash), kind=ItemKind.TEXT)
        seen |= unique.keys()
        new = [item for item in some if unique[item.content_hash] is item and item.content_hash not in known]
        yield _Batch(len(some), len(some) - len(new), new)
