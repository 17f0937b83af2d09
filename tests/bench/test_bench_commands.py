"""`twinspire bench`, as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from twinspire.cli.app import application
from twinspire.errors import BundleError, InputError, MissingDependencyError
from twinspire_eval.records import Record
from twinspire_eval.statistics import percentiles
from twinspire_server.repository import build_repository
from twinspire_server.triton import TritonServer, find_triton


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(application(), ["bench", *map(str, arguments)])


def _printed(*arguments: object) -> str:
    found = _run(*arguments)
    if found.exception is not None:
        raise found.exception
    return found.stdout


@pytest.fixture(scope="module")
def measured(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The record of a run on the tiny bundle, and what it printed."""
    path = tmp_path_factory.mktemp("records") / "latency.json"
    options = ["--provider", "cpu", "--threads", "1", "--batch", "1,4", "--lengths", "8", "--lengths", "20"]
    options += ["--rounds", "3", "--visit", "0.01", "--rate", "200", "--json", str(path)]
    return path, _printed("latency", "--bundle", tiny.bundle.path, *options)


@pytest.mark.slow
def test_latency_prints_the_limit_first_and_then_the_tables(measured: tuple[Path, str]) -> None:
    """Peaks, the theoretical limit, the image tower and the text tower, in this order, nothing cut off."""
    _, printed = measured
    places = [printed.index(words) for words in ("TFLOP/s", "limit", "images/s", "texts/s")]
    assert places == sorted(places)
    assert "…" not in printed
    for words in ("images/s", "texts/s", "p50 ms", "p99 ms", "fp32 cpu", "int8 cpu", "200 calls a second"):
        assert words in printed


def test_latency_writes_the_record(tiny: Any, measured: tuple[Path, str]) -> None:
    """Each case is there with its samples, whose percentiles are those beside them."""
    record = Record.load(measured[0])
    assert record.kind == "latency"
    assert record.parameters["batches"] == [1, 4]
    assert record.parameters["lengths"] == [8, 20]
    assert record.parameters["loads"] == ["in flight 1", "200 calls a second"]
    assert record.subject["engines"]["image int8"] == tiny.bundle.manifest.engines["image"]["int8"].sha256
    settings = record.results["text"]["int8 cpu"]
    assert len(settings) == 2 * 2 * 2
    for case in settings.values():
        assert len(case["texts_per_s"]["samples"]) == 3
        samples = case["latency_ms"]["samples"]
        if samples:
            assert case["latency_ms"]["p95"] == pytest.approx(percentiles(samples).p95)
        assert case["share_of_limit"] < 1
    assert record.results["image"]["fp32 cpu"]["batch 4, in flight 1"]["ratio_to_first"] is None


def test_compare_shows_both_records(measured: tuple[Path, str], tmp_path: Path) -> None:
    """A record beside one twice as slow: ratios of 0.5 with an interval about it."""
    path, _ = measured
    document = json.loads(path.read_text(encoding="utf-8"))
    for case in document["results"]["image"]["fp32 cpu"].values():
        per_s = case["images_per_s"]
        per_s["median"], per_s["samples"] = per_s["median"] / 2, [value / 2 for value in per_s["samples"]]
    slow = tmp_path / "slow.json"
    slow.write_text(json.dumps(document), encoding="utf-8")
    lines = _printed("compare", path, slow).splitlines()
    (row,) = [line for line in lines if "image · fp32 cpu · batch 4, in flight 1 · images_per_s · median" in line]
    assert " 0.5 " in row
    assert " to " in row
    assert any("latency_ms · p99" in line for line in lines)


def test_compare_refuses_what_was_measured_elsewhere_or_otherwise(measured: tuple[Path, str], tmp_path: Path) -> None:
    """The error names each field that differs, and no table is printed."""
    path, _ = measured
    document = json.loads(path.read_text(encoding="utf-8"))
    document["hardware"]["cpu_model"] = "Another"
    document["parameters"]["batches"] = [1]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document), encoding="utf-8")
    found = _run("compare", path, other)
    assert isinstance(found.exception, InputError)
    assert "hardware.cpu_model" in str(found.exception)
    assert "parameters.batches" in str(found.exception)
    assert found.stdout == ""


@pytest.mark.slow
def test_the_sample_is_measured_where_no_bundle_is_named() -> None:
    """`twinspire bench latency` alone works on what is installed."""
    printed = _printed("latency", "--rounds", 1, "--visit", 0.001, "--batch", 1, "--lengths", 8, "--provider", "cpu")
    assert "images/s" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "1,x"], "--batch"),
        (["--batch", "0"], "batches"),
        (["--lengths", "21"], "context"),
        (["--in-flight", "1.5"], "--in-flight"),
        (["--rate", "often"], "--rate"),
        (["--rate", "0"], "rate_per_s"),
        (["--json", "missing/record.json"], "missing/record.json"),
        (["--url", "127.0.0.1:1", "--precision", "int8"], "precision"),
        (["--provider", "npu"], "npu"),
        (["--visit", "0"], "visit_s"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_measured(tiny: Any, options: list[str], message: str) -> None:
    """The error says what came; nothing is printed."""
    found = _run("latency", "--bundle", tiny.bundle.path, *options)
    assert isinstance(found.exception, InputError)
    assert message in str(found.exception)
    assert found.stdout == ""


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    """The error is the bundle's own."""
    assert isinstance(_run("latency", "--bundle", tmp_path).exception, BundleError)


@pytest.fixture(scope="module")
def server(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A real Triton that serves the tiny bundle."""
    try:
        find_triton()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    repository = tmp_path_factory.mktemp("served") / "repository"
    build_repository([tiny.bundle.path], repository, precision="fp32", threads=1)
    with TritonServer(repository) as started:
        yield started


@pytest.mark.slow
def test_a_server_is_measured(tiny: Any, server: TritonServer, tmp_path: Path) -> None:
    """With --url the calls go to the server: it counts them, and with 8 in flight it makes batches."""
    path = tmp_path / "served.json"
    options = ["--url", server.grpc_url, "--in-flight", "1,8", "--lengths", "20", "--rounds", "2", "--visit", "0.3"]
    printed = _printed("latency", "--bundle", tiny.bundle.path, *options, "--json", path)
    assert "Triton" in printed
    assert "mean batch" in printed
    record = Record.load(path)
    assert record.parameters["where"] == "served"
    for tower in ("image", "text"):
        for name, case in record.results[tower]["served"].items():
            assert case["failures"] == {}, name
            answered = len(case["latency_ms"]["samples"])
            # Triton counts an answer a moment after it was given: those in flight at the end of each of two rounds.
            assert answered - 2 * 8 <= case["served"]["requests"] <= answered
            assert case["share_of_limit"] is None
        alone = record.results[tower]["served"]
        batches = [case["served"]["mean_batch"] for case in alone.values()]
        assert batches[0] == pytest.approx(1, abs=0.05)
        assert batches[1] > 1  # the model joins what Triton hands over, which this does not count
