"""`find_duplicates`: candidates by vector, checked by pixels, in groups around their best image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_finite, as_whole, naming
from twinspire.duplicates.components import Components
from twinspire.duplicates.correlation import correlations
from twinspire.duplicates.files import ImageFile, read_files
from twinspire.duplicates.neighbours import NEIGHBOURS, Pairs, candidate_pairs, pair_similarities, pairs_of
from twinspire.duplicates.report import DuplicateGroup, DuplicateImage, DuplicateReport, UnreadableImage
from twinspire.errors import IndexStoreError, InputError
from twinspire.images import ImageLimits
from twinspire.similarity import NEAR_EQUAL, ROUNDING, similarities, unit_rows
from twinspire.stores import ItemKind, VectorStore

DEFAULT_THRESHOLD = 0.6
"""Minimum cosine, chosen by `twinspire bench search` on generated scenes."""
DEFAULT_MIN_CORRELATION = 0.84
"""Minimum correlation of pixels, chosen by `twinspire bench search` on generated scenes."""

OnProgress: TypeAlias = Callable[[str, int, int], None]
_PAIRS_AT_ONCE = 4096
_READ_AT_ONCE = 10_000
_WIDER = 4  # times the size of a group are searched around its best image, where the group may go on


def find_duplicates(
    store: VectorStore,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    min_correlation: float | None = DEFAULT_MIN_CORRELATION,
    neighbours: int = NEIGHBOURS,
    limits: ImageLimits | None = None,
    on_progress: OnProgress | None = None,
) -> DuplicateReport:
    """Return groups of images that are near-equal: re-encoded, scaled, cropped by up to 16% of a side or recoloured.

    Two images are near-equal where the cosine of their vectors is at least `threshold`, 0 to 1, and the correlation of
    their pixels at least `min_correlation`, 0 to 1; None: by vector alone, and no file is read. An image whose file
    cannot be read is near-equal to others from a cosine of 0.98 on, and named in the report. Candidates are the
    `neighbours` nearest of each image. `on_progress` takes a stage ("vectors", "files", "pixels"), how many are done
    and of how many.

    Groups are connected components of near-equal images, split so that none is a chain of small differences: the best
    image of a component takes all that are near-equal to itself, and the rest is grouped in the same way again.

    Changes neither files nor the store. Raises `InputError` for values out of range, an empty store and one without
    images, `IndexStoreError` where the store fails or an item is removed meanwhile.
    """
    with naming("threshold"):
        threshold = as_finite(threshold, "threshold (the minimum cosine of two vectors)", minimum=0, maximum=1)
    if min_correlation is not None:
        with naming("min_correlation"):
            what = "min_correlation (the minimum correlation of the pixels)"
            min_correlation = as_finite(min_correlation, what, minimum=0, maximum=1)
    neighbours = as_whole(neighbours, "neighbours", minimum=1)
    generation = store.generation
    search = _Search(store, threshold, min_correlation, neighbours, limits or ImageLimits(), on_progress or _ignore)
    try:
        return search.run()
    except InputError as error:
        if store.generation == generation:
            raise
        raise IndexStoreError(f"the index {store.uri} was changed while it was searched: run it again") from error


def _ignore(stage: str, done: int, total: int) -> None:
    pass


class _Search:
    """One run: the files read so far, and the components found so far."""

    def __init__(
        self,
        store: VectorStore,
        threshold: float,
        min_correlation: float | None,
        neighbours: int,
        limits: ImageLimits,
        on_progress: OnProgress,
    ) -> None:
        self._store = store
        self._threshold = threshold
        self._min_correlation = min_correlation
        self._neighbours = neighbours
        self._limits = limits
        self._on_progress = on_progress
        self._files: dict[int, ImageFile] = {}
        self._components = Components()

    def run(self) -> DuplicateReport:
        ids = self._ids()
        pairs = candidate_pairs(
            self._store,
            ids,
            self._threshold,
            self._neighbours,
            only_images=len(ids) == len(self._store),
            on_progress=lambda done, total: self._on_progress("vectors", done, total),
        )
        self._connect(pairs)
        self._complete_large_components()
        groups = [group for members in self._components.sets() for group in self._split(members)]
        groups.sort(key=lambda group: (-len(group), group.best.id))
        unreadable = [
            UnreadableImage(number, file.item.uri, file.problem)
            for number, file in sorted(self._files.items())
            if file.problem is not None
        ]
        return DuplicateReport(
            tuple(groups),
            images=len(ids),
            read=sum(file.thumbnail is not None for file in self._files.values()),
            unreadable=tuple(unreadable),
            threshold=self._threshold,
            min_correlation=self._min_correlation,
        )

    def _ids(self) -> list[int]:
        ids = [item.id for item in self._store.items(kind=ItemKind.IMAGE, batch=_READ_AT_ONCE)]
        if ids:
            return ids
        if len(self._store) == 0:
            raise InputError(f"the index {self._store.uri} is empty: add images with `twinspire index add`")
        raise InputError(
            f"the index {self._store.uri} has {len(self._store):,} items and none is an image: expected an index of "
            "images, whose near-equal ones are grouped"
        )

    def _read(self, ids: Iterable[int]) -> None:
        """Read the files of these ids that are not read yet."""
        missing = [number for number in dict.fromkeys(ids) if number not in self._files]
        for start in range(0, len(missing), _READ_AT_ONCE):
            items = self._store.get(missing[start : start + _READ_AT_ONCE])
            if self._min_correlation is None:
                self._files.update((item.id, ImageFile(item)) for item in items)
                continue
            for done, file in enumerate(read_files(items, self._limits), start=start + 1):
                self._files[file.item.id] = file
                self._on_progress("files", done, len(missing))

    def _connect(self, pairs: Pairs) -> None:
        """Connect the near-equal ones of these pairs. Pairs that others connect already are not compared."""
        self._read(pairs.ravel().tolist())
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            some = pairs[start : start + _PAIRS_AT_ONCE]
            some = some[[not self._components.are_connected(*pair) for pair in some.tolist()]]
            if len(some):
                self._components.connect(some[self._are_near_equal(some)].tolist())
            self._on_progress("pixels", min(start + _PAIRS_AT_ONCE, len(pairs)), len(pairs))

    def _are_near_equal(self, pairs: Pairs) -> NDArray[np.bool_]:
        """Return for each of the pairs (P, 2) whether it is near-equal, (P,) bool."""
        ids, places = np.unique(pairs, return_inverse=True)
        places = places.reshape(pairs.shape)
        vectors = unit_rows(self._store.vectors(ids.tolist()))
        cosines = pair_similarities(vectors[places[:, 0]], vectors[places[:, 1]])
        near = cosines >= self._threshold - ROUNDING
        found = self._correlations(pairs[near, 0].tolist(), pairs[near, 1].tolist())
        near[near] = self._are_alike(cosines[near], found)
        return near

    def _correlations(self, left: Sequence[int], right: Sequence[int]) -> NDArray[np.float32]:
        """Return the correlation of the images of each pair of ids, (P,) float32; NaN where a file is missing."""
        found = np.full(len(left), np.nan, np.float32)
        places, pairs = [], []
        for place, (one, other) in enumerate(zip(left, right, strict=True)):
            thumbnails = self._files[one].thumbnail, self._files[other].thumbnail
            if thumbnails[0] is not None and thumbnails[1] is not None:
                places.append(place)
                pairs.append(thumbnails)
        if pairs:
            both = np.array(pairs, np.uint8)  # (P, 2, 48, 48)
            found[places] = correlations(both[:, 0], both[:, 1], minimum=self._min_correlation or 0)
        return found

    def _are_alike(self, cosines: NDArray[np.floating[Any]], found: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which pairs of these cosines, at or above the threshold, and correlations are near-equal, (P,) each.

        Where there is no correlation the cosine decides, which has to be higher where pixels should have been compared.
        """
        if self._min_correlation is None:
            return np.ones(len(found), np.bool_)
        by_vector = np.isnan(found) & (cosines >= NEAR_EQUAL - ROUNDING)
        return np.asarray(by_vector | (found >= self._min_correlation - ROUNDING), np.bool_)

    def _complete_large_components(self) -> None:
        """Search more neighbours around components that are larger than the list of neighbours of an image.

        Such a list may end within the component, whose other images then belong to none or to another.
        """
        searched: dict[int, int] = {}
        while True:
            large = [
                (min(members, key=lambda number: self._files[number].rank), len(members))
                for members in self._components.sets()
                if len(members) > self._neighbours
            ]
            large = [(best, size) for best, size in large if size > searched.get(best, 0)]
            if not large:
                return
            for best, size in large:
                searched[best] = size
                self._connect(pairs_of(self._store, best, self._threshold, _WIDER * size))

    def _split(self, members: list[int]) -> list[DuplicateGroup]:
        """Return the groups of a component."""
        remaining = sorted(members, key=lambda number: self._files[number].rank)
        groups = []
        while len(remaining) > 1:
            best, *others = remaining
            vectors = unit_rows(self._store.vectors(remaining))
            cosines = similarities(vectors[1:], vectors[:1])[:, 0]
            near = np.flatnonzero(cosines >= self._threshold - ROUNDING)
            found = self._correlations([best] * len(near), [others[place] for place in near])
            alike = self._are_alike(cosines[near], found)
            images = [
                self._image(others[place], float(cosines[place]), None if np.isnan(value) else float(value))
                for place, value in zip(near[alike].tolist(), found[alike], strict=True)
            ]
            if images:
                images.sort(key=lambda image: (-image.similarity, image.id))
                groups.append(
                    DuplicateGroup(
                        self._image(best, 1.0, None if self._files[best].thumbnail is None else 1.0), tuple(images)
                    )
                )
            taken = {image.id for image in images}
            remaining = [number for number in others if number not in taken]
        return groups

    def _image(self, number: int, similarity: float, correlation: float | None) -> DuplicateImage:
        file = self._files[number]
        return DuplicateImage(
            id=number,
            uri=file.item.uri,
            similarity=min(similarity, 1.0),
            correlation=correlation,
            width=file.width,
            height=file.height,
            size_bytes=file.size_bytes,
            problem=file.problem,
        )
