"""Precision and recall of groups of near-equal images, and the thresholds that suit them.

Pairs of images are counted: precision is the share of the pairs in one group that show one picture, recall the share of
the pairs that show one picture and are in one group. Intervals are a bootstrap over scenes, each with its copies and
the images beside it. The defaults of the product are measured as they are; of every method, the thresholds with the
largest F1 on scenes of another seed. Of vectors alone, as a grouped search compares them, those with the largest F0.5
as well, in which precision counts double: to hide another picture is worse than to show a copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinspire import Client, Index
from twinspire.duplicates import (
    DEFAULT_MIN_CORRELATION,
    DEFAULT_THRESHOLD,
    correlations,
    find_duplicates,
    thumbnail_of,
)
from twinspire.index import Item, ItemKind
from twinspire.search.grouping import DEFAULT_GROUP, grouped
from twinspire.similarity import similarities
from twinspire_bench.search.copies import CopyChange, SceneFile, write_copies
from twinspire_bench.search.perceptual_hash import hash_of
from twinspire_eval.statistics import Estimate, Statistic, interval, statistic_of

PRODUCT = "index duplicates"
SEARCH = "search --group"
NEIGHBOURS = 16
_VALIDATION = 1_000_003  # added to the seed
_CHUNK = 256
_COSINES = (0.99, 0.98, 0.97, 0.96, 0.95, 0.925, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)

OnProgress: TypeAlias = Callable[[str, int, int], None]
Labels: TypeAlias = NDArray[np.int64]
"""The group of each image, (N,) int64; equal for images of one group."""


@dataclass(frozen=True)
class Method:
    """How images are compared: by vectors and a second score, whose minima are tried, and the measure to choose by.

    `beta` is that of the F measure: 1 weighs precision and recall alike, 0.5 precision double.
    """

    name: str
    score: str
    minima: Sequence[float]
    beta: float = 1.0


_NONE, _HASH, _PIXELS = "none", "hash", "pixels"
METHODS = (
    Method("vectors", _NONE, (0.0,)),
    Method("vectors, by F0.5", _NONE, (0.0,), beta=0.5),
    Method("vectors and pHash", _HASH, [-bits for bits in range(0, 25, 2)]),
    Method("vectors and pixels", _PIXELS, [round(0.7 + 0.02 * step, 2) for step in range(14)]),
)


@dataclass(frozen=True)
class GroupScores:
    """How right groups are: their thresholds, estimates, and the recall of originals' pairs with each kind of copy.

    `minimum` is that of the second comparison, minus the number of bits for a hash, None without one; `took_s` the
    seconds of the product's search for duplicates.
    """

    cosine: float
    minimum: float | None
    precision: Estimate
    recall: Estimate
    f1: Estimate
    by_change: dict[CopyChange, float]
    took_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a record has them."""
        return {
            "cosine": self.cosine,
            "minimum": self.minimum,
            **{name: getattr(self, name).to_json() for name in ("precision", "recall", "f1")},
            "recall_by_change": {change.value: value for change, value in self.by_change.items()},
            "took_s": self.took_s,
        }


@dataclass(frozen=True)
class _Images:
    """Images of one seed, in the order of their ids in an index."""

    files: list[SceneFile]
    index: Index
    vectors: NDArray[np.float32]  # (N, D) or (N, Q, D)


def measure_duplicates(client: Client, *, count: int, seed: int, on_progress: OnProgress) -> dict[str, GroupScores]:
    """Return by name how right the groups of the product are, and those of every method with its best thresholds."""
    with _images(client, count, seed + _VALIDATION, on_progress) as images:
        compared = _Compared(images)
        best = {method.name: compared.best(method) for method in METHODS}
    with _images(client, count, seed, on_progress) as images:
        start_s = time.perf_counter()
        report = find_duplicates(images.index)
        took_s = time.perf_counter() - start_s
        labels = np.arange(len(images.files))
        for group in report.groups:
            labels[[image.id for image in group]] = group.best.id
        found = {PRODUCT: _scores(images.files, labels, DEFAULT_THRESHOLD, DEFAULT_MIN_CORRELATION, took_s)}
        ids = range(len(images.files))
        for head, others in grouped(images.index, ids, DEFAULT_GROUP, len(ids), kind=ItemKind.IMAGE).items():
            labels[[head, *others]] = head
        found[SEARCH] = _scores(images.files, labels, DEFAULT_GROUP, None)
        compared = _Compared(images)
        for method in METHODS:
            cosine, minimum = best[method.name]
            shown = minimum if len(method.minima) > 1 else None
            found[method.name] = _scores(images.files, compared.labels(method, cosine, minimum), cosine, shown)
    return found


