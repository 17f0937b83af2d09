"""Recall of stores and cosines of peers, on cases that can be counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from twinspire.errors import EngineError
from twinspire_bench.peers.judgement import cosines, recall

SCORES = np.array([[0.9, 0.5, 0.5, 0.1, -np.inf]], np.float32)


@pytest.mark.parametrize(
    ("found", "k", "expected"),
    [
        ([0, 1], 2, 1.0),
        ([0, 2], 2, 1.0),  # as good as item 1
        ([0, 3], 2, 0.5),
        ([0, 0], 2, 0.5),  # a repeated hit is one hit
        ([3, 0, 1], 2, 0.5),  # only the first two are hits
        ([0, 4, 1, 2], 10, 0.75),  # the last item is not among those that may be found
        ([-1, 7], 2, 0.0),  # no items
        ([], 2, 0.0),
    ],
)
def test_recall_counts_items_as_good_as_the_last_of_the_best(found: list[int], k: int, expected: float) -> None:
    """A hit counts by its score; where fewer than k items may be found, all of them are asked for."""
    assert recall([found], SCORES, k) == expected


def test_recall_without_items_is_missing() -> None:
    """Where no item may be found there is no recall, neither 0 nor 1."""
    assert recall([[]], np.full((1, 3), -np.inf, np.float32), 2) is None


def test_cosines_ignore_lengths_and_name_what_cannot_be_compared(tmp_path: Path) -> None:
    """Vectors are compared by direction; zero vectors and other shapes have a reason in place of cosines."""
    reference = np.eye(2, dtype=np.float32)
    cases = {"scaled": 3 * reference, "turned": reference[::-1], "zero": 0 * reference, "longer": np.eye(3)[:2]}
    found = {}
    for name, vectors in cases.items():
        np.save(tmp_path / f"{name}.npy", vectors)
        found[name] = cosines(tmp_path / f"{name}.npy", reference)
    assert found["scaled"] == {"mean": 1.0, "min": 1.0, "reason": None}
    assert found["turned"]["mean"] == 0
    assert "zero" in found["zero"]["reason"]
    assert "(2, 3)" in found["longer"]["reason"]
    assert found["zero"]["mean"] is found["longer"]["mean"] is None


def test_a_file_without_vectors_is_an_error(tmp_path: Path) -> None:
    """A missing file and one that is no array are errors of the peer."""
    (tmp_path / "text.npy").write_text("no array")
    for name in ("none.npy", "text.npy"):
        with pytest.raises(EngineError, match="vectors"):
            cosines(tmp_path / name, np.eye(2, dtype=np.float32))
