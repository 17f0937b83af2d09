"""An index with several vectors an item: every search against NumPy's maximum, and every change as with one vector."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.arrays import unit
from twinspire.errors import EmbeddingError, IndexStoreError, InputError
from twinspire.index import Index, Item, VectorType, recover_index
from twinspire.index.ann import AnnIndex, IndexFamily, IndexSpec, register
from twinspire.index.export import export_index
from twinspire.index.schema import SCHEMA_VERSION, SEVERAL_VECTORS_VERSION, schema_of
from twinspire.index.vectors import VectorFile, header
from twinspire.similarity import similarities

SPACE, DIM, SEVERAL, COUNT, K = "5" * 64, 24, 4, 600, 10
CRC_OF_SCHEMA_3 = 2006079620
MINIMUM_RECALL = {
    "ivf": 1.0,
    "ivf,sq8": 0.99,
    "ivf,pq6x4": 0.9,
    "hnsw": 0.99,
    "hnsw,sq8": 0.99,
    "pca16,flat": 0.97,
    "pca16,ivf": 0.97,
    "binary": 1.0,
}


def embeddings(count: int = COUNT, seed: int = 0) -> NDArray[np.float32]:
    """Return (count, Q, D) unit vectors; those of an item have something in common."""
    draw = np.random.default_rng(seed)
    return unit(draw.standard_normal((count, 1, DIM)) + draw.standard_normal((count, SEVERAL, DIM)))


def queries(count: int = 40, seed: int = 9) -> NDArray[np.float32]:
    """Return (count, D) unit vectors."""
    return unit(np.random.default_rng(seed).standard_normal((count, DIM)))


def images(count: int = COUNT, first: int = 0) -> list[Item]:
    """Return items that are numbered in their metadata."""
    return [Item(f"/p/{n}.jpg", "image", f"no {n}", {"n": n}, f"h{n}") for n in range(first, first + count)]


def expected(
    stored: NDArray[np.float32], asked: NDArray[np.float32], k: int = K, kept: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return ids and scores of the k best items by NumPy, in float64; ids count the rows of `stored`."""
    left = asked[:, None] if asked.ndim == 2 else asked
    scores = np.einsum("mpd,nqd->mnpq", left.astype(np.float64), stored.astype(np.float64)).max(axis=(2, 3))
    if kept is not None:
        scores[:, ~kept] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return best, np.take_along_axis(scores, best, axis=1)


def found(index: Index, asked: NDArray[np.float32], k: int = K, **options: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return ids and scores of a search, (M, k)."""
    rows = index.search(asked, k=k, space=SPACE, **options)
    return np.array([[hit.id for hit in row] for row in rows]), np.array([[hit.score for hit in row] for row in rows])


def recall(ids: NDArray[np.int64], best: NDArray[np.int64]) -> float:
    """Return the share of the best items that were found."""
    share = float(np.mean([len({*a} & {*b}) / len(b) for a, b in zip(ids.tolist(), best.tolist(), strict=True)]))
    print("recall", share)
    return share


def assert_exact(index: Index, stored: NDArray[np.float32], asked: NDArray[np.float32], **options: Any) -> None:
    """Compare a search with NumPy: the same ids, scores but for rounding."""
    ids, scores = found(index, asked, **options)
    best, exact = expected(stored, asked)
    assert np.array_equal(ids, best)
    assert np.abs(scores - exact).max() <= 1e-6


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Index]:
    """Make an index of `COUNT` images with `SEVERAL` vectors each, open for writing."""

    def create(name: str = "index", *, filled: bool = True, **options: Any) -> Index:
        index = Index.create(tmp_path / name, space=SPACE, dim=DIM, vectors_per_item=SEVERAL, **options)
        if filled:
            index.add(embeddings(), images(), space=SPACE)
        return index

    return create


# ------------------------------------------------------------------------------------------- one vector an item


def test_an_index_of_one_vector_is_unchanged_on_disk(tmp_path: Path) -> None:
    """Tables, schema version and the vector file's header are those that earlier versions wrote."""
    assert zlib.crc32(schema_of(1).encode()) == CRC_OF_SCHEMA_3
    assert header(DIM) == b"TWINSPVF" + (1).to_bytes(4, "little") + DIM.to_bytes(4, "little") + b"<f4".ljust(48, b"\0")
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        index.add(queries(3), images(3), space=SPACE)
        assert index.stats().schema_version == SCHEMA_VERSION == 3
        assert index.vectors_per_item == 1
        assert index.vectors([0]).shape == (1, DIM)
        with pytest.raises(EmbeddingError):
            index.search(queries(3)[:, None], space=SPACE)
    with closing(sqlite3.connect(tmp_path / "index" / "catalogue.sqlite")) as connection:
        columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(catalogue)")]
    assert "vectors_per_item" not in columns
    assert len(columns) == 21


# ------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("dtype", list(VectorType))
def test_exact_search_is_the_maximum(make: Callable[..., Index], dtype: VectorType) -> None:
    """Ids and scores are NumPy's over all vectors of each item, for texts and for images as queries."""
    with make(dtype=dtype) as index:
        stored = index.vectors(range(COUNT))
        assert stored.shape == (COUNT, SEVERAL, DIM)
        assert np.abs(stored - embeddings()).max() <= (0 if dtype is VectorType.FLOAT32 else 1e-3)
        assert_exact(index, stored, queries())
        assert_exact(index, stored, embeddings(5, seed=3))
        ids, scores = found(index, embeddings()[:5])
        assert ids[:, 0].tolist() == list(range(5))
        assert scores[:, 0] == pytest.approx(1.0, abs=2e-3)


def test_more_is_asked_for_than_there_is(make: Callable[..., Index]) -> None:
    """A k above the number of items gives every item once, also for an image as query."""
    with make(filled=False) as index:
        assert index.search(queries(2), k=5, space=SPACE) == [[], []]
        index.add(embeddings(7), images(7), space=SPACE)
        for asked in (queries(2), embeddings(2, seed=3)):
            ids, _ = found(index, asked, k=100)
            assert [sorted(row) for row in ids.tolist()] == [list(range(7))] * 2


def test_equal_items_tie_in_the_order_of_ids(make: Callable[..., Index]) -> None:
    """Copies of an item have equal scores wherever they stand, also where the last place is cut off between them."""
    with make(filled=False) as index:
        vectors = embeddings(3_000)
        vectors[1::2] = vectors[1]
        index.add(vectors, images(3_000), space=SPACE)
        ids, scores = found(index, vectors[1, :1], k=20)
        assert ids[0].tolist() == list(range(1, 41, 2))
        assert len(set(scores[0].tolist())) == 1


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_filters(make: Callable[..., Index], share: float) -> None:
    """A filter keeps what it keeps, with exact scores, whatever share of the items that is."""
    with make() as index:
        limit = int(share * COUNT)
        ids, scores = found(index, queries(), where=f"n < {limit}")
        best, exact = expected(embeddings(), queries(), kept=np.arange(COUNT) < limit)
        assert np.array_equal(ids, best)
        assert np.abs(scores - exact).max() <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("spec", MINIMUM_RECALL)
def test_every_kind_finds_the_best_items(make: Callable[..., Index], spec: str) -> None:
    """With all effort each item comes once, with its exact score, and nearly all of the best are found."""
    with make() as index:
        index.build(spec)
        ids, scores = found(index, queries(), effort=COUNT * SEVERAL)
        best, _ = expected(embeddings(), queries())
        exact = np.einsum("md,nqd->mnq", queries().astype(np.float64), embeddings().astype(np.float64)).max(axis=2)
        assert all(len(set(row)) == K for row in ids.tolist())
        assert np.abs(scores - np.take_along_axis(exact, ids, axis=1)).max() <= 1e-6
        assert recall(ids, best) >= MINIMUM_RECALL[spec]


@pytest.mark.slow
@pytest.mark.parametrize("spec", MINIMUM_RECALL)
def test_every_kind_with_filters_removals_and_a_tail(make: Callable[..., Index], tmp_path: Path, spec: str) -> None:
    """Nothing that was removed or filtered out is found, what came later is; also when opened again."""
    with make() as index:
        index.build(spec)
        index.remove(range(0, COUNT, 3))
        index.add(embeddings(50, seed=4), images(50, COUNT), space=SPACE)
        stored = np.concatenate([embeddings(), embeddings(50, seed=4)])
    kept = (np.arange(len(stored)) % 3 != 0) | (np.arange(len(stored)) >= COUNT)
    with Index.open(tmp_path / "index") as index:
        assert index.verify().ok
        for where, mask in ((None, kept), ("n >= 300", kept & (np.arange(len(stored)) >= 300))):
            ids, scores = found(index, queries(), where=where, effort=len(stored) * SEVERAL)
            assert mask[ids].all()
            best, _ = expected(stored, queries(), kept=mask)
            assert recall(ids, best) >= MINIMUM_RECALL[spec]
            exact = similarities(queries(), stored)
            assert np.abs(scores - np.take_along_axis(exact, ids, axis=1)).max() <= 1e-6


@pytest.mark.parametrize("spec", ["ivf", "ivf,sq8"])
def test_alike_vectors_do_not_crowd_out_other_items(spec: str) -> None:
    """Where an item's vectors are all the same, as those of texts, as many items are found as without the others."""
    alike = np.repeat(embeddings()[:, :1], SEVERAL, axis=1)
    ann = AnnIndex.build(IndexSpec.parse(spec), alike)
    _, rows = ann.search(queries(), 100, alike, effort=COUNT)
    best, _ = expected(alike, queries(), k=100)
    assert recall(rows, best) >= 0.999


@pytest.mark.slow
def test_a_built_index_is_calibrated_on_items(make: Callable[..., Index]) -> None:
    """The recall that `build` reports is that of items, reached by the effort that it stores; `tune` finds one too."""
    with make(filled=False) as index:
        index.add(embeddings(3_000), images(3_000), space=SPACE)
        report = index.build("ivf,sq8")
        assert report.rows == 3_000
        assert report.calibration is not None
        assert report.calibration.reached
        ids, _ = found(index, embeddings(3_000)[:100, 1])
        best, _ = expected(embeddings(3_000), embeddings(3_000)[:100, 1])
        assert recall(ids, best) >= 0.9
        assert index.tune(queries(), space=SPACE, recall=0.95).recall >= 0.95


def test_predictions_count_vectors(make: Callable[..., Index]) -> None:
    """Memory of an index is that of all vectors, four times that of one an item."""
    with make() as index:
        _, several = index.predict("ivf,nlist=16")
        assert several.memory_bytes >= COUNT * SEVERAL * DIM * 4


@pytest.mark.parametrize("spec", ["cagra", "gpu-flat", "gpu-ivf"])
def test_kinds_of_a_gpu_are_refused(make: Callable[..., Index], spec: str) -> None:
    """They were not measured with several vectors: an error says so, and searches go on as before."""
    with make() as index:
        with pytest.raises(InputError, match="vectors"):
            index.build(spec)
        assert_exact(index, embeddings(), queries())


def test_a_family_that_rescores_by_itself_is_refused() -> None:
    """It would rescore single vectors: an error says so before anything is built."""

    class Rescoring(IndexFamily):
        name = "rescoring"
        rescores_itself = True
        cost = build = search = save = load = __len__ = None  # type: ignore[assignment]

    known = dict(sys.modules["twinspire.index.ann.family"]._FAMILIES)
    register(Rescoring)
    try:
        with pytest.raises(InputError, match="vectors"):
            AnnIndex.build(IndexSpec.parse("rescoring"), embeddings())
    finally:
        sys.modules["twinspire.index.ann.family"]._FAMILIES.clear()
        sys.modules["twinspire.index.ann.family"]._FAMILIES.update(known)


# ------------------------------------------------------------------------------------------- changes and durability


def test_texts_have_one_vector(make: Callable[..., Index]) -> None:
    """A text is stored as its vector repeated, scores as it does alone, and is told from an image."""
    with make() as index:
        added = index.add(queries(2), [Item("/t#1", "text", "a"), Item("/t#2", "text", "b")], space=SPACE).added
        assert np.array_equal(index.vectors(added), np.repeat(queries(2)[:, None], SEVERAL, axis=1))
        ids, scores = found(index, queries(2), k=1)
        assert ids[:, 0].tolist() == added
        assert scores[:, 0] == pytest.approx(1.0, abs=1e-6)
        ids, _ = found(index, embeddings(1), k=5, kind="text")
        assert sorted(ids[0].tolist()) == added


@pytest.mark.parametrize(
    "wrong",
    [
        queries(2),  # of images
        embeddings(2)[:, :-1],
        embeddings(2)[:, :, :-1],
        embeddings(2) * 2,
        embeddings(2).astype(np.float64),
        embeddings(2)[..., None],
        np.concatenate([embeddings(1), np.full((1, SEVERAL, DIM), np.nan, np.float32)]),
    ],
)
def test_other_embeddings_are_refused(make: Callable[..., Index], wrong: NDArray[Any]) -> None:
    """Another number of vectors, of numbers, another dtype or length: an error, and nothing is added."""
    with make(filled=False) as index:
        with pytest.raises(EmbeddingError):
            index.add(wrong, images(2), space=SPACE)
        assert len(index) == 0


def test_an_update_replaces_all_vectors(make: Callable[..., Index]) -> None:
    """By as many, or by one for a text; the item keeps its id and is found by the new ones only."""
    with make() as index:
        new = embeddings(2, seed=5)
        index.update(3, embedding=new[0], space=SPACE)
        index.update(4, embedding=new[1][None], space=SPACE)
        assert np.array_equal(index.vectors([3, 4]), new)
        stored = embeddings()
        stored[3:5] = new
        assert_exact(index, stored, queries())
        index.update(5, embedding=queries(1)[0], space=SPACE)
        assert np.array_equal(index.vectors([5])[0], np.repeat(queries(1), SEVERAL, axis=0))
        for wrong in (new, new[0, :-1], new[0] * 2):
            with pytest.raises((EmbeddingError, InputError)):
                index.update(3, embedding=wrong, space=SPACE)


@pytest.mark.parametrize("dtype", list(VectorType))
def test_it_is_the_same_when_opened_again(make: Callable[..., Index], tmp_path: Path, dtype: VectorType) -> None:
    """After changes and a compaction: vectors, searches, statistics, and nothing that `verify` finds."""
    with make(dtype=dtype) as index:
        index.remove(range(100, 200))
        report = index.compact()
        assert report.dropped_rows == 100
        before, stats = index.vectors(range(100)), index.stats()
        assert stats.vectors_bytes == 64 + 500 * SEVERAL * DIM * dtype.numpy.itemsize == report.bytes_after
        assert (stats.vectors_per_item, stats.schema_version) == (SEVERAL, SEVERAL_VECTORS_VERSION)
        answers = found(index, queries())
    with Index.open(tmp_path / "index") as index:
        assert (index.vectors_per_item, index.dim, len(index)) == (SEVERAL, DIM, 500)
        assert np.array_equal(index.vectors(range(100)), before)
        assert all(np.array_equal(a, b) for a, b in zip(answers, found(index, queries()), strict=True))
        assert index.verify().ok
    with pytest.raises(InputError, match="vectors"):
        Index.open_or_create(tmp_path / "index", space=SPACE, dim=DIM)
    Index.open_or_create(tmp_path / "index", space=SPACE, dim=DIM, vectors_per_item=SEVERAL).close()


def test_damage_is_found(make: Callable[..., Index], tmp_path: Path) -> None:
    """A flipped bit of any vector of an item is reported by its item, and a vector file of another form is refused."""
    make().close()
    file = tmp_path / "index" / "vectors-1.f32"
    data = bytearray(file.read_bytes())
    data[64 + 4 * DIM * (SEVERAL * 7 + 2) + 3] ^= 0x40  # the exponent of a number of item 7's third vector
    file.write_bytes(data)
    with pytest.raises(IndexStoreError):
        Index.open(tmp_path / "index").close()
    with pytest.raises(IndexStoreError, match="header"):
        VectorFile(file, DIM, VectorType.FLOAT32)
    with pytest.raises(IndexStoreError, match="header"):
        VectorFile(file, DIM * SEVERAL, VectorType.FLOAT32)


@pytest.mark.parametrize("number", [0, -1, 1.5, "4", 10**6])
def test_other_numbers_of_vectors_are_refused(tmp_path: Path, number: Any) -> None:
    """Nothing is left of an index that cannot be."""
    with pytest.raises(InputError):
        Index.create(tmp_path / "index", space=SPACE, dim=DIM, vectors_per_item=number)
    assert list(tmp_path.iterdir()) == []


def test_exports_have_all_vectors(make: Callable[..., Index], tmp_path: Path) -> None:
    """The .npy file is (N, Q, D); Parquet has Q lists of D numbers for each item."""
    pyarrow = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
    with make() as index:
        index.remove([0])
        export_index(index, tmp_path / "all.npy")
        export_index(index, tmp_path / "all.parquet")
    assert np.array_equal(np.load(tmp_path / "all.npy"), embeddings()[1:])
    column = pyarrow.read_table(tmp_path / "all.parquet")["embedding"]
    assert np.array_equal(np.array(column.to_pylist(), np.float32), embeddings()[1:])


def _write_until_killed(folder: Path, journal: int, first: int) -> None:
    """Add an item and remove one, again and again; write to the journal what returned."""
    with Index.open(folder, mode="write") as index:
        for number in range(first, first + 10_000):
            index.add(embeddings(1, seed=1_000 + number), images(1, number), space=SPACE)
            os.write(journal, f"{number}\n".encode())
            if number % 5 == 4:
                index.remove([number - 3])


@pytest.mark.slow
def test_killed_writers_lose_nothing(make: Callable[..., Index], tmp_path: Path) -> None:
    """After each SIGKILL what was acknowledged is there with its vectors, and searches are NumPy's."""
    make(filled=False).close()
    folder, first = tmp_path / "index", 0
    draw = np.random.default_rng(0)
    for _ in range(12):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                _write_until_killed(folder, writing, first)
            finally:
                os._exit(1)
        os.close(writing)
        time.sleep(float(draw.uniform(0.1, 0.5)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reading) as journal:
            acknowledged = [int(line) for line in journal if line.endswith("\n")]
        recover_index(folder)
        with Index.open(folder, mode="write") as index:
            assert index.verify().ok
            ids = [item.id for item in index.items()]
            lost = set(acknowledged) - set(ids)
            assert all(number % 5 == 1 and number + 3 in ids for number in lost)  # removed
            numbers = [item.metadata["n"] for item in index.get(ids)]
            assert numbers == ids  # each add has the number of its id
            stored = np.concatenate([embeddings(1, seed=1_000 + number) for number in numbers])
            assert np.array_equal(index.vectors(ids), stored)
            places, _ = expected(stored, queries(5), k=min(K, len(ids)))
            answers, _ = found(index, queries(5), k=min(K, len(ids)))
            assert np.array_equal(answers, np.array(ids)[places])
            first = max(ids) + 1
