"""Both towers in this process, through onnxruntime."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_list, as_member
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.contract import EMBEDDING, FREE, INPUT_NAMES
from twinspire.errors import BundleError, EngineError, InputError, ProviderError
from twinspire.towers.auto_selection import AUTO, Candidate, Runtime, candidates, parse_precision, parse_provider
from twinspire.towers.batching import TextBatch, fitted_batches, text_batches
from twinspire.towers.providers import (
    InferencePrecision,
    OpenVinoOptions,
    Provider,
    Session,
    Sessions,
    open_sessions,
    require_computing,
)
from twinspire.towers.streams import Streams
from twinspire.towers.validation import check_embeddings, check_images, check_sequences

_log = logging.getLogger("twinspire")

# Throughput is flat from here on, memory is not: ViT-B/32 holds about 5 MB of activations an image.
BATCH = {Tower.IMAGE: 32, Tower.TEXT: 64}
"""How many images or texts a run takes at most."""
PROCESSOR_BATCH = {Tower.IMAGE: 8, Tower.TEXT: 16}
"""On a processor, whose caches then hold what goes from operator to operator: ViT-B/32 int8 on 2 EPYC cores, a stream
each, encodes 80 images/s by 8, 75 by 16; 623 texts/s by 16, 604 by 64."""


class LocalTowers:
    """The engines of a bundle, run by onnxruntime in this process. May be used from several threads at once.

    `precision` and `provider` name one, or `auto`: that takes what is installed and certified, goes on to the next
    where one does not work, and says on the logger `twinspire` what it chose and why; `runtime` says what. A named
    one is used or an error is raised. `threads` is how many a call computes with on the CPU; None is as many as
    this process may use. `streams` is into how many parts a call is cut, which are computed side by side, each with
    its share of the threads: more images a second, with the engine in memory twice or more, since one image
    alone is still computed by all threads. They are a processor's: a GPU that `auto` finds computes in one, `cuda` by
    name with more is an error. `openvino` are the settings of that provider. Left None, both are what the bundle was
    measured to be fastest with, where that was on a machine such as this one and with the engines and the provider that
    are used here, else 1 and float32. `towers` names those to open: encoding with another raises EngineError, and its
    engine takes no memory. What `auto` chooses does not depend on it.

    Raises InputError for an unknown name or number, BundleError where the bundle lacks the precision,
    MissingDependencyError and BrokenDependencyError where onnxruntime cannot be imported, ProviderError where the
    provider is not there or, on a GPU, does not compute one input, EngineError where an engine
    cannot be loaded or has not the tensors of the contract.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: Precision | str = AUTO,
        provider: Provider | str = AUTO,
        threads: int | None = None,
        streams: int | None = None,
        openvino: OpenVinoOptions | None = None,
        towers: Collection[Tower | str] = tuple(Tower),
    ) -> None:
        self._bundle = bundle
        self._towers = _checked_towers(towers)
        self._threads = _checked_threads(threads)
        self._named_streams = None if streams is None else _checked_streams(streams, self._threads)
        self._named_openvino = openvino
        self._calls = itertools.count()
        self._vocabulary_size = vocabulary_size(bundle.tokenizer_path)
        self._sessions, self.runtime = self._open(parse_provider(provider), parse_precision(precision))
        on_processor = self.runtime.provider is Provider.CPU
        self._most = PROCESSOR_BATCH if on_processor else BATCH
        self._batches = fitted_batches if on_processor else text_batches
        self._streams = Streams(self.runtime.streams)

    def __repr__(self) -> str:
        return f"<LocalTowers: {self.runtime}>"

    @property
    def dim(self) -> int:
        """The embedding's length D."""
        return self._bundle.dim

    @property
    def space(self) -> str:
        """What names the embeddings that may be compared with these."""
        return self._bundle.space

    @property
    def context_length(self) -> int:
        """The most token ids that one text may have, start and end included."""
        return self._bundle.text.context_length

    def encode_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode (N, S, S, 3) uint8 RGB to (N, D) float32, L2-normalised; N may be 0.

        Raises InputError for another dtype or shape, EngineError where the engine fails or gives no unit
        vectors.
        """
        check_images(images, size=self._bundle.image.size)
        embeddings = np.empty((len(images), self.dim), np.float32)
        with self._streams.call() as is_only_call:
            size = self._streams.part_size(len(images), most=self._most[Tower.IMAGE], is_only_call=is_only_call)
            starts = range(0, len(images), size)
            whole = is_only_call and len(starts) == 1

            def encode(start: int) -> None:
                rows = slice(start, start + size)
                embeddings[rows] = self._run(Tower.IMAGE, np.ascontiguousarray(images[rows]), whole=whole)

            self._streams.each(encode, starts, is_only_call=is_only_call)
        return embeddings

    def encode_texts(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Encode N 1-D int32 arrays of token ids to (N, D) float32, L2-normalised; N may be 0.

        Each holds start and end token and no padding. Raises InputError, with its position, for anything else
        and EngineError where the engine fails or gives no unit vectors.
        """
        text = self._bundle.text
        check_sequences(
            sequences,
            context_length=text.context_length,
            vocabulary_size=self._vocabulary_size,
            eos_id=text.eos_id,
        )
        embeddings = np.empty((len(sequences), self.dim), np.float32)
        with self._streams.call() as is_only_call:
            size = self._streams.part_size(len(sequences), most=self._most[Tower.TEXT], is_only_call=is_only_call)
            batches = list(self._batches(sequences, text, batch=size))
            whole = is_only_call and len(batches) == 1

            def encode(batch: TextBatch) -> None:
                embeddings[batch.positions] = self._run(Tower.TEXT, batch.input_ids, whole=whole)

            self._streams.each(encode, batches, is_only_call=is_only_call)
        return embeddings

    def close(self) -> None:
        """Let go of the engines. Encoding after it raises EngineError; closing twice does nothing."""
        self._sessions = {}

    def _run(self, tower: Tower, array: NDArray[Any], *, whole: bool) -> NDArray[np.float32]:
        sessions = self._sessions.get(tower)
        if sessions is None:
            if tower not in self._towers:
                raise EngineError(f"the {tower} tower was not opened: only {', '.join(self._towers)} was asked for")
            raise EngineError("these towers are closed: open new ones")
        source = f"the {tower} tower ({self.runtime})"
        session = sessions.pick(next(self._calls), whole=whole)
        try:
            outputs = session.run([EMBEDDING], {INPUT_NAMES[tower]: array})
        except Exception as error:  # onnxruntime's exceptions share no base below Exception
            raise EngineError(f"{source} failed on an input of {array.shape}: {error}") from error
        return check_embeddings(outputs[0], rows=len(array), dim=self.dim, source=source)

    def _open(self, provider: Provider | None, precision: Precision | None) -> tuple[Mapping[Tower, Sessions], Runtime]:
        for candidate in candidates(self._bundle, provider, precision):
            runtime = self._planned(candidate, is_named=provider is not None)
            try:
                sessions = self._open_on(runtime)
            except (EngineError, ProviderError) as error:
                if candidate.is_last:
                    raise
                _log.warning("auto passes over the provider %s: %s", candidate.provider, error)
                continue
            if provider is None or precision is None:
                unused = self._named_streams not in (None, runtime.streams)
                told = f"; streams: {self._named_streams} are for processors" if unused else ""
                _log.info("%s: runs on %s (%s%s)", self._bundle.name, runtime, candidate.reason, told)
            if candidate.may_overflow:
                _log.warning("%s: int8 sums may overflow on this processor, which has no VNNI", runtime)
            return sessions, runtime
        raise AssertionError("one of the candidates is the last")

    def _planned(self, candidate: Candidate, *, is_named: bool) -> Runtime:
        """Say what a candidate would run as, with what was named in place of its own settings.

        Streams that were named are for a processor: a GPU that `auto` finds (not `is_named`) computes in one.
        """
        streams = self._named_streams or min(candidate.streams, self._threads)
        if candidate.provider is Provider.CUDA and not (is_named and self._named_streams):
            streams = 1
        computed = candidate.inference_precision
        if self._named_openvino is not None:
            computed = self._named_openvino.inference_precision
        return Runtime(
            provider=candidate.provider,
            precision=candidate.precision,
            threads=self._threads,
            streams=streams,
            inference_precision=computed if candidate.provider is Provider.OPENVINO else InferencePrecision.F32,
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
            problem = _contract_violation(opened.whole, tower, self._bundle)
            if problem:
                raise EngineError(f"{engine} is no engine of the {tower} tower: {problem}")
            if runtime.provider is Provider.CUDA:
                require_computing(
                    opened.whole, {INPUT_NAMES[tower]: _zeros(tower, self._bundle)}, engine, runtime.provider
                )
            sessions[tower] = opened
        return sessions


def _zeros(tower: Tower, bundle: Bundle) -> NDArray[Any]:
    """Return the smallest input of a tower: (1, S, S, 3) uint8 or (1, context) int32."""
    if tower is Tower.IMAGE:
        return np.zeros((1, bundle.image.size, bundle.image.size, 3), np.uint8)
    return np.zeros((1, bundle.text.context_length), np.int32)


def _contract_violation(session: Session, tower: Tower, bundle: Bundle) -> str | None:
    """Return how an engine's inputs or outputs differ from the contract, None where they do not."""
    for role, nodes, spec in (
        ("input", session.get_inputs(), bundle.input_spec(tower)),
        ("output", session.get_outputs(), bundle.output_spec),
    ):
        found = [(node.name, node.type, tuple(node.shape)) for node in nodes]
        shape = (FREE, *spec.shape)
        if len(found) != 1 or found[0][:2] != (spec.name, spec.onnxruntime_type) or not _accepts(found[0][2], shape):
            expected = ", ".join("any" if axis == FREE else str(axis) for axis in shape)
            return f"its {role} is {found}, expected one {spec.name!r} {spec.onnxruntime_type} of shape ({expected})"
    return None


def _accepts(shape: Sequence[int | str | None], expected: Sequence[int]) -> bool:
    """Whether a graph's shape accepts every array of the expected one; a free axis must be free in the graph."""
    return len(shape) == len(expected) and all(
        not isinstance(axis, int) or axis == needed for axis, needed in zip(shape, expected, strict=True)
    )


def _checked_threads(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0))
    if type(threads) is not int or threads < 1:
        raise InputError(f"threads {threads!r}: expected a whole number from 1 up, or None for all cores")
    return threads


def _checked_streams(streams: int, threads: int) -> int:
    if type(streams) is not int or not 1 <= streams <= threads:
        raise InputError(
            f"streams {streams!r}: expected a whole number from 1 to {threads}, the threads that they divide among them"
        )
    return streams


def _checked_towers(towers: Collection[Tower | str]) -> tuple[Tower, ...]:
    named = [as_member(tower, Tower, "towers") for tower in as_list(towers, "towers")]
    chosen = tuple(tower for tower in Tower if tower in named)
    if not chosen or len(chosen) != len(named):
        raise InputError(f"towers {named}: expected one or more of {', '.join(Tower)}, each once")
    return chosen


def vocabulary_size(tokenizer: Path) -> int:
    """Return one more than the highest token id: engines that look further may answer without an error."""
    try:
        document = json.loads(tokenizer.read_bytes())
        vocabulary = document["model"]["vocab"]  # BPE, WordPiece: token to id; Unigram: pairs in the ids' order
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        added = [token["id"] for token in document.get("added_tokens") or ()]
        return 1 + max(int(token) for token in (*ids, *added))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BundleError(f"{tokenizer} holds no vocabulary: {error!r}. Export the bundle again") from error
