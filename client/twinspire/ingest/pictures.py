"""Files of pictures into an index: read, decoded, encoded and written beside each other, batch by batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index import Item, ItemKind
from twinspire.ingest.captions import CaptionSource
from twinspire.ingest.finding import absolute, require_list
from twinspire.ingest.flow import Flow
from twinspire.ingest.fusing import check_weight, encode_captions, fuse
from twinspire.ingest.metadata import picture_metadata
from twinspire.ingest.placing import Place, Placer
from twinspire.ingest.reading import HELD_BYTES, ReadFile, cause_of, read_file
from twinspire.ingest.reports import FailedPicture, IngestReport, ItemIndex

if TYPE_CHECKING:
    from twinspire.client import Client

_LOOKED_AT = 8  # batches of files that the index has already, after which progress is told


@dataclass(slots=True)
class Batch:
    """Some files on their way; each stage fills in its part and lets go of what the next ones do not need."""

    files: int = 0
    already: int = 0
    failed: list[FailedPicture] = field(default_factory=list)
    read: list[ReadFile] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    captions: list[Sequence[str]] = field(default_factory=list)  # of each item; may be none
    pixels: NDArray[np.uint8] | None = None  # (len(items), S, S, 3)
    embeddings: NDArray[np.float32] | None = None  # (len(items), D)
    added: int = 0
    changed: int = 0
    captioned: int = 0


def add_pictures(
    index: ItemIndex,
    client: Client,
    paths: Iterable[str | os.PathLike[str]],
    *,
    batch: int = 32,
    captions: CaptionSource | None = None,
    fuse_captions: float | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """Encode the picture files at `paths` and add them to `index`, `batch` files at a time.

    An item's uri is the file's absolute path, its content hash the SHA-256 of its bytes, its metadata what
    `picture_metadata` reads and `captions` tells. A file whose content is in the index already is not decoded: its item
    takes a new caption and new metadata, and follows it where the file that it was added from is gone or holds
    something else. A file with other content than the item of its path takes that item's place. A file that fails is
    reported and does not stop the rest. Reading, decoding, encoding and writing each run in a thread of their own with
    one batch between them, so at most nine batches are in memory, of at most 128 MiB of encoded files each.

    `captions` gives what is said about each picture; several captions are one, on a line each. What the index has and
    the source says nothing of stays. With `fuse_captions`, above 0 and below 1, a captioned picture's vector is the
    unit vector of (1 - w) * picture + w * mean of its captions, and `fused_captions` in its metadata tells w.

    `on_progress` is called, from the calling thread, with the number of files that are done since the last call.
    Every batch is durable once it is done: after an error or an interruption the same call goes on where it ended.

    Raises `SpaceMismatchError`, `IndexStoreError`, `EngineError`, and `InputError` for a `batch` below 1 and a
    `fuse_captions` out of its range or without captions.
    """
    require_list(paths)
    index.check_space(client.space)
    placer = Placer(index, space=client.space, captions=captions, weight=fuse_captions)
    stages = PictureStages(client, captions=captions, fuse_captions=fuse_captions)
    report = run(placer, stages, paths, batch=batch, on_progress=on_progress)
    placer.finish()
    return report


def run(
    placer: Placer,
    stages: PictureStages,
    paths: Iterable[str | os.PathLike[str]],
    *,
    batch: int,
    on_progress: Callable[[int], None] | None,
) -> IngestReport:
    """Take files through all stages; the heart of `add_pictures`."""
    if batch < 1:
        raise InputError(f"batch, the number of files encoded together, must be 1 or more, got {batch}")
    files = list(dict.fromkeys(absolute(path) for path in paths))

    def write(step: Batch) -> Batch:
        if step.embeddings is not None:
            added, changed = placer.write(step.items, step.embeddings)
            step.added, step.changed = len(added), step.changed + len(changed)
            step.captioned += sum(item.caption is not None for item in (*added, *changed))
            step.already += len(step.items) - len(added) - len(changed)
        step.items, step.embeddings = [], None
        return step

    total, failed = Batch(), list[FailedPicture]()
    with Flow() as flow:
        decoded = flow.stage("decode", map(stages.decode, flow.stage("read", _batches(placer, files, batch))))
        for done in flow.stage("write", map(write, flow.stage("encode", map(stages.encode, decoded)))):
            total.added += done.added
            total.already += done.already
            total.changed += done.changed
            total.captioned += done.captioned
            failed += done.failed
            if on_progress is not None:
                on_progress(done.files)
    return IngestReport(total.added, total.already, failed, total.captioned, total.changed)


def _batches(placer: Placer, files: Sequence[Path], batch: int) -> Iterator[Batch]:
    """Read the files and pack those whose content is new, `batch` at a time or fewer where they are large."""
    step, held_bytes = Batch(), 0
    for path in files:
        step.files += 1
        try:
            file = read_file(path)
        except (OSError, UnicodeEncodeError, InputError) as error:
            step.failed.append(FailedPicture(path, cause_of(error)))
        else:
            place = placer.read(file)
            step.already += place is Place.KNOWN
            step.changed += place in (Place.CHANGED, Place.CAPTIONED)
            step.captioned += place is Place.CAPTIONED
            if place is Place.ENCODE:
                step.read.append(file)
                held_bytes += file.held_bytes
        if len(step.read) == batch or held_bytes >= HELD_BYTES or step.files >= _LOOKED_AT * batch:
            yield step
            step, held_bytes = Batch(), 0
    if step.files:
        yield step


class PictureStages:
    """What happens to a batch between reading and writing. Each method is used by one thread at a time."""

    def __init__(self, client: Client, *, captions: CaptionSource | None, fuse_captions: float | None) -> None:
        if fuse_captions is not None:
            check_weight(fuse_captions)
            if captions is None:
                raise InputError("pictures can be fused with captions where there are captions: give some")
        self._client = client
        self._captions = captions
        self._weight = fuse_captions
        self._decoded: set[str] = set()  # content of this run, which the index may not have yet
        self._broken: dict[str, str] = {}  # content that failed, and why

    def decode(self, step: Batch) -> Batch:
        """Turn what was read into pixels and items; the same content once."""
        new: dict[str, tuple[ReadFile, Sequence[str]]] = {}
        again: list[ReadFile] = []
        for file in step.read:
            if file.content_hash in self._decoded or file.content_hash in self._broken or file.content_hash in new:
                again.append(file)
                continue
            try:
                new[file.content_hash] = file, self._captions.of(file.path) if self._captions is not None else ()
            except InputError as error:
                step.failed.append(FailedPicture(file.path, str(error)))
        pixels, errors = self._client.preprocess([file.content for file, _ in new.values()], on_error="skip")
        causes = {error.position: error.cause for error in errors}
        for place, (file, said) in enumerate(new.values()):
            if (cause := causes.get(place)) is not None:
                self._broken[file.content_hash] = cause
                step.failed.append(FailedPicture(file.path, cause))
            else:
                self._decoded.add(file.content_hash)
                step.items.append(self._item(file, said))
                step.captions.append(said)
        for file in again:
            cause = self._broken.get(file.content_hash)
            step.already += cause is None
            if cause is not None:
                step.failed.append(FailedPicture(file.path, cause))
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

    def _item(self, file: ReadFile, captions: Sequence[str]) -> Item:
        told = self._captions.metadata_of(file.path) if self._captions is not None else {}
        metadata = {**told, **picture_metadata(file)}
        if captions and self._weight is not None:
            metadata["fused_captions"] = self._weight
        caption = "\n".join(captions) or None
        return Item(str(file.path), ItemKind.IMAGE, caption, metadata, content_hash=file.content_hash)
