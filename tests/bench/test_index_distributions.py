"""Distributions of `twinspire bench index`: pinned generators, the option, and ScaNN in an environment of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from twinspire.cli import main
from twinspire.errors import InputError
from twinspire_bench.index.inputs import Distribution, SyntheticVectors, generate
from twinspire_bench.index.peers import check_scann
from twinspire_bench.index.run import IndexRequest, measure_index
from twinspire_eval.records import Record

PINNED = {Distribution.POWER_LAW: [-0.844039, -0.30305, 0.442447], Distribution.SPECTRUM: [0.15035, -0.17197, 0.973561]}


@pytest.mark.parametrize("distribution", list(Distribution))
def test_vectors_and_queries_are_unit_and_reproducible(distribution: Distribution, tmp_path: Path) -> None:
    """The same seed gives the same vectors of length 1, another seed others."""
    first, again, other = (
        generate(SyntheticVectors(size=500, dim=16, queries=20, distribution=distribution, seed=seed), tmp_path / name)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    np.testing.assert_array_equal(first.vectors, again.vectors)
    np.testing.assert_array_equal(first.queries, again.queries)
    assert np.abs(first.vectors - other.vectors).max() > 0.1
    for found in (first.vectors, first.queries):
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("distribution", list(PINNED))
def test_figures_of_the_generators_stay(distribution: Distribution, tmp_path: Path) -> None:
    """Records of different days are compared: the first numbers of the smallest vectors are these."""
    made = generate(SyntheticVectors(size=4, dim=3, queries=2, distribution=distribution), tmp_path)
    np.testing.assert_allclose(made.vectors[0], PINNED[distribution], atol=1e-6)


def test_clusters_have_power_law_sizes_and_queries_a_gap(tmp_path: Path) -> None:
    """Half of the items lie in few of the clusters; items are nearer to their mean than queries are."""
    drawn = SyntheticVectors(size=4_000, dim=32, queries=200, distribution=Distribution.POWER_LAW)
    assert drawn.clusters == 20_000
    made = generate(drawn, tmp_path)
    mean = made.vectors.mean(axis=0)
    assert (made.vectors @ mean).mean() > (made.queries @ mean).mean() + 0.2
    near = np.sort(made.vectors @ made.vectors[:200].T, axis=0)
    share = (near > 0.75).mean()  # were the clusters equal, about 1 item in 20,000 would be of the same
    assert share > 0.001


def test_spectrum_has_variances_of_its_power_and_no_gap(tmp_path: Path) -> None:
    """The variances of the directions fall as i^-0.8, queries have the mean of items."""
    made = generate(SyntheticVectors(size=20_000, dim=64, queries=2_000, distribution=Distribution.SPECTRUM), tmp_path)
    variances = np.linalg.eigvalsh(np.cov(made.vectors.T))[::-1]
    slope = np.polyfit(np.log(np.arange(1, 65)), np.log(variances), 1)[0]
    assert abs(slope + 0.8) < 0.08, slope
    assert np.linalg.norm(made.vectors.mean(axis=0) - made.queries.mean(axis=0)) < 0.05


def test_spectrum_has_no_clusters() -> None:
    """A number of clusters for the distribution without is an error."""
    with pytest.raises(InputError, match="clusters"):
        SyntheticVectors(size=10, dim=4, clusters=5, distribution=Distribution.SPECTRUM)


def test_one_distribution_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--distribution spectrum` measures that one, and its table and record name it."""
    options = ["--size", "300", "--dim", "8", "--queries", "7", "--threads", "1", "--adds", "0", "--spec", "flat"]
    record = tmp_path / "record.json"
    with pytest.raises(SystemExit) as ended:
        main(["bench", "index", "--distribution", "spectrum", *options, "--peer", "none", "--json", str(record)])
    assert not ended.value.code
    assert "spectrum" in capsys.readouterr().out
    assert Record.load(record).parameters["distributions"] == ["spectrum"]


def test_unknown_distribution_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is none is refused with those that are."""
    with pytest.raises(SystemExit) as ended:
        main(["bench", "index", "--distribution", "zipf", "--size", "10"])
    assert ended.value.code
    assert "power-law" in capsys.readouterr().err


@pytest.mark.parametrize("python", [None, Path("/nowhere/python"), Path(sys.executable)])
def test_scann_that_is_not_there_is_a_clear_error(python: Path | None, tmp_path: Path) -> None:
    """Without an interpreter that can import ScaNN the error says how to make one, before anything is generated."""
    request = IndexRequest(
        synthetic=[SyntheticVectors(size=50, dim=8, queries=2)],
        specs=["flat"],
        peers=["scann"],
        scann_python=python,
        work=tmp_path,
    )
    with pytest.raises(InputError, match="--scann-python"):
        measure_index(request)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_run_without_scann_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """By default the command says on standard error that ScaNN is not measured, and how it would be."""
    for peer in ("hnswlib", "usearch"):
        pytest.importorskip(peer, reason=f"{peer} is not installed")
    options = ["--size", "300", "--dim", "8", "--queries", "7", "--threads", "1", "--adds", "0", "--spec", "flat"]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "index", "--distribution", "clusters", *options])
    assert not ended.value.code
    assert "--scann-python" in capsys.readouterr().err


def test_scann_is_measured_by_its_own_interpreter(tmp_path: Path) -> None:
    """ScaNN is built, stored, loaded and searched; it reaches a recall of 0.9 (set TWINSPIRE_SCANN_PYTHON)."""
    given = os.environ.get("TWINSPIRE_SCANN_PYTHON")
    if given is None:
        pytest.skip("TWINSPIRE_SCANN_PYTHON names no interpreter with ScaNN")
    python = check_scann(Path(given))
    record = measure_index(
        IndexRequest(
            synthetic=[SyntheticVectors(size=3_000, dim=32, queries=50, clusters=50)],
            specs=["flat"],
            peers=["scann"],
            scann_python=python,
            threads=2,
            recall=0.9,
            adds=0,
            work=tmp_path,
        )
    )
    found = record.results["distributions"]["clusters"]["variants"]["scann"]
    assert found["at_recall"]["recall"] >= 0.9
    assert found["queries_per_s"] > 0
    assert found["version"]
    assert found["file_bytes"] > 3_000 * 32 * 4
