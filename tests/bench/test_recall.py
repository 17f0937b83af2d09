"""Recall, against a ranking done by sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinspire_bench.recall import both_ways, pair_accuracy, ranks, recall


def _unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    vectors = rng.standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_ranks_are_those_of_a_sort(rows: int, seed: int) -> None:
    """A rank is the own item's position among the scores sorted from high to low."""
    scores = np.random.default_rng(seed).standard_normal((rows, rows)).astype(np.float32)
    expected = [int(np.flatnonzero(np.argsort(-row) == query)[0]) for query, row in enumerate(scores)]
    assert ranks(scores).tolist() == expected


def test_a_model_that_answers_everything_alike_has_no_recall() -> None:
    """Ties count against the query: a constant embedding is not right by luck of the order."""
    same = np.tile(np.float32([1, 0]), (50, 1))
    assert recall(same, same).r1 == 0.0


def test_recall_counts_the_first_1_5_and_10() -> None:
    """With the own item at rank i for query i, recall at k is k of the number of queries."""
    size = 20
    scores = np.zeros((size, size), np.float32)
    for query in range(size):
        scores[query, query] = 0.5
        others = [item for item in range(size) if item != query][:query]
        scores[query, others] = 1.0
    # Items as the identity: the scores are the queries themselves.
    result = recall(scores, np.eye(size, dtype=np.float32))
    assert (result.r1, result.r5, result.r10) == (1 / 20, 5 / 20, 10 / 20)


def test_both_ways_are_two_recalls() -> None:
    """Text to image ranks pictures for captions; image to text is the other way round."""
    rng = np.random.default_rng(0)
    images, texts = _unit(rng, 30, 8), _unit(rng, 30, 8)
    result = both_ways(images, texts)
    assert result.text_to_image == recall(texts, images)
    assert result.image_to_text == recall(images, texts)


def test_pair_accuracy_needs_both_members() -> None:
    """A pair counts only where both captions, or both pictures, find their own partner."""
    images = np.float32([[1, 0], [0, 1], [1, 0], [0, 1]])
    texts = np.float32([[1, 0], [0, 1], [1, 0], [0.9, 0.1]])
    assert pair_accuracy(images, texts) == (0.5, 1.0)


def test_recall_of_nothing_is_an_error() -> None:
    """No queries, or another number of items, is no recall of 1."""
    with pytest.raises(ValueError, match="equally many"):
        recall(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32))
