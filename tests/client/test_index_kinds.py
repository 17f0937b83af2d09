"""Index specs and families over arrays: names, predictions, candidates, exact scores, threads, batching on a GPU."""

from __future__ import annotations

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from support.arrays import unit
from twinspire.errors import IndexStoreError, InputError
from twinspire.index.ann import (
    AnnIndex,
    IndexFamily,
    IndexSpec,
    Ivf,
    SearchParameters,
    Selection,
    Speed,
    choose,
    parse_choice,
    predict,
    registered_families,
)
from twinspire.index.ann.batching import BatchingThread, SearchBatch
from twinspire.index.ann.codes import Code, Pq, Sq8
from twinspire.index.ann.tuning import QueryGroup, Setting, best_setting, check_reached, recall_by_score
from twinspire.index.flat import ScoredRows

pytestmark = pytest.mark.slow

COUNT, DIM, K = 6_000, 64, 10
KINDS = [
    "ivf",
    "ivf,sq8",
    "ivf,pq16",
    "ivf,pq32x4",
    "hnsw",
    "hnsw,sq8",
    "pca48,flat",
    "pca48,ivf",
    "pca48,hnsw",
    "pca48,ivf,pq12",
    "ivf,pq15",  # 15 parts of 64 numbers: OPQ makes 60 of them
    "binary",
]


@pytest.fixture(scope="module")
def data() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """6,000 vectors in 60 clusters and 50 queries shifted away from them, as a modality gap does."""
    draw = np.random.default_rng(5)
    centres = draw.standard_normal((60, DIM), dtype=np.float32)

    def points(count: int) -> NDArray[np.float32]:
        return centres[draw.integers(0, 60, count)] + draw.standard_normal((count, DIM), dtype=np.float32)

    gap = draw.standard_normal(DIM, dtype=np.float32)
    return unit(points(COUNT)), unit(points(50) - 0.7 * gap)


@pytest.fixture(scope="module")
def built(data: tuple[NDArray[np.float32], NDArray[np.float32]]) -> dict[str, AnnIndex]:
    """One index of each kind."""
    return {name: AnnIndex.build(IndexSpec.parse(name), data[0], threads=2) for name in KINDS}


def exactly(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Search by numpy in float64."""
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    if mask is not None:
        scores[:, ~mask] = -np.inf
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def recall(rows: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    """Return the share of the exact rows that was found."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(rows.tolist(), exact.tolist(), strict=True)]))


@pytest.mark.parametrize(
    "text",
    [*KINDS, "flat", "cagra", "gpu-flat", "gpu-ivf", "hnsw,m=32,ef_construction=200", "ivf,sq8,nlist=7"],
)
def test_kind_is_written_as_it_is_read(text: str) -> None:
    """A kind's text is the one that it was parsed from."""
    assert str(IndexSpec.parse(text)) == text


@given(
    family=st.sampled_from(list(registered_families().values())),
    pca=st.none() | st.integers(-1, 600),
    scheme=st.sampled_from([None, Sq8, Pq]),
    parts=st.integers(0, 300),
    bits=st.sampled_from([4, 8]),
    nlist=st.none() | st.integers(0, 5000),
    m=st.none() | st.integers(0, 64),
)
def test_every_kind_that_can_be_made_reads_back(
    family: type[IndexFamily],
    pca: int | None,
    scheme: type[Code] | None,
    parts: int,
    bits: int,
    nlist: int | None,
    m: int | None,
) -> None:
    """What `IndexSpec` takes, its text gives back; what it does not take is an InputError."""
    try:
        code = Pq(parts, bits) if scheme is Pq else Sq8() if scheme is Sq8 else None
        options = tuple((name, value) for name, value in (("nlist", nlist), ("m", m)) if value is not None)
        spec = IndexSpec(family=family, pca=pca, code=code, options=options)
    except InputError:
        return
    assert IndexSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "flat"),
        ("lsh", "lsh"),
        ("pca64", "pca64"),
        ("ivf,pq", "'pq'"),
        ("ivf,pq16x5", "pq16"),
        ("hnsw,pq8", "codes"),
        ("flat,sq8", "codes"),
        ("hnsw,nlist=5", "option nlist"),
        ("ivf,m=8", "option m"),
        ("pca0,ivf", "pca0"),
        ("ivf,sq8,pq8", "'pq8'"),
        ("ivf,nlist=0", "option nlist"),
        ("ivf,nlist=3,nlist=4", "'nlist=4'"),
        ("pca32,cagra", "pca32"),
        ("pca32,binary", "pca32"),
        ("binary,sq8", "codes"),
        ("binary,nlist=5", "option nlist"),
        ("cagra,sq8", "codes"),
        ("hnsw,m=1", "option m"),
        ("ivf,speed=9", "'speed=9'"),
    ],
)
def test_unknown_kind_is_an_error(text: str, word: str) -> None:
    """What is no kind is refused with what was expected."""
    with pytest.raises(InputError, match=word):
        IndexSpec.parse(text)


