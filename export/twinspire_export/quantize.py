"""Bundle to bundle: int8 engines beside the fp32 ones, calibrated on pictures and captions, without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Bundle, BundleWriter, Certificate, Precision, Tower
from twinspire.errors import BundleError, EngineError
from twinspire.images import ImageItem
from twinspire_export.calibration import Split, drawn_captions, drawn_pictures, image_samples, text_samples
from twinspire_export.certificate import EngineRunner, certify
from twinspire_export.contract import check_engine
from twinspire_export.quantizer import quantize_graph

MIN_MEAN_COSINE = 0.9
"""Below it an engine is not imprecise but broken. Seen on CLIP: 0.995 and more."""

_VERSIONS = ("nncf", "onnx", "onnxruntime")


def quantize_bundle(
    bundle: Bundle | str | Path,
    destination: str | Path,
    *,
    pictures: Sequence[ImageItem] | NDArray[np.uint8] | None = None,
    captions: Sequence[str] | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Bundle:
    """Make the bundle `destination`: that of `bundle`, with an int8 engine for each tower added.

    Calibrated on `pictures`, items that a client takes or (N, S, S, 3) uint8, and on `captions`; on drawn scenes
    where none are given. Of 20 or more a fifth is kept apart to measure on, and the certificates say so. What does
    not change is hard-linked. `on_step` is told in a few words what begins.

    Nothing is left where it fails: BundleError where `bundle` has int8 engines already or `destination`
    exists, InputError and ImageError for what is given to calibrate on, EngineError where an engine cannot be
    quantized.
    """
    step = on_step or (lambda _: None)
    base = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    quantized_already = [tower for tower in Tower if Precision.INT8 in base.precisions(tower)]
    if quantized_already:
        raise BundleError(
            f"{base.path} has int8 engines already ({', '.join(quantized_already)}). To calibrate anew, quantize the "
            "bundle that it was made from"
        )
    with BundleWriter(destination, base=base) as writer:
        step("reading what to calibrate on")
        samples: dict[Tower, Split[NDArray[Any]]] = {
            Tower.IMAGE: image_samples(base, drawn_pictures() if pictures is None else pictures),
            Tower.TEXT: text_samples(base, drawn_captions() if captions is None else captions),
        }
        engines: dict[tuple[Tower, Precision], tuple[str, Certificate | None]] = {}
        for tower, chosen in samples.items():
            reference, file = base.engine(tower, Precision.FP32), f"{tower}.{Precision.INT8}.onnx"
            step(f"quantizing the {tower} tower on {len(chosen.calibration)} samples")
            made = writer.path(file)
            _write_quantized(reference, chosen.calibration, made)
            check_engine(made, tower, dim=base.dim, size=base.image.size)
            step(f"measuring the {tower} tower on {len(chosen.measurement)} samples")
            engines[tower, Precision.INT8] = file, _certify(tower, reference, made, chosen)
        step("writing the bundle")
        return writer.commit(base.manifest.draft(), engines)


def _write_quantized(reference: Path, samples: Sequence[NDArray[Any]], destination: Path) -> None:
    """Quantize the engine `reference` on `samples`."""
    import onnx

    model = onnx.load(reference)
    name = model.graph.input[0].name
    onnx.save(quantize_graph(model, [{name: sample} for sample in samples]), destination)


def _certify(tower: Tower, reference: Path, made: Path, samples: Split[NDArray[Any]]) -> Certificate:
    data = samples.describe("pictures" if tower is Tower.IMAGE else "captions")
    certificate = certify(
        EngineRunner(made).embed(samples.measurement),
        EngineRunner(reference).embed(samples.measurement),
        reference="fp32 engine",
        data=data,
        packages=_VERSIONS,
    )
    if certificate.mean_cosine < MIN_MEAN_COSINE:
        raise EngineError(
            f"the int8 {tower} tower is not usable: its mean cosine to fp32 is {certificate.mean_cosine:.4f} on "
            f"{data}, at least {MIN_MEAN_COSINE} is required. Calibrate on more, and on what the model is used for"
        )
    return certificate
