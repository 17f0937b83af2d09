"""What `Client` and `AsyncClient` have in common: a bundle's tokenizer and preprocessing, and its towers."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Generic, Literal, Protocol, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import shown
from twinspire._decode_mode import as_decode
from twinspire.audio import AudioLimits, AudioPreprocessor
from twinspire.bundle import Bundle, BundleDescription, DecodeMode, Tower
from twinspire.errors import ImageError, InputError, SpaceMismatchError
from twinspire.images import ImageLimits, Preprocessor
from twinspire.text import Tokenizer, Truncation
from twinspire.towers import ClientCounters, LocalTowers, TlsOptions, Towers, describe_server

OnError: TypeAlias = Literal["raise", "skip"]
BundleOrPath: TypeAlias = Bundle | str | os.PathLike[str]
_Part = TypeVar("_Part", Tokenizer, Preprocessor, AudioPreprocessor)

# The towers' batch: the next items are decoded while these are encoded.
MEDIA_BATCH = 32


class _HasSpace(Protocol):
    @property
    def dim(self) -> int: ...
    @property
    def space(self) -> str: ...


AnyTowers = TypeVar("AnyTowers", bound=_HasSpace)


class ClientBase(ABC, Generic[AnyTowers]):
    """The tokenizer, preprocessing and towers of one model, whose embeddings may be cut to `dim` numbers.

    Raises SpaceMismatchError for towers of another space, InputError for a `dim` that the bundle does not allow.
    """

    def __init__(
        self,
        bundle: BundleDescription,
        towers: AnyTowers,
        *,
        dim: int | None = None,
        decode: DecodeMode | str = DecodeMode.EXACT,
        limits: ImageLimits | None = None,
        audio_limits: AudioLimits | None = None,
        threads: int | None = None,
    ) -> None:
        if towers.space != bundle.space:
            raise SpaceMismatchError(
                f"the towers are of another space than the bundle {bundle.name!r} at {bundle.location}: open both from "
                "the same bundle",
                expected=bundle.space,
                found=towers.space,
            )
        self.bundle = bundle
        self.towers = self._of_dim(towers, dim)
        self._decode = decode_mode(bundle, decode)
        self._limits, self._audio_limits = limits or ImageLimits(), audio_limits or AudioLimits()
        self._tokenizer = Tokenizer(bundle.tokenizer_json(), bundle.text) if Tower.TEXT in bundle.towers else None
        self._preprocessor = self._audio_preprocessor = None
        if Tower.IMAGE in bundle.towers:
            self._preprocessor = Preprocessor(bundle.image, decode=self._decode, limits=self._limits, threads=threads)
        if Tower.AUDIO in bundle.towers:
            self._audio_preprocessor = AudioPreprocessor(bundle.audio, limits=self._audio_limits, threads=threads)

    @property
    def decode(self) -> DecodeMode:
        """How encoded images are decoded."""
        return self._decode

    @property
    def limits(self) -> ImageLimits:
        """The largest image that is decoded."""
        return self._limits

    @property
    def audio_limits(self) -> AudioLimits:
        """The largest sound that is read."""
        return self._audio_limits

    @property
    def dim(self) -> int:
        """The embedding's length D: the model's, or what embeddings are cut to."""
        return self.towers.dim

    @property
    def vectors_per_item(self) -> int:
        """Q, how many vectors an image has; 1 for most models. Texts have one."""
        return self.bundle.vectors_per_item

    @property
    def counters(self) -> ClientCounters | None:
        """A client's counters of its servers and its fallback; None where it has no server."""
        counters: ClientCounters | None = getattr(self.towers, "counters", None)
        return counters

    @property
    def space(self) -> str:
        """The id of the embedding space: vectors are comparable within it only.

        That of embeddings that are cut is `SPACE:DIM`, the model's space and their length.
        """
        return self.towers.space

    def cut_to(self, dim: int | None) -> Self:
        """Return a client whose embeddings have `dim` numbers, None for whole ones; closing either closes both.

        It shares the towers, the tokenizer and the preprocessing. Raises InputError where the bundle does not allow it.
        """
        other = copy(self)
        other.towers = self._of_dim(getattr(self.towers, "whole", self.towers), dim)
        return other

    def _of_dim(self, towers: AnyTowers, dim: int | None) -> AnyTowers:
        is_whole = self.bundle.space_of(dim) == self.bundle.space
        return towers if dim is None or is_whole else self._cut(towers, dim)

    @abstractmethod
    def _cut(self, towers: AnyTowers, dim: int) -> AnyTowers:
        """Return towers whose embeddings are those of `towers`, cut to `dim` numbers."""

    def tokenize(self, texts: Sequence[str], *, truncation: Truncation | str = "end") -> list[NDArray[np.int32]]:
        """Return N texts as N 1-D int32 arrays of token ids, start and end included, without padding.

        Of a text longer than the context, `truncation` cuts the "end" or the "start", the start and end token kept;
        the first one logs a warning. Raises InputError for anything but a list of str, and TextLengthError for a
        longer text where `truncation` is "error".
        """
        return self._required(self._tokenizer, Tower.TEXT).encode(texts, truncation=truncation)

    def _required(self, part: _Part | None, tower: Tower) -> _Part:
        """Return what prepares a tower's inputs. Raises BundleError where the model does not have the tower."""
        self.bundle.manifest.tower(tower)
        assert part is not None
        return part

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of {self.bundle.name!r}, dim {self.dim}, space {self.space[:12]}: {self.towers!r}>"
        )


