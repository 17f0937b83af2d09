"""A bundle's reranker in this process: pairs of an image and a text to probabilities."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from twinspire._cores import thread_count
from twinspire.bundle import Bundle, Precision
from twinspire.contract import IMAGE, INPUT_IDS, PROBABILITY
from twinspire.errors import EngineError, ProviderError
from twinspire.towers.auto_selection import AUTO, Runtime, candidates, parse_precision, parse_provider
from twinspire.towers.batching import pair_batches
from twinspire.towers.providers import InferencePrecision, OpenVinoOptions, Provider, Session, open_session
from twinspire.towers.validation import check_probabilities, contract_violation

_log = logging.getLogger("twinspire")

BATCH = 16
"""The most pairs of a run."""


class LocalReranker:
    """The reranker's engine on the runtime of a bundle's towers, with all its threads; several callers may share it.

    Its precision is the towers', or else the first that the reranker has.

    Raises BundleError where the bundle has no reranker, ProviderError where the provider does not support its engine,
    EngineError where the engine cannot be loaded or violates the contract.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        name, spec = bundle.manifest.reranker()
        self.runtime = replace(runtime, precision=spec.precision_for(runtime.precision))
        self._text = bundle.text
        self._source = f"the reranker {name} ({runtime.provider})"
        engine = bundle.path / spec.engine_file(runtime.precision)
        self._session: Session | None = open_session(
            engine,
            runtime.provider,
            threads=runtime.threads,
            openvino=OpenVinoOptions(inference_precision=runtime.inference_precision),
        )
        problem = contract_violation(self._session, spec.inputs, spec.output)
        if problem:
            raise EngineError(f"{engine} is not the engine of the reranker {name}: {problem}", path=engine)

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        *,
        precision: Precision | str = AUTO,
        provider: Provider | str = AUTO,
        threads: int | None = None,
    ) -> LocalReranker:
        """Open the reranker without the towers, on the runtime that `LocalTowers` would take.

        Raises what opening raises, InputError for an unknown name or number.
        """
        count = thread_count(threads)
        for candidate in candidates(bundle, parse_provider(provider), parse_precision(precision)):
            is_openvino = candidate.provider is Provider.OPENVINO
            runtime = Runtime(
                provider=candidate.provider,
                precision=candidate.precision,
                threads=count,
                inference_precision=candidate.inference_precision if is_openvino else InferencePrecision.F32,
            )
            try:
                return cls(bundle, runtime)
            except (EngineError, ProviderError) as error:
                if candidate.is_last:
                    raise
                _log.warning("auto skips the provider %s for the reranker: %s", candidate.provider, error)
        raise AssertionError("one of the candidates is the last")

    def close(self) -> None:
        """Release the engine. Scoring then raises EngineError; closing twice does nothing."""
        self._session = None

    def score(self, images: NDArray[np.uint8], sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Return the probability that text n is true of image n, (N,) float32; inputs as those of the towers."""
        session = self._session
        if session is None:
            raise EngineError(f"{self._source} is closed: open it again")
        scores = np.empty(len(images), np.float32)
        for batch in pair_batches(images, sequences, self._text, batch=BATCH):
            pixels, input_ids = batch.arrays
            try:
                (output,) = session.run([PROBABILITY], {IMAGE: np.ascontiguousarray(pixels), INPUT_IDS: input_ids})
            except Exception as error:  # onnxruntime's exceptions share no base below Exception
                raise EngineError(f"{self._source} failed on pairs of images of {pixels.shape}: {error}") from error
            scores[batch.positions] = check_probabilities(output, count=len(batch), source=self._source)
        return scores
