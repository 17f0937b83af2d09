"""Binary codes: what they find, against exact search and NumPy's sums of signs, and in what memory."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from support.arrays import unit
from twinspire.cli.app import main
from twinspire.errors import InputError
from twinspire.index import Index, Item, ItemKind
from twinspire.index.ann import AnnIndex, IndexSpec, Selection
from twinspire_bench.index.inputs import Distribution, SyntheticVectors, generated

SPEC = IndexSpec.parse("binary")
SPACE = "f" * 64


def _drawn(count: int, dim: int, *, seed: int = 0, offset: float = 0.0) -> NDArray[np.float32]:
    """Draw unit vectors around a direction, from which the distance of the origin is `offset`."""
    draw = np.random.default_rng(seed)
    return unit(draw.standard_normal((count, dim), dtype=np.float32) + np.float32(offset))


def _exact(vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> NDArray[np.float64]:
    """Return the scores of exact search by NumPy in float64, best first."""
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    return -np.sort(-scores, axis=1)[:, :k]


def _recall(scores: NDArray[np.float32], exact: NDArray[np.float64]) -> float:
    return float((scores >= exact[:, -1:] - 1e-6).mean())


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    count=st.integers(1_000, 1_300),
    dim=st.integers(8, 70),
    k=st.integers(1, 60),
    offset=st.sampled_from([0.0, 0.5, 3.0]),
    seed=st.integers(0, 2**32 - 1),
)
@example(count=1_000, dim=1, k=3, offset=3.0, seed=2)  # all items have the opposite signs of some queries'
@example(count=1_100, dim=8, k=60, offset=9.0, seed=0)
def test_all_candidates_give_what_exact_search_gives(count: int, dim: int, k: int, offset: float, seed: int) -> None:
    """With every item a candidate the scores are those of exact search, whatever the number of dimensions."""
    vectors, queries = _drawn(count, dim, seed=seed, offset=offset), _drawn(7, dim, seed=seed + 1)
    with TemporaryDirectory() as folder, Index.create(Path(folder, "i"), space=SPACE, dim=dim) as index:
        index.add(vectors, _items(count), space=SPACE)
        index.build("binary")
        found = index.search(queries, k=k, space=SPACE, effort=count)
    scores = np.array([[hit.score for hit in hits] for hits in found])
    difference = np.abs(scores - _exact(vectors, queries, k)).max()
    assert difference <= 2e-6, f"largest difference {difference:.2e}"
    assert all(len({hit.id for hit in hits}) == k for hits in found)


@pytest.mark.parametrize("dim", [6, 64, 127])
def test_candidates_are_those_of_the_greatest_sums_of_signs(dim: int) -> None:
    """Of 100 candidates the best are found as among NumPy's 100 of the greatest sums of the query by items' signs."""
    vectors, queries = _drawn(3_000, dim, offset=0.3), _drawn(50, dim, seed=1)
    sums = queries.astype(np.float64) @ np.where(vectors > 0, 1.0, -1.0).T
    scores, _ = AnnIndex.build(SPEC, vectors).search(queries, 10, vectors, effort=100)
    candidates = np.argsort(-sums, axis=1, kind="stable")[:, :100]
    expected = np.einsum("qd,qcd->qc", queries, vectors[candidates])
    own, numpy = (
        _recall(-np.sort(-found, axis=1)[:, :10], _exact(vectors, queries, 10)) for found in (scores, expected)
    )
    # Equal sums come in any order, and FAISS adds numbers of 8 bits.
    assert abs(own - numpy) <= 0.02, (own, numpy)


@pytest.mark.parametrize("distribution", list(Distribution))
def test_the_generated_distributions_are_found(distribution: Distribution) -> None:
    """A recall@10 of 0.95 takes at most 400 of 10,000 candidates on each of the benchmark's distributions."""
    items, asked = generated(SyntheticVectors(size=10_000, dim=128, queries=100, distribution=distribution))
    vectors = np.concatenate(list(items))
    queries = np.concatenate(list(asked))
    vectors, queries = unit(vectors), unit(queries)
    scores, _ = AnnIndex.build(SPEC, vectors).search(queries, 10, vectors, effort=400)
    found = _recall(scores, _exact(vectors, queries, 10))
    assert found >= 0.95, found