@contextmanager
def _images(client: Client, count: int, seed: int, on_progress: OnProgress) -> Iterator[_Images]:
    with TemporaryDirectory(prefix="twinspire-bench-") as folder:
        files = write_copies(Path(folder), count, seed=seed)
        parts = []
        for start in range(0, len(files), _CHUNK):
            on_progress("copies", start, len(files))
            parts.append(client.encode_images([file.path for file in files[start : start + _CHUNK]]))
        vectors = np.concatenate(parts)
        items = [Item(str(file.path), ItemKind.IMAGE) for file in files]
        with Index.create(
            Path(folder) / "index", space=client.space, dim=client.dim, vectors_per_item=client.vectors_per_item
        ) as index:
            index.add(vectors, items, space=client.space)
            yield _Images(files, index, vectors)
        on_progress("copies", len(files), len(files))


class _Compared:
    """Comparisons of each image with its nearest neighbours, by all methods: what any thresholds keep of them."""

    def __init__(self, images: _Images) -> None:
        self._files = images.files
        cosines = similarities(images.vectors, images.vectors)
        np.fill_diagonal(cosines, -np.inf)
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]
        both = np.stack([np.repeat(np.arange(len(cosines)), nearest.shape[1]), nearest.ravel()], axis=1)
        left, right = self._pairs = np.unique(np.sort(both, axis=1), axis=0).T  # (P,) each
        self._cosines = cosines[left, right]
        thumbnails, hashes = [], []
        for file in images.files:
            with Image.open(file.path) as image:
                thumbnails.append(thumbnail_of(image.convert("RGB")))
                hashes.append(hash_of(image))
        grey, bits = np.stack(thumbnails), np.stack(hashes)  # (N, 48, 48), (N, 64)
        self._scores: dict[str, NDArray[Any]] = {
            _NONE: np.zeros(len(left)),
            _HASH: -(bits[left] != bits[right]).sum(axis=1),
            _PIXELS: correlations(grey[left], grey[right]),
        }

    def labels(self, method: Method, cosine: float, minimum: float) -> Labels:
        """Return groups as the product makes them, of the pairs that reach both thresholds."""
        kept = (self._cosines >= cosine) & (self._scores[method.score] >= minimum)
        count = len(self._files)
        near = np.eye(count, dtype=np.bool_)
        left, right = self._pairs[:, kept]
        near[left, right] = near[right, left] = True
        labels = np.full(count, -1)
        for place in range(count):  # the first of a scene's files is its original, which is the best
            if labels[place] < 0:
                labels[near[place] & (labels < 0)] = place
        return labels

    def best(self, method: Method) -> tuple[float, float]:
        """Return the thresholds with the largest F measure; of equal ones the largest, which compare fewest images."""

        def value(pair: tuple[float, float]) -> float:
            counts = _counts(self._files, self.labels(method, *pair))
            return float(_f_measure(counts[None], method.beta)[0])

        return max(((cosine, minimum) for cosine in _COSINES for minimum in reversed(method.minima)), key=value)


def _scores(
    files: Sequence[SceneFile], labels: Labels, cosine: float, minimum: float | None, took_s: float | None = None
) -> GroupScores:
    counts = _counts(files, labels)
    originals = {file.picture: place for place, file in enumerate(files) if file.change is None}
    is_found = [labels[place] == labels[originals[file.picture]] for place, file in enumerate(files)]

    def estimate(of: Statistic) -> Estimate:
        return Estimate(statistic_of(counts, of), interval(counts, of))

    return GroupScores(
        cosine,
        minimum,
        precision=estimate(_precision),
        recall=estimate(_recall),
        f1=estimate(_f_measure),
        by_change={
            change: float(
                np.mean([found for file, found in zip(files, is_found, strict=True) if file.change is change])
            )
            for change in CopyChange
        },
        took_s=took_s,
    )


def _counts(files: Sequence[SceneFile], labels: Labels) -> NDArray[np.float64]:
    """Return by scene how many pairs are in one group and show one picture, are in one group, show one picture: (S, 3).

    A pair counts half for the scene of each of its images.
    """
    pictures = np.array([file.picture for file in files])
    scenes = np.array([file.scene for file in files])
    in_group, of_picture = (keys[:, None] == keys for keys in (labels, pictures))  # (N, N)
    columns = (in_group & of_picture, in_group, of_picture)
    return np.stack([np.bincount(scenes, (found.sum(axis=1) - 1) / 2) for found in columns], axis=1)


def _precision(draws: NDArray[Any]) -> NDArray[Any]:
    sums = draws.sum(axis=1)  # (R, 3)
    return np.asarray(sums[:, 0] / np.maximum(sums[:, 1], 1))


def _recall(draws: NDArray[Any]) -> NDArray[Any]:
    sums = draws.sum(axis=1)
    return np.asarray(sums[:, 0] / sums[:, 2])


def _f_measure(draws: NDArray[Any], beta: float = 1.0) -> NDArray[Any]:
    """Return the weighted harmonic mean of precision and recall (van Rijsbergen, Information Retrieval, 1979)."""
    sums = draws.sum(axis=1)
    return np.asarray((1 + beta**2) * sums[:, 0] / (sums[:, 1] + beta**2 * sums[:, 2]))
