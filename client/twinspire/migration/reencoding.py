"""Encoding the items of an index again, for a migration: files from where they are, texts from their captions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import DecodeMode
from twinspire.errors import InputError
from twinspire.index import Index, Item, ItemKind, StoredItem
from twinspire.index.migration import StagedVector, Staging
from twinspire.ingest.caption_fusion import encode_captions, fuse
from twinspire.ingest.files import ReadFile, files_of, is_gone
from twinspire.ingest.kinds import FILE_KINDS, FileKinds
from twinspire.ingest.metadata import DECODE, file_metadata, replaced
from twinspire.ingest.options import IngestOptions
from twinspire.ingest.pipeline import Batch, Candidate, run_pipeline

if TYPE_CHECKING:
    from twinspire.client import Client

_BATCH = 256
_FUSED = "fused_captions"


@dataclass(frozen=True, slots=True)
class LostItem:
    """An item that cannot be encoded again, and why."""

    id: int
    uri: str
    kind: ItemKind
    cause: str


def content_key(item: StoredItem) -> str:
    """Return a hash of all that an item's vector is made of."""
    weight = item.metadata.get(_FUSED)
    place = item.uri if item.kind in FILE_KINDS else None
    caption = item.caption if item.kind is ItemKind.TEXT or weight is not None else None
    made_of = repr((item.kind.value, item.content_hash, place, caption, weight))
    return hashlib.blake2b(made_of.encode(), digest_size=16).hexdigest()


def why_lost(item: StoredItem) -> str | None:
    """Return why an item cannot be encoded again, without reading its file; None where it can, as far as that shows."""
    if item.kind is ItemKind.TEXT:
        return "it has no caption to encode" if item.caption is None else None
    if not Path(item.uri).is_absolute():
        return "its uri is not the path of a file"
    return "its file is gone" if is_gone(Path(item.uri)) else None


