"""Two records side by side, and those that must not be."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from twinspire.errors import InputError
from twinspire_eval.comparison import Figure, compare
from twinspire_eval.machine import Hardware
from twinspire_eval.records import Record, series
from twinspire_eval.statistics import STATISTICS, ratio

XEON = Hardware(
    cpu_model="Xeon", cores=2, instruction_sets=("avx2", "amx_int8"), memory_bytes=16 << 30, gpu="NVIDIA L4"
)


def _record(results: dict[str, Any] | None = None, **changes: Any) -> Record:
    arguments: dict[str, Any] = {
        "kind": "latency",
        "parameters": {"batches": [1, 8], "threads": 2},
        "results": results or {"x_ms": 1.0},
        "hardware": XEON,
        "versions": {"numpy": "1.26.4"},
        "git_commit": "a" * 40,
    }
    return Record(**arguments | changes)


def test_figures_are_found_by_their_place() -> None:
    """Each number of the results is a figure: its place, both values and b over a. Texts and lists are none."""
    a = _record({"image": {"batch 8": {"images_per_s": 100, "engine": "fp32"}}, "rows": [1, 2], "good": True})
    b = _record({"image": {"batch 8": {"images_per_s": 250, "engine": "int8"}}, "rows": [1, 2], "good": True})
    assert compare(a, b) == [Figure(("image", "batch 8", "images_per_s"), 100, 250, 2.5, None)]


def test_a_series_gives_its_ratios_an_interval() -> None:
    """The interval of a statistic with samples is the bootstrap's of these samples."""
    rng = np.random.default_rng(0)
    slow, fast = rng.normal(20, 1, 40), rng.normal(10, 1, 50)
    found = compare(_record({"latency_ms": series(slow, "p50", "p99")}), _record({"latency_ms": series(fast, "p50")}))
    expected = ratio(fast, slow, STATISTICS["p50"])
    assert [figure.name for figure in found] == [("latency_ms", "p50"), ("latency_ms", "p99")]
    assert found[0].ratio == pytest.approx(expected.value)
    assert found[0].interval == expected.interval
    assert found[1].b is None


@pytest.mark.parametrize("value", [None, 0.0, -1.0])
def test_what_is_missing_has_no_ratio(value: float | None) -> None:
    """Null, zero and negative numbers have no ratio; a figure of one record alone is shown as such."""
    a, b = _record({"x_ms": value, "only_a": 1.0}), _record({"x_ms": 2.0, "only_b": {"y_ms": 3.0}})
    assert compare(a, b) == [
        Figure(("x_ms",), value, 2.0, None, None),
        Figure(("only_a",), 1.0, None, None, None),
        Figure(("only_b", "y_ms"), None, 3.0, None, None),
    ]


def test_other_versions_commits_and_subjects_may_be_compared() -> None:
    """They are what a comparison is made for."""
    other = _record(git_commit=None, versions={"numpy": "2.0"}, subject={"bundle": "other"}, created="2026-01-01")
    assert compare(_record(), other)[0].ratio == 1.0


@pytest.mark.parametrize(
    ("changes", "data"),
    [
        ({"kind": "recall"}, ("kind", "latency", "recall")),
        ({"hardware": dataclasses.replace(XEON, cpu_model="EPYC")}, ("hardware.cpu_model", "Xeon", "EPYC")),
        ({"hardware": dataclasses.replace(XEON, gpu=None)}, ("hardware.gpu", "NVIDIA L4", "None")),
        ({"parameters": {"batches": [1, 8], "threads": 1}}, ("parameters.threads", "2", "1")),
        ({"parameters": {"batches": [1], "threads": 2}}, ("parameters.batches", "[1, 8]", "[1]")),
        ({"parameters": {"batches": [1, 8]}}, ("parameters.threads", "2")),
        ({"parameters": {"batches": [1, 8], "threads": 2, "x": {"y": 1}}}, ("parameters.x", "{'y': 1}")),
    ],
)
def test_records_that_differ_are_not_compared(changes: dict[str, Any], data: tuple[str, ...]) -> None:
    """Another machine, kind or parameter raises InputError that names the field and both values."""
    with pytest.raises(InputError) as caught:
        compare(_record(), _record(**changes))
    assert all(datum in str(caught.value) for datum in data)


def test_every_difference_is_named() -> None:
    """The error lists all fields, and none that agree."""
    other = _record(kind="recall", hardware=dataclasses.replace(XEON, cores=8), parameters={"batches": [1, 8]})
    with pytest.raises(InputError) as caught:
        compare(_record(), other)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == ["kind", "hardware.cores", "parameters.threads"]