def served_bundle(
    url: str | Sequence[str],
    bundle: BundleDescription | BundleOrPath | None,
    fallback: BundleOrPath | Towers | None,
    *,
    name: str | None,
    deadline_s: float,
    tls: TlsOptions | None,
) -> BundleDescription:
    """Return the bundle of a connection, by default that of its fallback, else what the server describes.

    Raises what `describe_server` raises.
    """
    if bundle is None and isinstance(fallback, Bundle | str | os.PathLike):
        bundle = fallback
    if bundle is None:
        return describe_server(url, name=name, deadline_s=deadline_s, tls=tls)
    return bundle if isinstance(bundle, BundleDescription) else opened_bundle(bundle)


def decode_mode(bundle: BundleDescription, decode: DecodeMode | str) -> DecodeMode:
    """Return how images are decoded, for "auto" as the bundle recommends, else exactly. Raises InputError."""
    mode, choice = as_decode(decode, "decode"), bundle.manifest.auto
    if mode is None and choice is not None:
        mode = choice.decode
    return mode or DecodeMode.EXACT


def opened_fallback(fallback: BundleOrPath | Towers | None, *, threads: int | None) -> Towers | None:
    """Return the towers of a fallback, a bundle's in this process. Raises as `LocalTowers` and InputError."""
    if isinstance(fallback, Bundle | str | os.PathLike):
        return LocalTowers(opened_bundle(fallback), threads=threads)
    if fallback is not None and not hasattr(fallback, "encode_texts"):
        message = f"fallback: expected a Bundle, the path of one or open towers, got {shown(fallback)}"
        raise InputError(message, option="fallback")
    return fallback


@contextmanager
def closing_on_error(towers: Towers | None) -> Iterator[None]:
    """Close towers where what follows fails."""
    try:
        yield
    except BaseException:
        if towers is not None:
            towers.close()
        raise


def opened_bundle(bundle: BundleOrPath) -> Bundle:
    """Return an open bundle. Raises InputError for what is neither a bundle nor a path."""
    if isinstance(bundle, Bundle):
        return bundle
    if not isinstance(bundle, str | os.PathLike):
        message = f"bundle: expected a Bundle or the path of one, got {bundle!r}. The sample's path: sample_bundle()"
        raise InputError(message, option="bundle")
    return Bundle.open(bundle)


def usable_positions(count: int, skipped: Sequence[ImageError], on_error: OnError) -> list[int]:
    """Return the positions of `count` images without those that cannot be used; raise the first of their errors."""
    if skipped and on_error == "raise":
        raise skipped[0]
    absent = {error.position for error in skipped}
    return [position for position in range(count) if position not in absent]


def check_on_error(on_error: str) -> None:
    """Raise InputError for an unknown value."""
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error {on_error!r}: expected 'raise' or 'skip'", option="on_error")
