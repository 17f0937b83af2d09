"""A family of indexes that is registered from outside: built, searched, reopened, benchmarked, with no other change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index import Index, Item, ItemKind, snapshots
from twinspire.index.ann import IndexFamily, IndexSpec, family
from twinspire_bench.index.inputs import SyntheticVectors
from twinspire_bench.index.run import IndexRequest, measure_index

SPACE, DIM, COUNT, K = "space", 16, 2_000, 10


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[IndexFamily]]:
    """Import the module that registers the toy family, as a user's package would be; forget both afterwards."""
    monkeypatch.setattr(family, "_FAMILIES", dict(family.registered_families()))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield import_module("toy_index_family").Toy
    del sys.modules["toy_index_family"]


def drawn(count: int, seed: int) -> NDArray[np.float32]:
    """Draw unit vectors."""
    vectors = np.random.default_rng(seed).standard_normal((count, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_registered_family_is_parsed_with_its_options(toy: type[IndexFamily]) -> None:
    """Spec strings name it, take its options within their range and nothing that it does not take."""
    spec = IndexSpec.parse("toy,parts=3")
    assert (spec.family, str(spec), spec.option("parts")) == (toy, "toy,parts=3", 3)
    for wrong in ("toy,parts=9", "toy,m=4", "toy,sq8", "pca8,toy"):
        with pytest.raises(InputError, match="toy"):
            IndexSpec.parse(wrong)
    with pytest.raises(InputError, match="toy"):
        IndexSpec.parse("unknown")


@pytest.mark.usefixtures("toy")
def test_an_index_of_a_registered_family_is_built_searched_and_reopened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Index.build("toy")` answers as NumPy does: at once, from its file, with filters, additions and removals."""
    monkeypatch.setattr(snapshots, "EXACT_KEPT", 50)
    monkeypatch.setattr(snapshots, "TAIL_ROWS", 500)
    vectors, queries = drawn(COUNT, 1), drawn(20, 2)
    items = [Item(f"/{n}.jpg", ItemKind.IMAGE, metadata={"n": n}) for n in range(COUNT)]

    def expected(allowed: NDArray[np.bool_]) -> list[list[int]]:
        scores = np.where(allowed, queries.astype(np.float64) @ vectors.T.astype(np.float64), -np.inf)
        return np.argsort(-scores, axis=1, kind="stable")[:, :K].tolist()

    def found(index: Index, where: str | None = None) -> list[list[int]]:
        return [[hit.id for hit in row] for row in index.search(queries, k=K, space=SPACE, where=where)]

    numbers = np.arange(COUNT)
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        index.add(vectors[:1_200], items[:1_200], space=SPACE)
        report = index.build("toy,parts=2")
        assert (report.spec, report.predicted.memory_bytes) == ("toy,parts=2", 4 * 1_200 * DIM)
        assert found(index) == expected(numbers < 1_200)
    with Index.open(tmp_path / "index", mode="write") as index:
        assert found(index) == expected(numbers < 1_200)
        assert found(index, "n < 700") == expected(numbers < 700)
        index.add(vectors[1_200:], items[1_200:], space=SPACE)  # more than the tail may hold
        stats = index.stats().snapshot
        assert stats is not None
        assert (stats.spec, stats.rows, stats.damage) == ("toy,parts=2", COUNT, None)
        index.remove(range(100))
        assert found(index) == expected(numbers >= 100)


@pytest.mark.usefixtures("toy")
def test_a_registered_family_appears_in_the_benchmark(tmp_path: Path) -> None:
    """The benchmark builds and searches it in processes of its own, beside exact search, and finds everything."""
    inputs = SyntheticVectors(size=1_000, dim=8, queries=20, clusters=10)
    record = measure_index(
        IndexRequest(synthetic=[inputs], specs=["flat", "toy"], peers=(), threads=1, adds=0, work=tmp_path)
    )
    measured = record.results["distributions"]["clusters"]["variants"]
    assert list(measured) == ["flat", "toy"]
    assert measured["toy"]["at_recall"]["recall"] == 1
    assert measured["toy"]["file_bytes"] == 16 + 4 * 1_000 * 8
    assert measured["toy"]["queries_per_s"] > 0
