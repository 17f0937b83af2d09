"""The stages through which files of images go: read, decoded, encoded and written beside each other, in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.images import ImageLimits
from twinspire.index import Item, ItemKind, StoredItem
from twinspire.ingest.caption_fusion import check_weight, encode_captions, fuse
from twinspire.ingest.captions import CaptionSource
from twinspire.ingest.files import HELD_BYTES, ReadFile, cause_of, read_file
from twinspire.ingest.metadata import combined, image_metadata
from twinspire.ingest.pipeline import Flow
from twinspire.ingest.reports import FolderEvent, Happened

if TYPE_CHECKING:
    from twinspire.client import Client

_LOOKED_AT = 8  # batches of files that need no decoding, after which progress is told


def vector_key(item: Item | StoredItem) -> bytes:
    """Return what an image's vector is made of, hashed: images of one key have one vector."""
    weight = item.metadata.get("fused_captions")
    mixed_in = "" if weight is None else f"\0{weight}\0{item.caption}"
    return hashlib.blake2b(f"{item.content_hash}{mixed_in}".encode(), digest_size=16).digest()


class Candidate(NamedTuple):
    """A file and the item that it becomes."""

    file: ReadFile
    item: Item
    captions: Sequence[str]


@dataclass(slots=True)
class Batch:
    """Some files on their way; each stage fills in its part and lets go of what the next ones do not need."""

    files: int = 0
    already: int = 0
    events: list[FolderEvent] = field(default_factory=list)
    read: list[Candidate] = field(default_factory=list)  # to be decoded
    broken: dict[bytes, str] = field(default_factory=dict)  # by vector key: what could not be decoded, and why
    copies: list[Item] = field(default_factory=list)  # whose vectors the index has by the time they are written
    items: list[Item] = field(default_factory=list)
    captions: list[Sequence[str]] = field(default_factory=list)  # of each of the items; may be none
    pixels: NDArray[np.uint8] | None = None  # (len(items), S, S, 3)
    embeddings: NDArray[np.float32] | None = None  # (len(items), D)

    def fail(self, path: Path, cause: str) -> None:
        """Note that a file failed."""
        self.events.append(FolderEvent(Happened.FAILED, path, cause=cause))


class Placing(Protocol):
    """Says what is to be done with files that were read, and puts what was encoded in its place."""

    def decide(self, file: ReadFile, step: Batch) -> None:
        """Do what needs no vector, or put the file among those to be decoded or copied."""

    def write(self, step: Batch) -> Batch:
        """Write the items of a batch."""


class ImageItems:
    """Makes items of images' files: what is said about them, and what they say of themselves."""

    def __init__(self, captions: CaptionSource | None, weight: float | None) -> None:
        if weight is not None:
            check_weight(weight)
            if captions is None:
                raise InputError("pictures can be fused with captions where there are captions: give some")
        self.source, self.weight = captions, weight

    def candidate(self, file: ReadFile) -> Candidate:
        """Return a file with its item. Raises `InputError` where its captions cannot be read."""
        captions = self.source.of(file.path) if self.source is not None else ()
        told = self.source.metadata_of(file.path) if self.source is not None else {}
        metadata = combined(image_metadata(file), told)
        if captions and self.weight is not None:
            metadata["fused_captions"] = self.weight
        caption = "\n".join(captions) or None
        item = Item(str(file.path), ItemKind.IMAGE, caption, metadata, content_hash=file.content_hash)
        return Candidate(file, item, captions)


def run_pipeline(
    placing: Placing,
    client: Client,
    files: Iterable[Path],
    *,
    weight: float | None,
    batch: int,
    on_batch: Callable[[Batch], None],
) -> None:
    """Take files through all stages, each in a thread of its own; `on_batch` is called from the caller's."""
    stages = _Stages(client, weight)
    with Flow() as flow:
        read = flow.stage("read", _batches(placing, files, batch, client.limits))
        decoded = flow.stage("decode", map(stages.decode, read))
        for done in flow.stage("write", map(placing.write, flow.stage("encode", map(stages.encode, decoded)))):
            on_batch(done)


def _batches(placing: Placing, files: Iterable[Path], batch: int, limits: ImageLimits) -> Iterator[Batch]:
    """Read the files and pack those that are to be decoded, `batch` at a time or fewer where they are large."""
    step, held_bytes = Batch(), 0
    for path in files:
        step.files += 1
        try:
            file = read_file(path, limits)
            before = len(step.read)
            placing.decide(file, step)
            held_bytes += sum(candidate.file.held_bytes for candidate in step.read[before:])
        except (OSError, UnicodeEncodeError, InputError) as error:
            step.fail(path, cause_of(error))
        if len(step.read) == batch or held_bytes >= HELD_BYTES or step.files >= _LOOKED_AT * batch:
            yield step
            step, held_bytes = Batch(), 0
    if step.files:
        yield step


class _Stages:
    """What happens to a batch between reading and writing. Each method is used by one thread at a time."""

    def __init__(self, client: Client, weight: float | None) -> None:
        self._client, self._weight = client, weight

    def decode(self, step: Batch) -> Batch:
        """Turn what was read into pixels and items."""
        pixels, errors = self._client.preprocess([each.file.content for each in step.read], on_error="skip")
        causes = {error.position: error.cause for error in errors}
        for place, candidate in enumerate(step.read):
            if (cause := causes.get(place)) is not None:
                step.broken[vector_key(candidate.item)] = cause
                step.fail(candidate.file.path, cause)
            else:
                step.items.append(candidate.item)
                step.captions.append(candidate.captions)
        step.read, step.pixels = [], pixels  # (len(items), S, S, 3)
        return step

    def encode(self, step: Batch) -> Batch:
        """Turn pixels into vectors, fused with those of the captions where that is asked for."""
        assert step.pixels is not None
        if step.items:
            step.embeddings = self._client.towers.encode_images(step.pixels)  # (n, D)
            places = [place for place, said in enumerate(step.captions) if said]
            if self._weight is not None and places:
                words = encode_captions(self._client, [step.captions[place] for place in places])
                embeddings = step.embeddings.copy()
                embeddings[places] = fuse(step.embeddings[places], words, self._weight)
                step.embeddings = embeddings
        step.pixels = None
        return step
