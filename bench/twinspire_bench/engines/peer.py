"""Interface and registry of peers: a peer is added by one class, which `register_peer` enters in its comparison."""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from twinspire import Client, LocalTowers
from twinspire._codec import decode
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import InputError, MissingDependencyError
from twinspire.text import Tokenizer
from twinspire.towers.auto_selection import AUTO
from twinspire.towers.providers import InferencePrecision, OpenVinoOptions, Provider
from twinspire_bench.engines.inputs import PeerInputs
from twinspire_bench.scripts import batches_of

_PURPOSE = "Comparing engines with other libraries"


class EngineComparison(StrEnum):
    """What the peers of one table compute."""

    IMAGE_TOWER = "image_tower"
    TEXT_TOWER = "text_tower"
    FOLDER = "folder"
    ONE_CAPTION = "one_caption"

    @property
    def unit(self) -> str:
        """Unit of the peers' results."""
        return {EngineComparison.TEXT_TOWER: "texts_per_s", EngineComparison.ONE_CAPTION: "captions_per_s"}.get(
            self, "images_per_s"
        )


@dataclass(frozen=True, kw_only=True)
class PeerTask:
    """What the worker process of a peer measures. `peer` is the class, as MODULE:CLASS; `peer_tasks` fills it in.

    `precision` is that of our engines. The slow text peers encode only `padded_texts` or `bf16_texts` captions a
    measurement.
    """

    peer: str = ""
    inputs: PeerInputs
    threads: int
    streams: int
    batch: int = 32
    padded_texts: int = 96
    bf16_texts: int = 512
    precision: Precision = Precision.INT8

    def captions(self) -> list[str]:
        """Read the captions."""
        found: list[str] = json.loads(self.inputs.captions.read_text(encoding="utf-8"))
        return found

    def image_batches(self) -> list[NDArray[np.uint8]]:
        """Read the preprocessed images: batches (N, S, S, 3)."""
        return batches_of(np.load(self.inputs.images), self.batch)

    def files(self) -> list[Path]:
        """List the image files of the folder."""
        return sorted(self.inputs.folder.glob("*.jpg"))

    def tokenizer(self) -> Tokenizer:
        """Open the bundle's tokenizer."""
        bundle = Bundle.open(self.inputs.bundle)
        return Tokenizer(bundle.tokenizer_path, bundle.text)

    def tower(
        self,
        tower: Tower,
        provider: Provider | str = AUTO,
        inference_precision: InferencePrecision = InferencePrecision.F32,
    ) -> LocalTowers:
        """Open one tower's engine; with OpenVINO, float operators compute in `inference_precision`."""
        return LocalTowers(
            Bundle.open(self.inputs.bundle),
            precision=self.precision,
            provider=provider,
            threads=self.threads,
            streams=self.streams,
            openvino=OpenVinoOptions(inference_precision=inference_precision),
            towers=(tower,),
        )

    def client(self) -> Client:
        """Open a client of the bundle's engines."""
        return Client.local(self.inputs.bundle, precision=self.precision, threads=self.threads, streams=self.streams)


class EnginePeer(ABC):
    """Something that computes embeddings, measured in a process of its own. Its constructor loads what it needs.

    `comparison` is the one that it takes part in, `label` its name in it. It is measured once with each number of
    `stream_counts`, or once with the command's where there are none. `packages` are those that it needs, each module
    with its package and twinspire's extra. A peer whose `is_usable` is False on this machine is left out.
    """

    comparison: ClassVar[EngineComparison]
    label: ClassVar[str]
    stream_counts: ClassVar[tuple[int, ...]] = ()
    packages: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def __init__(self, task: PeerTask) -> None:
        self.task = task

    @classmethod
    def is_usable(cls) -> bool:
        """Whether this machine has what the peer computes with."""
        return True

    @abstractmethod
    def measure(self) -> float:
        """Compute once and return the rate, in the comparison's unit."""


PEERS: list[type[EnginePeer]] = []
"""Registered peers, in the order of the tables. The first one of each comparison is compared with the others."""


def register_peer(peer: type[EnginePeer]) -> type[EnginePeer]:
    """Add a peer to its comparison; a class decorator. Raises InputError where its label is taken there."""
    if any((other.comparison, other.label) == (peer.comparison, peer.label) for other in PEERS):
        raise InputError(f"{peer.label!r} is in the comparison {peer.comparison} already: use another label")
    PEERS.append(peer)
    return peer


def require_peers() -> None:
    """Raise MissingDependencyError for the first package that a peer or its inputs need and that is not installed."""
    needed = {"onnx": ("onnx", "bench"), "nncf": ("nncf", "quantize")}
    for peer in PEERS:
        needed.update(peer.packages)
    for module, (package, extra) in needed.items():
        if find_spec(module) is None:
            raise MissingDependencyError(package, extra, _PURPOSE)


def peer_tasks(comparison: EngineComparison, task: PeerTask) -> dict[str, PeerTask]:
    """Return the tasks of a comparison's usable peers by label: `task` with each peer's class and streams."""
    return {
        label: replace(task, peer=peer_name(peer), streams=count)
        for peer in PEERS
        if peer.comparison is comparison and peer.is_usable()
        for label, count in _labels(peer, task.streams)
    }


def peer_name(peer: type[EnginePeer]) -> str:
    """Return the name of a peer's class as a task has it."""
    return f"{peer.__module__}:{peer.__qualname__}"


def with_streams(label: str, count: int) -> str:
    """Return the label of a peer that is measured with several numbers of streams."""
    return f"{label}, {count} stream{'s' if count > 1 else ''}"


def _labels(peer: type[EnginePeer], streams: int) -> Iterator[tuple[str, int]]:
    for count in peer.stream_counts:
        yield with_streams(peer.label, count), count
    if not peer.stream_counts:
        yield peer.label, streams


def start_peer(document: dict[str, Any]) -> Callable[[], float]:
    """Load the peer of a task and warm it up; return its `measure`. Runs in a worker process."""
    task = decode(PeerTask, document, "task")
    module, _, name = task.peer.partition(":")
    peer: EnginePeer = getattr(importlib.import_module(module), name)(task)
    peer.measure()
    return peer.measure
