"""Random inputs of the towers that never repeat, so that no response cache of a server can answer them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Bundle
from twinspire.errors import InputError
from twinspire.towers.validation import vocabulary_size

Payload = TypeVar("Payload")

_COUNTER_BYTES = 8


class Endless(Generic[Payload]):
    """Endless list of payloads, each made when it is read."""

    def __init__(self, make: Callable[[int], Payload]) -> None:
        self._make = make

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int, /) -> Payload:
        return self._make(index)


def image_payloads(bundle: Bundle, *, batch: int, seed: int | Sequence[int]) -> Endless[NDArray[np.uint8]]:
    """Make batches of noise, (batch, S, S, 3) uint8, whose first pixels hold the number of the image."""
    size = bundle.image.size
    noise = np.random.default_rng(seed).integers(0, 256, (_positive(batch), size, size, 3), np.uint8)
    counted = min(_COUNTER_BYTES, noise[0].size)

    def make(index: int) -> NDArray[np.uint8]:
        made = noise.copy()
        numbers = np.arange(index * batch, (index + 1) * batch, dtype=np.uint64)
        made.reshape(batch, -1)[:, :counted] = numbers.view(np.uint8).reshape(batch, _COUNTER_BYTES)[:, :counted]
        return made

    return Endless(make)


def text_payloads(
    bundle: Bundle, *, batch: int, length: int, seed: int | Sequence[int]
) -> Endless[list[NDArray[np.int32]]]:
    """Make batches of texts of `length` random token ids, int32, that end with the end token."""
    if not 2 <= length <= bundle.text.context_length:
        raise InputError(f"texts of {length} token ids: expected 2 to {bundle.text.context_length}, the context length")
    ids = np.arange(vocabulary_size(bundle.tokenizer_path), dtype=np.int32)
    words = ids[~np.isin(ids, (bundle.text.eos_id, bundle.text.pad_id))]
    shape = (_positive(batch), length)
    root = [seed] if isinstance(seed, int) else list(seed)

    def make(index: int) -> list[NDArray[np.int32]]:
        made = np.random.default_rng([*root, index]).choice(words, shape)
        made[:, -1] = bundle.text.eos_id
        return list(made)

    return Endless(make)


def _positive(batch: int) -> int:
    if batch < 1:
        raise InputError(f"batch {batch}: expected at least 1")
    return batch
