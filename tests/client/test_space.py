"""A space's name depends on all that decides an embedding, and on nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from twinspire.bundle import CropRounding, ImageSettings, Interpolation, Resize, space_id
from twinspire.errors import BundleError, InputError

IMAGE = ImageSettings.centre_crop(224, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [{"id": 2, "content": "<end>", "special": True}],
    "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    "post_processor": None,
    "decoder": {"type": "ByteLevel"},
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<end>",
        "fuse_unk": False,
        "vocab": {"a": 0, "b": 1, "<end>": 2, "ab": 3, "aba": 4},
        "merges": ["a b", "ab a"],
    },
}
Tensor = tuple[str, str, tuple[int, ...], bytes]
TENSORS: list[Tensor] = [("w", "F32", (2, 1), b"\x00" * 8), ("b", "F32", (2,), b"\x01" * 8)]

tensors_of = st.lists(
    st.tuples(
        st.text(max_size=4),
        st.sampled_from(["F32", "F16", "I8"]),
        st.lists(st.integers(0, 3), max_size=3).map(tuple),
        st.binary(max_size=6),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda tensor: tensor[0],
)


def space(
    tensors: Iterable[Any] = TENSORS,
    image: ImageSettings = IMAGE,
    tokenizer: dict[str, Any] | str = TOKENIZER,
    pooling: str = "end token",
    context_length: int = 77,
) -> str:
    """Name a space."""
    text = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer)
    return space_id(tensors, image, text, pooling=pooling, context_length=context_length)


def test_pinned() -> None:
    """The name of a given checkpoint never changes: indexes on disks carry it."""
    assert space() == "a751c2e2e234d7f903945633b3a2415de6ddcd10aeb4c2cbd074578960390935"


@given(tensors=tensors_of, data=st.data())
def test_order_does_not_matter(tensors: list[Tensor], data: st.DataObject) -> None:
    """The order in which the tensors come does not matter, nor does it matter that they come one by one."""
    shuffled = data.draw(st.permutations(tensors))
    assert space(tensors) == space(iter(shuffled))


@given(first=tensors_of, second=tensors_of)
def test_other_tensors_other_space(first: list[Tensor], second: list[Tensor]) -> None:
    """Two different sets of tensors have different spaces."""
    assume(sorted(first) != sorted(second))
    assert space(first) != space(second)


@given(tensors=tensors_of, data=st.data())
def test_any_change_of_a_tensor_counts(tensors: list[Tensor], data: st.DataObject) -> None:
    """A changed byte, shape, name or dtype of any tensor, or one tensor less, changes the space."""
    place = data.draw(st.integers(0, len(tensors) - 1))
    name, dtype, shape, content = tensors[place]
    flipped = bytes([content[0] ^ 1]) + content[1:] if content else b"\0"
    for changed in (
        (name + "x", dtype, shape, content),
        (name, dtype + "x", shape, content),
        (name, dtype, (*shape, 1), content),
        (name, dtype, shape, flipped),
    ):
        others = [*tensors[:place], *tensors[place + 1 :]]
        if changed[0] not in {other[0] for other in others}:
            assert space([*others, changed]) != space(tensors)
    if len(tensors) > 1:
        assert space(tensors[1:]) != space(tensors)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([("ab", "c", (), b"")], [("a", "bc", (), b"")]),
        ([("a", "F32", (), b"xy")], [("a", "F32x", (), b"y")]),
        ([("a", "F32", (1, 2), b"")], [("a", "F32", (12,), b"")]),
        ([("a", "F32", (1,), b"1"), ("b", "F32", (1,), b"2")], [("a", "F32", (1,), b"1b"), ("b", "F32", (1,), b"2")]),
        ([("a", "F32", (1,), b"1"), ("b", "F32", (1,), b"2")], [("a", "F32", (1,), b"2"), ("b", "F32", (1,), b"1")]),
    ],
)
def test_no_ambiguity_by_concatenation(first: list[Tensor], second: list[Tensor]) -> None:
    """Moving a byte from one field to the next is another space."""
    assert space(first) != space(second)


@pytest.mark.parametrize(
    "change",
    [
        {"height": 225, "width": 225},
        {"height": 225},
        {"width": 225},
        {"shortest_side": 225},
        {"interpolation": Interpolation.BILINEAR},
        {"resize": Resize.STRETCH, "shortest_side": None, "crop_rounding": None},
        {"resize": Resize.PAD, "shortest_side": None, "crop_rounding": None},
        {"resize": Resize.STRETCH_AND_CROP},
        {"crop_rounding": CropRounding.ROUND},
        {"mean": (0.48, 0.46, math.nextafter(0.41, 1))},
        {"std": (0.27, 0.26, 0.29)},
    ],
)
def test_preprocessing_counts(change: dict[str, Any]) -> None:
    """Every setting of the preprocessing changes the space."""
    assert space(image=dataclasses.replace(IMAGE, **change)) != space()


def test_the_schema_of_bundles_does_not_count() -> None:
    """What the first schema of bundles could express is hashed in its form: `space_id`s of old bundles stay."""
    stretched = dataclasses.replace(IMAGE, resize=Resize.STRETCH, shortest_side=None, crop_rounding=None)
    assert space(image=stretched) == "185668055b123c5ffaab313bd53b669a1bd8cb0661ad05cc37ff5b7b626fbc0d"


def test_whole_numbers_count_as_floats() -> None:
    """A mean of 0 and one of 0.0 are the same preprocessing."""
    whole, real = (dataclasses.replace(IMAGE, mean=(zero, zero, zero)) for zero in (0, 0.0))
    assert space(image=whole) == space(image=real)


def test_pooling_and_context_count() -> None:
    """Pooling and context length change the space, and are not taken for each other."""
    names = {
        space(),
        space(pooling="first token"),
        space(context_length=76),
        space(pooling="end token7", context_length=7),
    }
    assert len(names) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"model": {**TOKENIZER["model"], "vocab": {"a": 1, "b": 0, "<end>": 2, "ab": 3, "aba": 4}}},
        {"model": {**TOKENIZER["model"], "merges": ["ab a", "a b"]}},
        {"model": {**TOKENIZER["model"], "unk_token": "a"}},
        {"model": {**TOKENIZER["model"], "unk_id": 0}},
        {"model": {**TOKENIZER["model"], "fuse_unk": True}},
        {"normalizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"post_processor": {"type": "ByteLevel"}},
        {"added_tokens": []},
    ],
)
def test_what_decides_the_ids_counts(change: dict[str, Any]) -> None:
    """Vocabulary, merges, normaliser and all else of the tokenizer that decides the ids change the space."""
    assert space(tokenizer={**TOKENIZER, **change}) != space()


@pytest.mark.parametrize(
    "tokenizer",
    [
        json.dumps(TOKENIZER, indent=3),
        dict(reversed(TOKENIZER.items())),
        {**TOKENIZER, "version": "2.0", "truncation": {"max_length": 77}, "padding": {"pad_id": 0}, "decoder": None},
        {**TOKENIZER, "model": {**TOKENIZER["model"], "merges": [["a", "b"], ["ab", "a"]]}},
        {**TOKENIZER, "model": {**TOKENIZER["model"], "byte_fallback": False, "ignore_merges": False}},
        {**TOKENIZER, "model": {**TOKENIZER["model"], "vocab": dict(reversed(TOKENIZER["model"]["vocab"].items()))}},
    ],
)
def test_how_the_tokenizer_was_written_does_not_count(tokenizer: dict[str, Any] | str) -> None:
    """Layout, order of keys, padding, and the library's version do not change the space."""
    assert space(tokenizer=tokenizer) == space()


def test_arrays_and_memoryviews_count_by_their_bytes() -> None:
    """A tensor may come as bytes, a memoryview or an array: the bytes are what counts."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    names = {space([("w", "F32", (2, 3), data)]) for data in (array.tobytes(), memoryview(array), array)}
    assert len(names) == 1
    assert space([("w", "F32", (0, 3), np.empty((0, 3), np.float32))]) == space([("w", "F32", (0, 3), b"")])


def test_bad_input() -> None:
    """A name that comes twice or no tensors are an InputError; a tokenizer that is none is refused too."""
    with pytest.raises(InputError, match="'w'"):
        space([TENSORS[0], TENSORS[0]])
    with pytest.raises(InputError, match="tensors"):
        space([])
    with pytest.raises(BundleError, match="JSON"):
        space(tokenizer="{")
    with pytest.raises(BundleError, match="model"):
        space(tokenizer="[]")
