"""Texts of many lengths: the grouping alone, and through the towers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twinspire.bundle import Padding, TextSettings
from twinspire.contract import RUN_TOKENS
from twinspire.towers import LocalTowers
from twinspire.towers.batching import fitted_batches, padded_length, text_batches

PAD, END = 9, 2


def _settings(context_length: int, padding: Padding = Padding.TRIM) -> TextSettings:
    return TextSettings(context_length=context_length, pad_id=PAD, eos_id=END, padding=padding)


@pytest.mark.parametrize(
    ("length", "context", "expected"),
    [
        (1, 77, 8),
        (8, 77, 8),
        (9, 77, 16),
        (49, 77, 64),
        (65, 77, 77),
        (77, 77, 77),
        (49, 64, 64),
        (5, 6, 6),
        (600, 700, 700),
    ],
)
def test_a_text_is_padded_to_the_next_bucket(length: int, context: int, expected: int) -> None:
    """The padded length is the smallest bucket that holds the text, the context where none does."""
    assert padded_length(length, _settings(context)) == expected


def test_max_length_is_always_the_context() -> None:
    """A `max_length` family is never trimmed, however short the text."""
    assert padded_length(1, _settings(64, Padding.MAX_LENGTH)) == 64


@given(
    lengths=st.lists(st.integers(1, 70), max_size=80),
    context=st.integers(70, 130),
    batch=st.integers(1, 20),
    padding=st.sampled_from(Padding),
)
def test_batches_hold_every_text_once(lengths: list[int], context: int, batch: int, padding: Padding) -> None:
    """Every text stands once, at its place, whole, padded on the right, in a batch of at most `batch`."""
    texts = [np.full(length, 10 + place, np.int32) for place, length in enumerate(lengths)]
    asked = _settings(context, padding)
    seen: list[int] = []
    for group in text_batches(texts, asked, batch=batch):
        (array,) = group.arrays
        assert array.dtype == np.int32
        assert 1 <= len(group) == len(array) <= batch
        for position, row in zip(group.positions, array, strict=True):
            length = lengths[position]
            assert row.size == padded_length(length, asked) <= context
            assert np.array_equal(row[:length], texts[position])
            assert np.all(row[length:] == PAD)
        seen += group.positions.tolist()
    assert sorted(seen) == list(range(len(texts)))


@given(
    lengths=st.lists(st.integers(1, 70), max_size=80),
    batch=st.integers(1, 20),
    padding=st.sampled_from(Padding),
)
def test_fitted_batches_waste_little(lengths: list[int], batch: int, padding: Padding) -> None:
    """Every text stands once and whole; a batch is as long as its longest and wastes no more than a run costs."""
    texts = [np.full(length, 10 + place, np.int32) for place, length in enumerate(lengths)]
    asked = _settings(70, padding)
    seen: list[int] = []
    for group in fitted_batches(texts, asked, batch=batch):
        (array,) = group.arrays
        assert array.dtype == np.int32
        assert 1 <= len(group) == len(array) <= batch
        own = [lengths[position] for position in group.positions]
        width = array.shape[1]
        assert width == (70 if padding is Padding.MAX_LENGTH else max(own))
        assert padding is Padding.MAX_LENGTH or sum(width - length for length in own) <= RUN_TOKENS
        for position, row in zip(group.positions, array, strict=True):
            assert np.array_equal(row[: lengths[position]], texts[position])
            assert np.all(row[lengths[position] :] == PAD)
        seen += group.positions.tolist()
    assert sorted(seen) == list(range(len(texts)))


def test_as_few_batches_as_padding_is_cheap() -> None:
    """Texts of one length fill whole batches, and one that is a little shorter goes with them."""
    texts = [np.ones(length, np.int32) for length in (12,) * 63 + (11,)]
    widths = [group.arrays[0].shape for group in fitted_batches(texts, _settings(77), batch=32)]
    assert widths == [(32, 12), (32, 12)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.lists(st.integers(3, 17), max_size=18), max_size=70))
def test_together_is_as_one_by_one(tiny: Any, words: list[list[int]]) -> None:
    """Any mix of texts encodes to what each gives alone and unpadded, in the order given, within 1e-6."""
    texts = [np.array([1, *ids, END], np.int32) for ids in words]
    towers = LocalTowers(tiny.bundle, precision="fp32", provider="cpu", threads=1)
    together = towers.encode_texts(texts)
    assert together.shape == (len(texts), towers.dim)
    if texts:
        difference = np.abs(together - tiny.model.encode_texts(texts)).max()
        assert difference <= 1e-6, f"largest difference {difference:.2e}"
        alone = np.concatenate([towers.encode_texts([ids]) for ids in texts])
        difference = np.abs(together - alone).max()
        assert difference <= 1e-6, f"largest difference {difference:.2e}"
