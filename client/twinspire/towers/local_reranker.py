"""A bundle's reranker in this process: pairs of an image and a text to probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Bundle
from twinspire.contract import IMAGE, INPUT_IDS, PROBABILITY
from twinspire.errors import EngineError
from twinspire.towers.auto_selection import Runtime
from twinspire.towers.batching import pair_batches
from twinspire.towers.providers import OpenVinoOptions, open_session
from twinspire.towers.validation import check_probabilities, contract_violation

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
        self._text = bundle.text
        self._source = f"the reranker {name} ({runtime.provider})"
        engine = bundle.path / spec.engine_file(runtime.precision)
        self._session = open_session(
            engine,
            runtime.provider,
            threads=runtime.threads,
            openvino=OpenVinoOptions(inference_precision=runtime.inference_precision),
        )
        problem = contract_violation(self._session, spec.inputs, spec.output)
        if problem:
            raise EngineError(f"{engine} is not the engine of the reranker {name}: {problem}", path=engine)

    def score(self, images: NDArray[np.uint8], sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Return the probability that text n is true of image n, (N,) float32; inputs as those of the towers."""
        scores = np.empty(len(images), np.float32)
        for batch in pair_batches(images, sequences, self._text, batch=BATCH):
            pixels, input_ids = batch.arrays
            try:
                (output,) = self._session.run(
                    [PROBABILITY], {IMAGE: np.ascontiguousarray(pixels), INPUT_IDS: input_ids}
                )
            except Exception as error:  # onnxruntime's exceptions share no base below Exception
                raise EngineError(f"{self._source} failed on pairs of images of {pixels.shape}: {error}") from error
            scores[batch.positions] = check_probabilities(output, count=len(batch), source=self._source)
        return scores