def test_more_results_have_more_candidates() -> None:
    """The effort is for ten results: a hundred are found as well with the same one."""
    vectors, queries = _drawn(5_000, 64), _drawn(50, 64, seed=1)
    ann = AnnIndex.build(SPEC, vectors)
    recalls = [_recall(ann.search(queries, k, vectors, effort=300)[0], _exact(vectors, queries, k)) for k in (10, 100)]
    assert recalls[1] >= recalls[0] - 0.01, recalls


def test_a_selection_costs_no_recall() -> None:
    """Where a filter keeps a tenth, as many of its best are found as of all."""
    vectors, queries = _drawn(10_000, 64), _drawn(50, 64, seed=1)
    mask = np.arange(10_000) % 10 == 3
    scores, rows = AnnIndex.build(SPEC, vectors).search(queries, 10, vectors, effort=200, selection=Selection.of(mask))
    assert (rows % 10 == 3).all()
    assert _recall(scores, _exact(vectors[mask], queries, 10)) >= 0.95


def test_codes_take_a_32nd_of_the_memory(tmp_path: Path) -> None:
    """The file of an index has a bit for each number, and little more."""
    vectors = _drawn(20_000, 256)
    with (tmp_path / "codes").open("wb") as file:
        AnnIndex.build(SPEC, vectors).save(file)
    assert (tmp_path / "codes").stat().st_size / vectors.nbytes == pytest.approx(1 / 32, rel=0.05)


# Indexes


def _items(count: int, start: int = 0) -> list[Item]:
    return [
        Item(f"/{start + number}", ItemKind.IMAGE, content_hash=f"{start + number:064x}") for number in range(count)
    ]


def test_it_grows_with_what_is_added(tmp_path: Path) -> None:
    """An index that grew tenfold since it was built finds what was added as well as the rest."""
    vectors, queries = _drawn(11_000, 64), _drawn(50, 64, seed=1)
    with Index.create(tmp_path / "i", space=SPACE, dim=64) as index:
        index.add(vectors[:1_000], _items(1_000), space=SPACE)
        report = index.build("binary")
        assert report.calibration is not None
        assert report.calibration.effort_name == "candidates"
        assert report.calibration.rescored_candidates == report.calibration.effort > 0
        for start in range(1_000, 11_000, 5_000):
            index.add(vectors[start : start + 5_000], _items(5_000, start), space=SPACE)
        found = index.search(queries, k=10, space=SPACE, effort=600)
        scores = np.array([[hit.score for hit in hits] for hits in found], np.float32)
        assert _recall(scores, _exact(vectors, queries, 10)) >= 0.95


def test_below_1000_items_search_is_exact_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """999 items are refused, with what to do, and searched exactly; so are those of an index that became as small."""
    vectors, queries = _drawn(1_200, 16), _drawn(20, 16, seed=1)
    with Index.create(tmp_path / "i", space=SPACE, dim=16) as index:
        index.add(vectors[:999], _items(999), space=SPACE)
        with pytest.raises(InputError, match=r"at least 1000 vectors, got 999.*exactly \(flat\)"):
            index.build("binary")
        index.add(vectors[999:], _items(201, 999), space=SPACE)
        index.build("binary")
        index.remove(range(900))
        with caplog.at_level(logging.WARNING, "twinspire.index"):
            index.compact()
        assert "searched exactly from now on" in caplog.text
        assert index.stats().snapshot is None
        scores = np.array([[hit.score for hit in hits] for hits in index.search(queries, k=10, space=SPACE)])
        assert np.abs(scores - _exact(vectors[900:], queries, 10)).max() <= 2e-6


def test_commands_build_and_tune_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`build` says how many candidates reach the recall, `tune` sets another; below 1,000 items `build` refuses."""

    def run(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["index", *arguments])
        return ended.value.code, *capsys.readouterr()

    for count in (500, 3_000):
        with Index.create(tmp_path / str(count), space=SPACE, dim=64) as index:
            index.add(_drawn(count, 64), _items(count), space=SPACE)
    status, _, error = run("build", str(tmp_path / "500"), "--spec", "binary")
    assert status == 2
    assert "1000" in error
    assert "flat" in error
    status, out, _ = run("build", str(tmp_path / "3000"), "--spec", "binary")
    assert not status
    assert "; candidates " in out
    assert "rescored" not in out
    status, out, _ = run("tune", str(tmp_path / "3000"), "--recall", "0.8")
    assert not status
    assert out.startswith("binary: effort ")
    assert "rescore factor" not in out
