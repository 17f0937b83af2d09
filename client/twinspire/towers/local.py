"""The towers in this process, through onnxruntime or OpenVINO's own runtime."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_list, as_member, as_whole
from twinspire._cores import thread_count
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.contract import EMBEDDING, FREE, INPUT_NAMES
from twinspire.errors import EngineError, InputError, ProviderError
from twinspire.towers.auto_selection import AUTO, Runtime, RuntimeCandidate, candidates, parse_precision, parse_provider
from twinspire.towers.batching import InputBatch, fitted_batches, row_batches, text_batches
from twinspire.towers.local_reranker import LocalReranker
from twinspire.towers.providers import (
    InferencePrecision,
    OpenVinoOptions,
    Provider,
    Sessions,
    open_sessions,
    require_computing,
)
from twinspire.towers.streams import Streams
from twinspire.towers.validation import BundleTowers, check_embeddings, contract_violation

_log = logging.getLogger("twinspire")

# Larger batches are not faster, but take more memory: ViT-B/32 holds about 5 MB of activations an image.
BATCH = {Tower.IMAGE: 32, Tower.TEXT: 64, Tower.AUDIO: 32}
"""The most images, texts or sounds of a run."""
PROCESSOR_BATCH = {Tower.IMAGE: 8, Tower.TEXT: 16, Tower.AUDIO: 8}
"""The most on a processor: the activations between operators then fit its caches. ViT-B/32 int8 on 2 EPYC cores, a
stream each: 80 images/s in batches of 8, 75 of 16; 623 texts/s of 16, 604 of 64."""


class LocalTowers(BundleTowers):
    """The engines of a bundle, run in this process. Safe to use from several threads.

    `precision` and `provider` are used as named, or an error is raised. `auto` tries what is installed and certified,
    best first, and logs on `twinspire` what it chose and why; `runtime` is the choice. `threads` is the number of
    threads of a call on the CPU; None is one for each usable core. `streams` is the number of parts that a call is
    split into and that run in parallel; `threads` is divided among them. More streams encode more images/s, with the
    engine in memory twice or more, since a single image is still computed by all threads. Streams are for processors:
    a GPU that `auto` finds computes in one, `cuda` by name with several is an error. `openvino` holds that provider's
    options. Where `streams` and `openvino` are None, the bundle's measured settings are used if they were measured on a
    processor such as this one and for the same engines and provider, else 1 and float32. `towers` are those to
    open, None is all that the bundle has: encoding with another raises EngineError, and its engine takes no memory.
    `auto` ignores it.

    Raises InputError for an unknown name or number, BundleError where the bundle has no engine of the precision or
    needs a later version, MissingDependencyError and BrokenDependencyError where onnxruntime cannot be imported,
    ProviderError where the provider is unavailable or, on a GPU, cannot compute an input, EngineError where an engine
    cannot be loaded or violates the contract.
    """

    _bundle: Bundle

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: Precision | str = AUTO,
        provider: Provider | str = AUTO,
        threads: int | None = None,
        streams: int | None = None,
        openvino: OpenVinoOptions | None = None,
        towers: Collection[Tower | str] | None = None,
    ) -> None:
        super().__init__(bundle)
        self._towers = bundle.towers if towers is None else _checked_towers(towers)
        self._threads = thread_count(threads)
        self._named_streams = streams if streams is None else as_whole(streams, "streams", minimum=1)
        if streams is not None and streams > self._threads:
            message = f"streams {streams}: expected at most {self._threads}, the number of threads"
            raise InputError(message, option="streams")
        self._named_openvino = openvino
        self._calls = itertools.count()
        self._reranker: LocalReranker | None = None
        self._reranker_lock = threading.Lock()
        self._sessions, self.runtime = self._open(parse_provider(provider), parse_precision(precision))
        on_processor = self.runtime.provider is Provider.CPU
        self._max_batch = PROCESSOR_BATCH if on_processor else BATCH
        self._batches = fitted_batches if on_processor else text_batches
        self._streams = Streams(self.runtime.streams)

    def __repr__(self) -> str:
        return f"<LocalTowers: {self.runtime}>"

    def encode_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode (N, H, W, 3) uint8 RGB to (N, D) float32, L2-normalised, or (N, Q, D) of Q vectors; N may be 0.

        Raises InputError for another dtype or shape, EngineError where the engine fails or gives no unit vectors.
        """
        self._check_images(images)
        return self._encode(Tower.IMAGE, len(images), lambda batch: row_batches(images, batch=batch))

    def encode_texts(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Encode N 1-D int32 arrays of token ids to (N, D) float32, L2-normalised; N may be 0.

        Each holds start and end token and no padding. Raises InputError, with its position, for anything else
        and EngineError where the engine fails or gives no unit vectors.
        """
        self._check_sequences(sequences)
        settings = self._bundle.text
        return self._encode(Tower.TEXT, len(sequences), lambda batch: self._batches(sequences, settings, batch=batch))

    def encode_audio(self, spectrograms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode (N, F, M) float32 log-mel spectrograms to (N, D) float32, L2-normalised; N may be 0.

        Raises InputError for another dtype or shape and for values that are not finite, EngineError where the engine
        fails or gives no unit vectors.
        """
        self._check_audio(spectrograms)
        return self._encode(Tower.AUDIO, len(spectrograms), lambda batch: row_batches(spectrograms, batch=batch))

    def score_pairs(self, images: NDArray[np.uint8], sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Return the reranker's probability that text n is true of image n, (N,) float32, 0 to 1; N may be 0.

        Images and token ids are those of `encode_images` and `encode_texts`, equally many. The engine is opened at the
        first call. Raises InputError for anything else, BundleError where the bundle has no reranker, EngineError where
        it fails.
        """
        self._check_pairs(images, sequences)
        with self._reranker_lock:
            if not self._sessions:
                raise EngineError("the towers are closed: open the client or the towers again")
            if self._reranker is None:
                self._reranker = LocalReranker(self._bundle, self.runtime)
            reranker = self._reranker
        return reranker.score(images, sequences)

    @contextmanager
    def unsplit(self) -> Iterator[None]:
        """Compute each call in one stream while the context is open, for callers that keep the other streams busy."""
        with self._streams.call():
            yield

    def close(self) -> None:
        """Release the engines. Encoding then raises EngineError; closing twice does nothing."""
        with self._reranker_lock:
            self._sessions, self._reranker = {}, None

    def _encode(self, tower: Tower, count: int, split: Callable[[int], Iterator[InputBatch]]) -> NDArray[np.float32]:
        """Encode `count` rows, which `split` cuts into batches of at most the size that it is given."""
        embeddings = np.empty((count, *self._bundle.output_spec(tower).shape), np.float32)
        with self._streams.call() as is_only_call:
            size = self._streams.part_size(count, maximum=self._max_batch[tower], is_only_call=is_only_call)
            batches = list(split(size))
            whole = is_only_call and len(batches) == 1

            def encode(batch: InputBatch) -> None:
                (array,) = batch.arrays
                embeddings[batch.positions] = self._run(tower, np.ascontiguousarray(array), whole=whole)

            self._streams.run(encode, batches, is_only_call=is_only_call)
        return embeddings

    def _run(self, tower: Tower, array: NDArray[Any], *, whole: bool) -> NDArray[np.float32]:
        sessions = self._sessions.get(tower)
        if sessions is None:
            if tower not in self._towers:
                opened = ", ".join(self._towers)
                raise EngineError(f"the {tower} tower was not opened: towers was {opened}", tower=tower)
            raise EngineError("the towers are closed: open the client or the towers again", tower=tower)
        source = f"the {tower} tower ({self.runtime})"
        session = sessions.pick(next(self._calls), whole=whole)
        try:
            outputs = session.run([EMBEDDING], {INPUT_NAMES[tower]: array})
        except Exception as error:  # onnxruntime's exceptions share no base below Exception
            raise EngineError(f"{source} failed on an input of {array.shape}: {error}", tower=tower) from error
        shape = (len(array), *self._bundle.output_spec(tower).shape)
        return check_embeddings(outputs[0], shape=shape, source=source, tower=tower)

    def _open(self, provider: Provider | None, precision: Precision | None) -> tuple[Mapping[Tower, Sessions], Runtime]:
        for candidate in candidates(self._bundle, provider, precision):
            runtime = self._runtime_of(candidate, is_named=provider is not None)
            try:
                sessions = self._open_on(runtime)
            except (EngineError, ProviderError) as error:
                if candidate.is_last:
                    raise
                _log.warning("auto skips the provider %s: %s", candidate.provider, error)
                continue
            runtime = replace(runtime, library=next(iter(sessions.values())).library)
            if provider is None or precision is None:
                unused = self._named_streams not in (None, runtime.streams)
                note = f"; streams: {self._named_streams} ignored, they are for processors" if unused else ""
                _log.info("%s: runs on %s (%s%s)", self._bundle.name, runtime, candidate.reason, note)
            if candidate.may_overflow:
                _log.warning("%s: int8 sums may overflow on this processor, which has no VNNI", runtime)
            return sessions, runtime
        raise AssertionError("one of the candidates is the last")

    def _runtime_of(self, candidate: RuntimeCandidate, *, is_named: bool) -> Runtime:
        """Return the runtime of a candidate, with the caller's settings in place of its own.

        The caller's streams are for processors: a GPU that `auto` found (not `is_named`) computes in one.
        """
        streams = self._named_streams or min(candidate.streams, self._threads)
        if candidate.provider is Provider.CUDA and not (is_named and self._named_streams):
            streams = 1
        inference_precision = candidate.inference_precision
        if self._named_openvino is not None:
            inference_precision = self._named_openvino.inference_precision
        if candidate.provider is not Provider.OPENVINO:
            inference_precision = InferencePrecision.F32
        return Runtime(
            provider=candidate.provider,
            precision=candidate.precision,
            threads=self._threads,
            streams=streams,
            inference_precision=inference_precision,
        )

    def _open_on(self, runtime: Runtime) -> dict[Tower, Sessions]:
        sessions: dict[Tower, Sessions] = {}
        for tower in self._towers:
            engine = self._bundle.engine(tower, runtime.precision)
            opened = open_sessions(
                engine,
                runtime.provider,
                threads=runtime.threads,
                streams=runtime.streams,
                openvino=OpenVinoOptions(inference_precision=runtime.inference_precision),
            )
            problem = contract_violation(
                opened.whole, (self._bundle.input_spec(tower),), self._bundle.output_spec(tower)
            )
            if problem:
                message = f"{engine} is not an engine of the {tower} tower: {problem}"
                raise EngineError(message, path=engine, tower=tower)
            if runtime.provider is Provider.CUDA:
                require_computing(
                    opened.whole, {INPUT_NAMES[tower]: _zeros(tower, self._bundle)}, engine, runtime.provider
                )
            sessions[tower] = opened
        return sessions


def _zeros(tower: Tower, bundle: Bundle) -> NDArray[Any]:
    """Return the smallest input of a tower: (1, H, W, 3) uint8, (1, context) int32 or (1, F, M) float32."""
    spec = bundle.input_spec(tower)
    return np.zeros((1, *(bundle.text.context_length if axis == FREE else axis for axis in spec.shape)), spec.dtype)


def _checked_towers(towers: Collection[Tower | str]) -> tuple[Tower, ...]:
    named = [as_member(tower, Tower, "towers") for tower in as_list(towers, "towers")]
    chosen = tuple(tower for tower in Tower if tower in named)
    if not chosen or len(chosen) != len(named):
        message = f"towers {', '.join(named) or 'empty'}: expected one or more of {', '.join(Tower)}, each once"
        raise InputError(message, option="towers")
    return chosen