class Reencoder:
    """Encodes the items of an index that have no staged vector yet, and stages what it encodes.

    `lost` are the items that cannot be encoded again, by id, as the last `run` found them.
    """

    def __init__(self, client: Client, staging: Staging, on_progress: Callable[[int, int], None]) -> None:
        self._client, self._staging, self._on_progress = client, staging, on_progress
        self._index: Index
        self._pending: dict[Path, list[StoredItem]] = {}  # items of the files in the pipeline
        self.lost: dict[int, LostItem] = {}
        self.encoded = 0

    def run(self, index: Index) -> None:
        """Encode until every item of the index has a vector or is lost. Items that were lost are tried again."""
        self._index, self.lost = index, {}
        before: tuple[list[int], list[int]] | None = None
        while True:
            files, texts = self._missing()
            if not files and not texts:
                return
            if (files, texts) == before:
                for item in self._stored([*files, *texts]):
                    self._lose(item, "it changes all the time")
                continue
            before = files, texts
            self._total = len(self._staging) + len(self.lost) + len(files) + len(texts)
            if files:
                kinds, paths = FileKinds.of(self._client), self._paths(files)
                run_pipeline(self, self._client, kinds, paths, IngestOptions(), on_batch=lambda _: self._tell())
            self._encode_texts(texts)

    def changed(self) -> dict[int, Item]:
        """Return the items whose files have another content now, as they become with the switch."""
        found = {}
        for number, read in self._staging.changes().items():
            if number in self.lost:
                continue
            (item,) = self._index.get([number])
            metadata = replaced(item.metadata, read["metadata"])
            found[number] = Item(item.uri, item.kind, item.caption, metadata, read["content_hash"])
        return found

    def decide(self, file: ReadFile, step: Batch) -> None:
        """Mark a file to be decoded for each of its items."""
        for item in self._pending[file.path]:
            read = None
            is_changed = item.content_hash not in (None, file.content_hash)
            if is_changed:
                others = files_of(self._index.find(uri=item.uri))
                same = [other.id for other in others if other.content_hash == file.content_hash]
                if same:
                    self._lose(item, f"its file has other content now, which is that of the item {same[0]}")
                    continue
            if is_changed or self._is_relabelled(item, file):
                fused = {key: item.metadata[key] for key in (_FUSED,) if key in item.metadata}
                read = {"content_hash": file.content_hash, "metadata": file_metadata(file, self._client.decode) | fused}
            staged: dict[str, Any] = {"id": item.id} if read is None else {"id": item.id, "read": read}
            row = Item(item.uri, item.kind, None, staged, content_key(item))
            step.read.append(Candidate(replace(file, kind=item.kind), row, ()))

    def _is_relabelled(self, item: StoredItem, file: ReadFile) -> bool:
        """Whether an item's file is decoded in another mode than its metadata says."""
        decode = self._client.decode
        if item.content_hash is None or (decode is DecodeMode.EXACT and DECODE not in item.metadata):
            return False
        return item.metadata.get(DECODE) != file_metadata(file, decode).get(DECODE)

    def write(self, step: Batch) -> Batch:
        """Stage the vectors of a batch, those of captions fused in where they were."""
        paths = {Path(item.uri) for item in step.items} | {event.path for event in step.events}
        owners = {item.id: item for path in paths for item in self._pending.pop(path, ())}
        for event in step.events:
            for item in owners.values():
                if Path(item.uri) == event.path:
                    self._lose(item, event.cause or "")
        if step.embeddings is not None:
            rows, embeddings = [], []
            for row, embedding in zip(step.items, step.embeddings, strict=True):
                item = owners[row.metadata["id"]]
                try:
                    embeddings.append(self._fused(item, embedding))
                except InputError as error:
                    self._lose(item, str(error))
                    continue
                rows.append(StagedVector(item.id, item.kind, row.content_hash or "", row.metadata.get("read")))
            if rows:
                self._stage(rows, np.stack(embeddings))
        step.items, step.embeddings = [], None
        return step

    def _fused(self, item: StoredItem, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the vector of a file, (D,) or (Q, D), with its captions if the item has them fused in."""
        if (weight := item.metadata.get(_FUSED)) is None:
            return embedding
        captions = encode_captions(self._client, [(item.caption or "").split("\n")])  # (1, D)
        fused: NDArray[np.float32] = fuse(embedding[None], captions, weight)[0]
        return fused

    def _stage(self, rows: Sequence[StagedVector], embeddings: NDArray[np.float32]) -> None:
        self._staging.put(rows, embeddings)
        self.encoded += len(rows)

    def _lose(self, item: StoredItem, cause: str) -> None:
        self.lost[item.id] = LostItem(item.id, item.uri, item.kind, cause)

    def _tell(self) -> None:
        self._on_progress(min(len(self._staging) + len(self.lost), self._total), self._total)

    def _missing(self) -> tuple[list[int], list[int]]:
        """Return the ids of files and of texts that are neither staged nor lost; forget what the index has lost."""
        files, texts, ids = list[int](), list[int](), set[int]()
        for item in self._index.items():
            ids.add(item.id)
            if item.id not in self.lost and not self._staging.has(item.id, content_key(item)):
                (texts if item.kind is ItemKind.TEXT else files).append(item.id)
        self._staging.keep_only(ids)
        self.lost = {number: lost for number, lost in self.lost.items() if number in ids}
        return files, texts

    def _paths(self, ids: Sequence[int]) -> Iterator[Path]:
        """Give the files of these items, and note which items each has."""
        wanted, given = set(ids), set[Path]()
        for item in self._stored(ids):
            owners = [other for other in files_of(self._index.find(uri=item.uri)) if other.id in wanted]
            if not owners or item.id != owners[0].id:  # it was given with the first, or has moved
                continue
            if (cause := why_lost(item)) is not None:
                for owner in owners:
                    self._lose(owner, cause)
                continue
            path = Path(item.uri)
            if path in given:  # under another spelling: the next turn of `run` takes it
                continue
            given.add(path)
            self._pending[path] = owners
            yield path

    def _encode_texts(self, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), _BATCH):
            found = list(self._stored(ids[start : start + _BATCH]))
            for item in found:
                if (cause := why_lost(item)) is not None:
                    self._lose(item, cause)
            texts = [item for item in found if item.caption is not None]
            if texts:
                rows = [StagedVector(item.id, item.kind, content_key(item)) for item in texts]
                self._stage(rows, self._client.encode_texts([item.caption or "" for item in texts]))
            self._tell()

    def _stored(self, ids: Sequence[int]) -> Iterator[StoredItem]:
        """Give the items of these ids, without those that were removed since."""
        for start in range(0, len(ids), _BATCH):
            some = ids[start : start + _BATCH]
            try:
                yield from self._index.get(some)
            except InputError:  # one of them was removed
                for number in some:
                    with suppress(InputError):
                        yield from self._index.get([number])
