"""Certificates: how near an engine's embeddings come to their reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Certificate
from twinspire.errors import EngineError, MissingDependencyError
from twinspire_export.dependencies import installed_version


class EngineRunner:
    """One engine on onnxruntime's CPU provider, the runtime in which certificates are measured.

    Not the way to serve: no buckets, no choice of provider. Raises EngineError where the engine cannot be
    loaded or run.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime as ort
        except ImportError as exc:
            raise MissingDependencyError("onnxruntime", "cpu", "measuring an engine") from exc
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only
        self._name = path.name
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # onnxruntime's errors share no base class
            raise EngineError(f"onnxruntime cannot load {path.name}: {exc}") from exc
        self._input = self._session.get_inputs()[0].name

    def embed(self, batches: Iterable[NDArray[np.uint8] | NDArray[np.int32]]) -> NDArray[np.float32]:
        """Encode `batches`, each an input of the engine, to (N, D) float32, L2-normalised."""
        return np.concatenate([self._run(batch) for batch in batches])

    def _run(self, batch: NDArray[np.uint8] | NDArray[np.int32]) -> NDArray[np.float32]:
        try:
            output: NDArray[np.float32] = self._session.run(["embedding"], {self._input: batch})[0]
        except Exception as exc:  # onnxruntime's errors share no base class
            raise EngineError(f"onnxruntime cannot run {self._name}: {exc}") from exc
        return output


def certify(
    measured: NDArray[np.float32],
    expected: NDArray[np.float32],
    *,
    reference: str,
    data: str,
    packages: Sequence[str],
) -> Certificate:
    """Compare `measured` (N, D) with `expected` (N, D) row by row.

    `packages` are those whose versions had a part in the result. Sets no bound: the caller knows which one
    applies. Raises EngineError where an embedding is not finite.
    """
    cosines = row_cosines(measured, expected)
    if not np.isfinite(cosines).all():
        raise EngineError(
            f"{int((~np.isfinite(cosines)).sum())} of {len(cosines)} embeddings are not finite; the weights hold NaN, "
            "infinities or zeros, or the precision is too small for them"
        )
    return Certificate(
        reference=reference,
        data=data,
        samples=len(cosines),
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        recall=None,
        versions={package: installed_version(package) for package in packages},
    )


def row_cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give the cosine of each row of `left` (N, D) with the same row of `right`: (N,) float64, -1 to 1.

    NaN where a row is zero or not finite.
    """
    a, b = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        cosines: NDArray[np.float64] = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    # Rounding may carry a cosine a last place beyond 1, which nobody should have to read in a certificate.
    return np.clip(cosines, -1.0, 1.0)
