"""Pairs of an image and a text on which a reranker's engine is calibrated, and compared with its fp32 engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import TextSettings
from twinspire.contract import IMAGE, INPUT_IDS, PROBABILITY, padded
from twinspire_export.calibration import CalibrationSplit
from twinspire_export.engine_check import open_engine, run_engine
from twinspire_export.quantization.float_fallback import Measure
from twinspire_export.quantization.quantizer import Feed

if TYPE_CHECKING:
    import onnx


def pair_samples(
    images: CalibrationSplit[NDArray[Any]], texts: CalibrationSplit[NDArray[Any]], settings: TextSettings
) -> CalibrationSplit[Feed]:
    """Pair the samples of the towers, which are held out for both or count as calibrated on.

    Every other image gets the text of its own number, the others the next one: captions of the images give pairs that
    match and pairs that do not.
    """
    return CalibrationSplit(
        calibration=_pairs(images.calibration, texts.calibration, settings),
        measurement=_pairs(images.measurement, texts.measurement, settings),
        held_out=images.held_out and texts.held_out,
    )


def _pairs(images: Sequence[NDArray[Any]], texts: Sequence[NDArray[Any]], settings: TextSettings) -> list[Feed]:
    pairs: list[Feed] = []
    for row, image in enumerate(images):
        (ids,) = texts[(row + row % 2) % len(texts)]
        pairs.append({IMAGE: image, INPUT_IDS: padded([ids], settings.pad_id, settings.context_length)})
    return pairs


def score_pairs(engine: Path | bytes, pairs: Sequence[Feed]) -> NDArray[np.float32]:
    """Run a reranker's engine on onnxruntime's CPU provider: (N,). Raises EngineError where it fails."""
    name = engine.name if isinstance(engine, Path) else "the reranker"
    session = open_engine(engine, name)
    return np.concatenate([run_engine(session, [PROBABILITY], dict(pair), name)[0].reshape(1) for pair in pairs])


def agreement(reference: Path, pairs: Sequence[Feed]) -> Measure:
    """Return what measures how near a graph's probabilities come to those of the engine `reference`.

    1 where they are equal, 1 less their difference otherwise, 0 for NaN.
    """
    expected = score_pairs(reference, pairs)

    def measure(model: onnx.ModelProto, positions: Sequence[int] | None) -> NDArray[np.float64]:
        chosen = list(range(len(pairs)) if positions is None else positions)
        found = score_pairs(model.SerializeToString(), [pairs[position] for position in chosen])
        near: NDArray[np.float64] = np.nan_to_num(1.0 - np.abs(found - expected[chosen]).astype(np.float64), nan=0.0)
        return near

    return measure
