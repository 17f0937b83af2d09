"""The pipeline of files: read, decode, encode and write in parallel, in batches, each in a thread of its own."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import DecodeMode
from twinspire.errors import AudioError, ImageError, InputError
from twinspire.ingest.caption_fusion import encode_captions, fuse
from twinspire.ingest.files import HELD_BYTES, ReadFile, cause_of, read_file
from twinspire.ingest.kinds import FileKinds
from twinspire.ingest.metadata import DECODE, combined, file_metadata
from twinspire.ingest.options import IngestOptions
from twinspire.ingest.reports import FolderEvent, Happened
from twinspire.stores import Item, ItemKind, StoredItem

if TYPE_CHECKING:
    from twinspire.client import Client

T = TypeVar("T")
_CHECKED_BATCHES = 8  # batches of files that need no decoding, after which progress is reported


def vector_key(item: Item | StoredItem) -> bytes:
    """Return a hash of all that a file's vector depends on: files of one key have one vector."""
    weight = item.metadata.get("fused_captions")
    caption = "" if weight is None else f"\0{weight}\0{item.caption}"
    decode = item.metadata.get(DECODE, "")
    return hashlib.blake2b(f"{item.kind}{item.content_hash}{decode}{caption}".encode(), digest_size=16).digest()


class Candidate(NamedTuple):
    """A file and the item that it becomes."""

    file: ReadFile
    item: Item
    captions: Sequence[str]

    @classmethod
    def of(cls, file: ReadFile, options: IngestOptions, decode: DecodeMode) -> Candidate:
        """Make the item of a file that is decoded so. Raises `InputError` where its captions cannot be read."""
        source = options.captions
        captions = source.of(file.path) if source is not None else ()
        metadata = combined(file_metadata(file, decode), source.metadata_of(file.path) if source is not None else {})
        if captions and options.caption_weight is not None:
            metadata["fused_captions"] = options.caption_weight
        caption = "\n".join(captions) or None
        return cls(file, Item(str(file.path), file.kind, caption, metadata, file.content_hash), captions)


@dataclass(slots=True)
class Batch:
    """Some files in the pipeline; each stage fills in its part and drops what the next ones do not need."""

    files: int = 0
    already: int = 0
    events: list[FolderEvent] = field(default_factory=list)
    read: list[Candidate] = field(default_factory=list)  # to be decoded
    broken: dict[bytes, str] = field(default_factory=dict)  # by vector key: causes of files that were not decoded
    copies: list[Item] = field(default_factory=list)  # whose vectors the store has when they are written
    items: list[Item] = field(default_factory=list)
    captions: list[Sequence[str]] = field(default_factory=list)  # of each of the items; may be empty
    inputs: list[tuple[ItemKind, NDArray[Any]]] = field(default_factory=list)  # of the towers, in the items' order
    embeddings: NDArray[np.float32] | None = None  # (len(items), D) or (len(items), Q, D)

    def fail(self, path: Path, cause: str) -> None:
        """Note that a file failed."""
        self.events.append(FolderEvent(Happened.FAILED, path, cause=cause))


class Writer(Protocol):
    """Decides about files that were read, and writes those that were encoded."""

    def decide(self, file: ReadFile, step: Batch) -> None:
        """Do what needs no vector, or add the file to those to decode or to copy."""

    def write(self, step: Batch) -> Batch:
        """Write the items of a batch."""


def run_pipeline(
    writer: Writer,
    client: Client,
    kinds: FileKinds,
    files: Iterable[Path],
    options: IngestOptions,
    *,
    on_batch: Callable[[Batch], None],
) -> None:
    """Take files through all stages; `on_batch` is called from the calling thread with each batch that was written."""
    stages = _Stages(client, options.caption_weight)
    with Flow() as flow:
        read = flow.stage("read", _batches(writer, files, options.batch, kinds))
        decoded = flow.stage("decode", map(stages.decode, read))
        for done in flow.stage("write", map(writer.write, flow.stage("encode", map(stages.encode, decoded)))):
            on_batch(done)


def _batches(writer: Writer, files: Iterable[Path], batch: int, kinds: FileKinds) -> Iterator[Batch]:
    """Read the files and pack those to decode, `batch` at a time or fewer where they are large."""
    step, held_bytes = Batch(), 0
    for path in files:
        step.files += 1
        try:
            file = read_file(path, kinds)
            before = len(step.read)
            writer.decide(file, step)
            held_bytes += sum(candidate.file.held_bytes for candidate in step.read[before:])
        except (OSError, UnicodeEncodeError, InputError) as error:
            step.fail(path, cause_of(error))
        if len(step.read) == batch or held_bytes >= HELD_BYTES or step.files >= _CHECKED_BATCHES * batch:
            yield step
            step, held_bytes = Batch(), 0
    if step.files:
        yield step