@pytest.mark.parametrize(("text", "number"), [("pca64,ivf", 64), ("pca32,ivf,pq48", 48), ("ivf,pq65", 65)])
def test_kind_that_vectors_do_not_suit_is_an_error(text: str, number: int) -> None:
    """A projection that shortens nothing and more parts than numbers are refused."""
    with pytest.raises(InputError, match=rf"\b{number}\b"):
        IndexSpec.parse(text).check(DIM)


@pytest.mark.parametrize(
    ("text", "least"), [("ivf,pq16", "256"), ("ivf,nlist=500", "500"), ("pca50,hnsw", "50"), ("binary", "1000")]
)
def test_too_few_vectors_are_an_error(
    text: str, least: str, data: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    """A kind says how many vectors it needs."""
    with pytest.raises(InputError, match=f" {least} "):
        AnnIndex.build(IndexSpec.parse(text), data[0][:40])


@pytest.mark.parametrize("name", KINDS)
def test_candidates_are_found_and_scored_exactly(
    name: str, built: dict[str, AnnIndex], data: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    """With all lists or a broad search every kind finds 98% of numpy's ten best, with numpy's scores."""
    vectors, queries = data
    scores, rows = built[name].search(queries, K, vectors, effort=500, rescore_factor=30)
    exact_scores, exact_rows = exactly(vectors, queries, K)
    assert recall(rows, exact_rows) >= 0.98
    of_rows = np.einsum("qd,qkd->qk", queries.astype(np.float64), vectors[rows].astype(np.float64))
    assert np.abs(scores - of_rows).max() < 2e-6, np.abs(scores - of_rows).max()
    assert (np.diff(scores, axis=1) <= 0).all()
    assert exact_scores.shape == scores.shape


def test_many_candidates_of_many_queries_take_little_memory(
    data: tuple[NDArray[np.float32], NDArray[np.float32]], built: dict[str, AnnIndex]
) -> None:
    """6,000 queries with 2,000 candidates each hold those of some queries at a time, and find what they find alone."""
    vectors, queries = data
    many, kind = np.tile(queries, (120, 1)), built["ivf,pq32x4"]
    _, alone = kind.search(queries, K, vectors, rescore_factor=200)
    tracemalloc.start()
    _, rows = kind.search(many, K, vectors, rescore_factor=200)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(rows, np.tile(alone, (120, 1)))
    assert peak < 12 * 6_000 * 2_000 / 2  # half of one score and one row of each


@pytest.mark.parametrize("share", [0.9, 0.3, 0.05])
@pytest.mark.parametrize("name", KINDS)
def test_only_selected_rows_are_found(
    name: str, share: float, built: dict[str, AnnIndex], data: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    """A selection of 90%, 30% and 5% of the rows gives 95% of numpy's ten best among these, and no other row."""
    vectors, queries = data
    mask = np.random.default_rng(3).random(COUNT) < share
    _, rows = built[name].search(queries, K, vectors, selection=Selection.of(mask), effort=200, rescore_factor=30)
    assert mask[rows[rows >= 0]].all()
    assert recall(rows, exactly(vectors, queries, K, mask)[1]) >= 0.95


@pytest.mark.parametrize("name", KINDS)
def test_many_threads_find_what_one_does(
    name: str, built: dict[str, AnnIndex], data: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    """Eight threads with efforts and selections of their own find at once what each finds alone."""
    vectors, queries = data
    ann = built[name]
    masks = [None, np.arange(COUNT) % 2 == 0, np.arange(COUNT) % 2 == 1]

    def search(number: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        mask = masks[number % 3]
        selection = Selection.of(mask) if mask is not None else None
        return ann.search(queries, K, vectors, selection=selection, effort=1 + 20 * (number % 5), rescore_factor=5)

    alone = [search(number) for number in range(15)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(search, list(range(15)) * 4))
    for number, (scores, rows) in enumerate(together):
        np.testing.assert_array_equal(rows, alone[number % 15][1])
        np.testing.assert_allclose(scores, alone[number % 15][0], atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_file_gives_back_the_same_index(
    name: str, built: dict[str, AnnIndex], data: tuple[NDArray[np.float32], NDArray[np.float32]], tmp_path: Path
) -> None:
    """What was written and read finds the same rows; its size is within 15% of what was predicted."""
    vectors, queries = data
    path = tmp_path / "some.faiss"
    with path.open("wb") as file:
        built[name].save(file)
    again = AnnIndex.read(path, IndexSpec.parse(name))
    assert len(again) == COUNT
    np.testing.assert_array_equal(again.search(queries, K, vectors)[1], built[name].search(queries, K, vectors)[1])
    predicted = predict(IndexSpec.parse(name), COUNT, DIM).memory_bytes
    assert abs(path.stat().st_size / predicted - 1) < 0.15, (path.stat().st_size, predicted)


def test_file_of_something_else_is_an_error(tmp_path: Path) -> None:
    """What FAISS cannot read is an IndexStoreError that names the file."""
    path = tmp_path / "other.faiss"
    path.write_bytes(b"nothing that FAISS wrote")
    with pytest.raises(IndexStoreError, match=r"other\.faiss"):
        AnnIndex.read(path, IndexSpec.parse("ivf"))


@pytest.mark.parametrize("name", ["ivf", "ivf,pq32x4", "hnsw,sq8", "pca48,ivf", "binary"])
def test_added_vectors_are_found(name: str, data: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    """Vectors added after the build are found under the rows that follow."""
    vectors, queries = data
    ann = AnnIndex.build(IndexSpec.parse(name), vectors[:4000])
    ann.add(vectors[4000:])
    _, rows = ann.search(queries, K, vectors, effort=500, rescore_factor=30)
    assert recall(rows, exactly(vectors, queries, K)[1]) >= 0.97
    assert (rows >= 4000).any()


def test_float16_vectors_give_scores_of_what_is_stored(
    data: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> None:
    """Candidates among float16 vectors get the inner products of those, within 1e-6."""
    vectors, queries = data[0].astype(np.float16), data[1]
    ann = AnnIndex.build(IndexSpec.parse("ivf,pq32x4"), vectors)
    scores, rows = ann.search(queries, K, vectors, effort=64, rescore_factor=30)
    exact = np.einsum("qd,qkd->qk", queries.astype(np.float64), vectors[rows].astype(np.float64))
    assert np.abs(scores - exact).max() < 1e-6
    assert recall(rows, exactly(vectors.astype(np.float32), queries, K)[1]) >= 0.97


def test_more_results_than_there_are_come_as_none(
    data: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> None:
    """A k above the size gives each row once, then -1 with a score of -inf."""
    vectors, queries = data[0][:300], data[1][:3]
    scores, rows = AnnIndex.build(IndexSpec.parse("ivf,pq16"), vectors).search(queries, 310, vectors, effort=99)
    assert [sorted(found[:300]) for found in rows.tolist()] == [list(range(300))] * 3
    assert (rows[:, 300:] == -1).all()
    assert np.isneginf(scores[:, 300:]).all()


@pytest.mark.slow
def test_equal_seeds_give_equal_indexes(data: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    """Two builds with one seed find the same; another seed has other lists."""
    vectors, queries = data
    kind = IndexSpec.parse("ivf,pq16")
    once, again, other = (AnnIndex.build(kind, vectors, seed=seed) for seed in (1, 1, 2))
    found = [ann.search(queries, K, vectors, effort=2)[1] for ann in (once, again, other)]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def tuned(
    ann: AnnIndex, vectors: NDArray[np.float32], queries: NDArray[np.float32], exact: NDArray[np.float64], recall: float
) -> Setting:
    """Return the fastest setting that reaches `recall`; an error where none does."""
    found = best_setting(ann, vectors, [QueryGroup(queries, exact.astype(np.float32))], recall)
    check_reached(ann, found, recall, exact.shape[1])
    return found


def test_tuning_finds_the_least_effort(
    built: dict[str, AnnIndex], data: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    """The setting found reaches the recall on the queries, and with less than the effort of all lists."""
    vectors, queries = data
    exact_scores, exact_rows = exactly(vectors, queries, K)
    for name in ("ivf", "ivf,pq32x4", "hnsw"):
        found = tuned(built[name], vectors, queries, exact_scores, 0.95)
        _, rows = built[name].search(queries, K, vectors, effort=found.effort, rescore_factor=found.rescore_factor)
        assert recall(rows, exact_rows) >= 0.95
        assert found.effort < built[name].index.maximum_effort


def test_recall_out_of_reach_is_an_error(data: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    """Codes of 4 bits for 64 numbers cannot reach 0.999, and it says how far they come."""
    vectors, queries = data
    ann = AnnIndex.build(IndexSpec.parse("ivf,pq1x4"), vectors)
    with pytest.raises(InputError, match=r"\b0\.\d{4}\b"):
        tuned(ann, vectors, queries, exactly(vectors, queries, K)[0], 0.999)


def test_recall_counts_what_has_the_score_of_the_last() -> None:
    """Another row with the score of the k-th is as good as that one."""
    exact = np.array([[0.9, 0.5], [0.8, 0.7]], np.float32)
    assert recall_by_score(np.array([[0.9, 0.5], [0.8, 0.2]], np.float32), exact) == 0.75


def test_prediction_grows_with_codes_and_vectors() -> None:
    """A full vector takes most memory, PQ least; twice the vectors twice as much; a graph takes longest to build."""
    speed = Speed(op_per_s=5e10)  # of one core, idle: what is measured on a busy one makes lists slower than graphs

    def of(text: str, count: int = 1_000_000) -> tuple[int, float]:
        found = predict(IndexSpec.parse(text), count, 512, threads=2, speed=speed)
        return found.memory_bytes, found.build_s

    assert of("binary")[0] == pytest.approx(4 * 512 * 1_000_000 / 32, rel=0.01)
    assert of("binary")[0] < of("ivf,pq64")[0] < of("ivf,sq8")[0] < of("ivf")[0] < of("hnsw")[0]
    assert of("ivf,pq64", 2_000_000)[0] == pytest.approx(2 * of("ivf,pq64")[0], rel=0.1)
    assert of("ivf")[1] < of("hnsw")[1]
    assert of("flat") == (0, 0.0)


def test_auto_is_exact_when_small_and_by_memory_when_large() -> None:
    """Exact below 100,000; above the longest codes that fit; exact again where nothing fits. It is no spec."""
    assert parse_choice(" Auto ") is None
    with pytest.raises(InputError, match="auto"):
        IndexSpec.parse("auto")
    assert str(choose(99_999, 512)) == "flat"
    assert str(choose(1_000_000, 512, memory_bytes=2**30)) == "ivf,pq128x4"
    assert str(choose(1_000_000, 512, memory_bytes=50 * 2**20)) == "ivf,pq64x4"
    assert str(choose(1_000_000, 512, memory_bytes=2**20)) == "flat"


def test_gathering_thread_answers_each_with_its_own(
    built: dict[str, AnnIndex], data: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    """Searches of many threads come together in few batches of one thread, and each gets what it would get alone."""
    vectors, queries = data
    ann = built["ivf"]
    threads_seen, hold = set(), threading.Event()

    def make() -> SearchBatch:
        def search(some: NDArray[np.float32], wanted: int, effort: int) -> ScoredRows:
            hold.wait(10)
            threads_seen.add(threading.get_ident())
            return ann.search(some, wanted, vectors, effort=effort)

        return search

    gathering = BatchingThread(make)

    def ask(number: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return gathering.search(queries[number : number + 2], 3 + number % 4, 8 if number % 2 else 4)

    with ThreadPoolExecutor(40) as pool:
        waiting = [pool.submit(ask, number) for number in range(40)]
        hold.set()
        found = [each.result() for each in waiting]
    for number, (scores, rows) in enumerate(found):
        wanted = 3 + number % 4
        expected = ann.search(queries[number : number + 2], wanted, vectors, effort=8 if number % 2 else 4)
        np.testing.assert_array_equal(rows, expected[1])
        np.testing.assert_allclose(scores, expected[0], atol=1e-6)
    assert len(threads_seen) == 1
    assert threading.get_ident() not in threads_seen
    assert gathering.batches <= 4
    gathering.close()
    gathering.close()
    with pytest.raises(IndexStoreError, match="closed"):
        gathering.search(queries, 3, 4)


def test_an_index_that_one_thread_owns_is_searched_by_it_alone(
    built: dict[str, AnnIndex], data: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    """A family without filters and with a thread of its own gives all threads the same, of a selection too."""
    vectors, queries = data
    seen = set()

    class Owned(Ivf):
        """Lists of the processor that are searched as a GPU's are."""

        name = "owned"
        filters = False
        splits_queries = False

        def adopt(self, index: Any) -> None:
            super().adopt(index)
            search_lists = super().search

            def make() -> SearchBatch:
                def search(queries: NDArray[np.float32], candidates: int, effort: int) -> ScoredRows:
                    seen.add(threading.get_ident())
                    return search_lists(queries, SearchParameters(candidates, candidates, effort))

                return search

            self.owner = BatchingThread(make)

        def search(self, queries: NDArray[np.float32], parameters: SearchParameters) -> ScoredRows:
            return self.owner.search(queries, parameters.candidates, parameters.effort)

    family = Owned(IndexSpec(family=Owned), threads=1)
    family.adopt(built["ivf"].index._index)  # type: ignore[attr-defined]
    ann = AnnIndex(family)
    mask = np.arange(COUNT) % 3 == 0
    with ThreadPoolExecutor(8) as pool:
        plain = list(pool.map(lambda _: ann.search(queries, K, vectors, effort=64)[1], range(20)))
        selection = Selection.of(mask)
        kept = list(pool.map(lambda _: ann.search(queries, K, vectors, selection=selection)[1], range(20)))
    for rows in plain:
        np.testing.assert_array_equal(rows, built["ivf"].search(queries, K, vectors, effort=64)[1])
    for rows in kept:
        assert mask[rows[rows >= 0]].all()
        assert recall(rows, exactly(vectors, queries, K, mask)[1]) >= 0.95
    assert len(seen) == 1
    family.owner.close()


def test_gathering_thread_hands_errors_on(data: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    """An error of the index goes to who asked, the thread lives on; one while it is made goes to who made it."""
    calls = []

    def make() -> SearchBatch:
        def search(some: NDArray[np.float32], wanted: int, effort: int) -> ScoredRows:
            calls.append(len(some))
            if len(calls) == 1:
                raise RuntimeError("out of memory")
            return np.zeros((len(some), wanted), np.float32), np.zeros((len(some), wanted), np.int64)

        return search

    gathering = BatchingThread(make)
    with pytest.raises(RuntimeError, match="out of memory"):
        gathering.search(data[1], 2, 1)
    assert gathering.search(data[1], 2, 1)[1].shape == (50, 2)
    gathering.close()

    def fail() -> SearchBatch:
        raise InputError("no such device")

    with pytest.raises(InputError, match="no such device"):
        BatchingThread(fail)
