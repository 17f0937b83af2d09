"""`twinspire bench index`: the generator, HDF5, recall, processes, the record."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from twinspire.cli import main
from twinspire.errors import EngineError, InputError
from twinspire_bench.index.inputs import SyntheticVectors, generate, read_hdf5
from twinspire_bench.index.measurement import IndexTask, best_at, building, recall_of
from twinspire_bench.index.run import IndexRequest, measure_index
from twinspire_bench.worker import Worker
from twinspire_eval.records import Record

PINNED = [0.057714, 0.368628, 0.927784]


def test_material_is_pinned(tmp_path: Path) -> None:
    """The same seed draws the same unit vectors, queries lie as far as a modality gap shifts them."""
    drawn = SyntheticVectors(size=3_000, dim=64, queries=40, clusters=20, seed=3)
    once, again = generate(drawn, tmp_path / "a"), generate(drawn, tmp_path / "b")
    np.testing.assert_array_equal(once.vectors, again.vectors)
    np.testing.assert_array_equal(once.queries, again.queries)
    np.testing.assert_allclose(np.linalg.norm(once.vectors, axis=1), 1, atol=1e-6)
    exact = np.sort(once.queries.astype(np.float64) @ once.vectors.T.astype(np.float64), axis=1)[:, ::-1]
    assert np.abs(once.exact_scores - exact[:, : once.exact_scores.shape[1]]).max() < 1e-6
    assert 0.1 < once.exact_scores[:, 0].mean() < 0.5  # among themselves, items of a cluster have 0.7
    assert float(once.vectors[0] @ once.vectors.mean(axis=0)) > float(once.queries[0] @ once.vectors.mean(axis=0))


def test_figures_of_the_generator_stay(tmp_path: Path) -> None:
    """Records of different days are compared: the first numbers of the smallest material are these."""
    made = generate(SyntheticVectors(size=4, dim=3, queries=2, clusters=2), tmp_path)
    again = generate(SyntheticVectors(size=4, dim=3, queries=2, clusters=2), tmp_path)  # what is there is taken
    np.testing.assert_array_equal(made.vectors, again.vectors)
    np.testing.assert_allclose(made.vectors[0], PINNED, atol=1e-6)


def test_folder_of_other_material_is_refused(tmp_path: Path) -> None:
    """What another call drew there is not overwritten."""
    generate(SyntheticVectors(size=4, dim=3, queries=2), tmp_path)
    with pytest.raises(InputError, match=tmp_path.name):
        generate(SyntheticVectors(size=5, dim=3, queries=2), tmp_path)


def test_hdf5_of_ann_benchmarks_is_read(tmp_path: Path) -> None:
    """`train` and `test` of an angular file come at length 1, and exact search over them is the truth."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    draw = np.random.default_rng(1)
    train, test = draw.standard_normal((300, 8)).astype("f4"), draw.standard_normal((9, 8)).astype("f4")
    with h5py.File(tmp_path / "some-8-angular.hdf5", "w") as file:
        file["train"], file["test"] = train, test
        file.attrs["distance"] = "angular"
    made = read_hdf5(tmp_path / "some-8-angular.hdf5", tmp_path / "work", queries=5)
    np.testing.assert_allclose(made.vectors, train / np.linalg.norm(train, axis=1, keepdims=True), atol=1e-6)
    assert made.queries.shape == (5, 8)
    cosines = (test[:5] / np.linalg.norm(test[:5], axis=1, keepdims=True)) @ made.vectors.T
    np.testing.assert_allclose(made.exact_scores[:, 0], cosines.max(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("distance", "name", "message"), [("euclidean", "train", "euclidean"), ("angular", "x", "train")]
)
def test_other_hdf5_is_refused(distance: str, name: str, message: str, tmp_path: Path) -> None:
    """Other distances and other files are errors that say what was expected."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(tmp_path / "some.hdf5", "w") as file:
        file[name] = file["test"] = np.ones((3, 2), np.float32)
        file.attrs["distance"] = distance
    with pytest.raises(InputError, match=message):
        read_hdf5(tmp_path / "some.hdf5", tmp_path / "work")
    (tmp_path / "torn.hdf5").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"torn\.hdf5"):
        read_hdf5(tmp_path / "torn.hdf5", tmp_path / "torn")


def test_recall_counts_each_row_once() -> None:
    """A row given twice counts once, -1 counts nothing, one as good as the k-th counts."""
    vectors = np.array([[1, 0], [0.8, 0.6], [0.8, 0.6], [0, 1]], np.float32)
    queries, truth = np.array([[1, 0]], np.float32), np.array([[1, 0.8]], np.float32)
    for rows, expected in (([0, 1], 1.0), ([0, 2], 1.0), ([0, 0], 0.5), ([0, -1], 0.5), ([3, -1], 0.0)):
        assert recall_of(np.array([rows]), vectors, queries, truth) == expected


def test_best_point_is_the_fastest_that_reaches() -> None:
    """Of the points above the recall the fastest is taken, none where none is."""
    points = [{"recall": 0.9, "queries_per_s": 9.0}, {"recall": 0.96, "queries_per_s": 5.0}]
    points += [{"recall": 0.97, "queries_per_s": 7.0}]
    assert best_at(points, 0.95) == points[2]
    assert best_at(points, 0.99) is None


@pytest.mark.parametrize("name", ["hnswlib,ef=3", "usearch,m=x", "annoy", "scann,m=16"])
def test_unknown_index_is_an_error(name: str, tmp_path: Path) -> None:
    """What is neither an index of ours nor a peer with its options is refused, and nothing is built."""
    with pytest.raises(InputError, match=name.split(",")[0]):
        measure_index(IndexRequest(synthetic=[SyntheticVectors(size=50, dim=8)], peers=[name], work=tmp_path))
    assert not list(tmp_path.iterdir())


def test_process_that_fails_says_why(tmp_path: Path) -> None:
    """The error of a process that failed names what it did and the cause."""
    task = IndexTask(
        spec="ivf", module="twinspire.index.ann", threads=1, vectors=str(tmp_path), file="f", k=10, recall=0.95
    )
    with (
        pytest.raises(EngineError, match=r"vectors\.npy"),
        Worker(building, asdict(task), label="building ivf") as worker,
    ):
        worker.call()


@pytest.mark.slow
def test_20000_vectors_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Own kinds and both peers on 20,000 vectors: PQ finds 98% in an eighth of the memory, all reach 0.95, a record."""
    for peer in ("hnswlib", "usearch"):
        pytest.importorskip(peer, reason=f"{peer} is not installed")
    options = [
        "--distribution",
        "clusters",
        "--size",
        "20000",
        "--dim",
        "64",
        "--queries",
        "100",
        "--threads",
        "2",
        "--adds",
        "1024",
    ]
    names = ["flat", "ivf,pq16x4", "hnswlib,m=8,ef_construction=32", "usearch,m=8,ef_construction=32"]
    for name in names:
        options += ["--peer" if name.startswith(("hnswlib", "usearch")) else "--spec", name]
    work, record = ["--work", str(tmp_path / "work")], ["--json", str(tmp_path / "record.json")]
    for more in (["--build-only"], record):
        with pytest.raises(SystemExit) as ended:
            main(["bench", "index", *options, *work, *more])
        assert not ended.value.code
    table = capsys.readouterr().out
    whole = Record.load(tmp_path / "record.json").results
    results = whole["distributions"]["clusters"]
    assert list(results["variants"]) == names
    for name, found in results["variants"].items():
        assert name in table
        assert found["at_recall"]["recall"] >= 0.95, name
        assert found["queries_per_s"] > 0, name
        assert found["single_query_ms"] > 0, name
    assert max(point["recall"] for point in results["variants"]["flat"]["points"]) == 1
    coded = results["variants"]["ivf,pq16x4"]
    assert max(point["recall"] for point in coded["points"]) >= 0.98
    assert coded["memory_bytes"] < results["flat_memory_bytes"] / 2
    assert coded["file_bytes"] < results["flat_memory_bytes"] / 8
    assert whole["durable_add_per_s"] > 0
    document = json.loads((tmp_path / "record.json").read_text())
    assert document["results"]["distributions"]["clusters"]["vectors"] == 20_000


def test_request_needs_one_material() -> None:
    """Neither or both of what is drawn and what is read are errors, as is a recall above 1."""
    with pytest.raises(InputError, match="--hdf5"):
        IndexRequest()
    with pytest.raises(InputError, match="recall"):
        IndexRequest(synthetic=[SyntheticVectors(size=10, dim=4)], recall=1.1)


def test_spec_is_checked_before_anything_is_measured(tmp_path: Path) -> None:
    """An unknown spec is an error at once, and nothing was built."""
    vectors = SyntheticVectors(size=50, dim=8, queries=2)
    with pytest.raises(InputError, match="lsh"):
        measure_index(IndexRequest(synthetic=[vectors], specs=["flat", "lsh"], work=tmp_path))
    assert not list(tmp_path.rglob("*.index"))