class _Stages:
    """The stages between reading and writing. Each method is called by one thread at a time."""

    def __init__(self, client: Client, weight: float | None) -> None:
        self._client, self._weight = client, weight

    def decode(self, step: Batch) -> Batch:
        """Decode the files that were read into inputs of the towers, and take their items."""
        for kind in ItemKind:
            own = [candidate for candidate in step.read if candidate.file.kind is kind]
            if not own:
                continue
            contents = [candidate.file.content for candidate in own]
            rows, errors = self._prepare(kind, contents)
            causes = {error.position: error.cause for error in errors}
            for place, candidate in enumerate(own):
                if (cause := causes.get(place)) is not None:
                    step.broken[vector_key(candidate.item)] = cause
                    step.fail(candidate.file.path, cause)
                else:
                    step.items.append(candidate.item)
                    step.captions.append(candidate.captions)
            step.inputs.append((kind, rows))  # (n, ...)
        step.read = []
        return step

    def _prepare(
        self, kind: ItemKind, contents: Sequence[bytes | Path]
    ) -> tuple[NDArray[Any], Sequence[ImageError | AudioError]]:
        if kind is ItemKind.AUDIO:
            return self._client.preprocess_audio(contents, on_error="skip")
        return self._client.preprocess(contents, on_error="skip")

    def _encode(self, kind: ItemKind, rows: NDArray[Any]) -> NDArray[np.float32]:
        towers = self._client.towers
        return towers.encode_audio(rows) if kind is ItemKind.AUDIO else towers.encode_images(rows)

    def encode(self, step: Batch) -> Batch:
        """Encode the inputs, and fuse the vectors with those of the captions where there is a caption weight."""
        if step.items:
            step.embeddings = np.concatenate([self._encode(kind, rows) for kind, rows in step.inputs if len(rows)])
            places = [place for place, captions in enumerate(step.captions) if captions]
            if self._weight is not None and places:
                captions = encode_captions(self._client, [step.captions[place] for place in places])
                embeddings = step.embeddings.copy()
                embeddings[places] = fuse(step.embeddings[places], captions, self._weight)
                step.embeddings = embeddings
        step.inputs = []
        return step


class Flow:
    """Stages that run in parallel, each in a thread of its own, with bounded queues between them.

    `with Flow() as flow: for result in flow.stage("write", map(write, flow.stage("read", read()))): ...` runs `read`
    and `write` in two threads beside the caller's. A queue holds at most one thing, and each stage works on one: that
    bounds the memory. An error in a stage is raised in the stages behind it and at last in the caller, after
    everything that came before it. Leaving the block, also by an error or Ctrl-C, stops every stage once its current
    step returns and joins all threads.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def stage(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Iterate over `items` in a thread of its own; return an iterator over them in their order."""
        queue = _Queue[T](self)
        thread = threading.Thread(target=queue.fill, args=(items,), name=f"twinspire-{name}")
        self._threads.append(thread)
        thread.start()
        return queue

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()


class _Stopped(Exception):  # noqa: N818 - no error: it unwinds a stage whose flow has been left
    """The flow has been left."""


class _Queue(Generic[T], Iterator[T]):
    """The queue between a stage and the next."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._waiting: deque[T] = deque()
        self._error: BaseException | None = None
        self._ended = False

    def fill(self, items: Iterable[T]) -> None:
        """Put all `items`, until they end or fail or the flow is stopped."""
        error: BaseException | None = None
        try:
            for item in items:
                self._put(item)
        except _Stopped:
            pass
        except BaseException as caught:  # raised again where the next stage asks
            error = caught
        finally:
            with self._flow._changed:
                self._error, self._ended = error, True
                self._flow._changed.notify_all()

    def _put(self, item: T) -> None:
        flow = self._flow
        with flow._changed:
            flow._changed.wait_for(lambda: flow._stopped or not self._waiting)
            if flow._stopped:
                raise _Stopped
            self._waiting.append(item)
            flow._changed.notify_all()

    def __next__(self) -> T:
        flow = self._flow
        with flow._changed:
            flow._changed.wait_for(lambda: flow._stopped or self._waiting or self._ended)
            if flow._stopped:
                raise _Stopped
            if self._waiting:
                item = self._waiting.popleft()
                flow._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration
