"""Bundle to bundle: engines of a further precision beside the fp32 ones, without torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Bundle, BundleWriter, Certificate, Precision, Tower
from twinspire.errors import BundleError, EngineError, ImageError, InputError
from twinspire.images import ImageItem
from twinspire.tensorrt_support import check_symmetric
from twinspire_export.calibration import Split, drawn_captions, drawn_images, image_samples, text_samples
from twinspire_export.certificate import EngineRunner, certify
from twinspire_export.engine_check import check_engine
from twinspire_export.fp16 import nodes_out_of_range, to_half
from twinspire_export.quantization.quantizer import DEFAULT_RECIPES, quantize_graph
from twinspire_export.quantization.recipe import Int8Recipe, Variant
from twinspire_export.quantization.search import SearchSettings, search_recipe

if TYPE_CHECKING:
    import onnx

PRECISIONS = (Precision.INT8, Precision.FP16, Precision.INT8_TENSORRT)
"""What an fp32 engine can be turned into."""

MIN_MEAN_COSINE: Mapping[Precision, float] = {
    Precision.INT8: 0.9,
    Precision.INT8_TENSORRT: 0.9,
    Precision.FP16: 0.999,
}
"""Below it an engine is not imprecise but broken. Seen on CLIP: 0.99 and more for int8, 0.99999 for fp16."""

_RANGE_SAMPLES = 16
"""On so many samples the ranges of all activations are seen, for fp16; each holds all tensors of a run in memory."""

_FP16_QUANTIZERS_OPSET = 19
"""The first in which QuantizeLinear and DequantizeLinear take float16."""

_VERSIONS = ("onnx", "onnxruntime")


def quantize_bundle(
    bundle: Bundle | str | Path,
    destination: str | Path,
    *,
    precision: Precision | str = Precision.INT8,
    pictures: Sequence[ImageItem] | NDArray[np.uint8] | None = None,
    captions: Sequence[str] | None = None,
    recipes: Mapping[Tower, Int8Recipe] | None = None,
    search: SearchSettings | None = None,
    on_step: Callable[[str], None] | None = None,
    on_bad_image: Callable[[ImageError], None] | None = None,
) -> Bundle:
    """Make the bundle `destination`: that of `bundle`, with an engine of `precision` for each tower added.

    Measured on `images`, items that a client takes or (N, S, S, 3) uint8, and on `captions`; on drawn scenes where
    none are given. int8 is calibrated on them too: of 20 or more a fifth is kept apart to measure on, and the
    certificates say so. `recipes` says how a tower is quantized, DEFAULT_RECIPES where it does not; with `search` each
    tower's is searched on the same samples, which measures speed, so nothing else should run. What was tried is kept in
    `destination` with `.search` behind its name until the bundle is there: the same call goes on where one was ended.
    What does not change is hard-linked. `on_step` is told in a few words what begins; `on_bad_image` of each image
    that is left out, which is an ImageError without it.

    Nothing is left where it fails: BundleError where `bundle` has such engines already or `destination` exists,
    InputError and ImageError for what is given, EngineError where an engine cannot be made or is not usable.
    """
    step = on_step or (lambda _: None)
    wanted = _checked(precision)
    if search is not None and (wanted is Precision.FP16 or recipes):
        why = "where one is given" if recipes else f"for {wanted}: int8 is what is made by one"
        raise InputError(f"a recipe cannot be searched {why}")
    base = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    already = [tower for tower in Tower if wanted in base.precisions(tower)]
    if already:
        raise BundleError(
            f"{base.path} has {wanted} engines already ({', '.join(already)}). To make them anew, quantize the bundle "
            "that it was made from"
        )
    work = Path(destination).with_name(f"{Path(destination).name}.search")
    with BundleWriter(destination, base=base) as writer:
        step("reading what to measure on" if wanted is Precision.FP16 else "reading what to calibrate on")
        samples: dict[Tower, Split[NDArray[Any]]] = {
            Tower.IMAGE: image_samples(base, drawn_images() if pictures is None else pictures, on_bad=on_bad_image),
            Tower.TEXT: text_samples(base, drawn_captions() if captions is None else captions),
        }
        engines: dict[tuple[Tower, Precision], tuple[str, Certificate | None]] = {}
        for tower, chosen in samples.items():
            reference, file = base.engine(tower, Precision.FP32), f"{tower}.{wanted}.onnx"
            recipe = {**DEFAULT_RECIPES, **(recipes or {})}[tower]
            if search is not None:
                recipe = _searched(reference, chosen, work / tower, wanted, search, step)
                step(f"the recipe of the {tower} tower: {recipe}")
            step(f"making the {wanted} {tower} tower on {len(chosen.calibration)} samples")
            made = writer.path(file)
            write_engine(reference, chosen.calibration, made, precision=wanted, recipe=recipe)
            check_engine(made, tower, dim=base.dim, size=base.image.size)
            step(f"measuring the {tower} tower on {len(chosen.measurement)} samples")
            engines[tower, wanted] = file, _certify(tower, wanted, reference, made, chosen)
        step("writing the bundle")
        written = writer.commit(base.manifest.draft(), engines)
    if search is not None:
        shutil.rmtree(work, ignore_errors=True)
    return written


def _searched(
    reference: Path,
    samples: Split[NDArray[Any]],
    work: Path,
    precision: Precision,
    settings: SearchSettings,
    step: Callable[[str], None],
) -> Int8Recipe:
    """Search a tower's recipe. For TensorRT no parts are left out: what that costs there cannot be measured here."""
    variant = Variant.CPU
    if precision is Precision.INT8_TENSORRT:
        variant, settings = Variant.TENSORRT, replace(settings, left_out_steps=0)
    result = search_recipe(
        reference,
        samples.calibration,
        samples.measurement,
        work=work,
        variant=variant,
        settings=settings,
        on_step=step,
    )
    return (result.chosen if variant is Variant.CPU else result.best).recipe


def write_engine(
    reference: Path, samples: Sequence[NDArray[Any]], destination: Path, *, precision: Precision, recipe: Int8Recipe
) -> None:
    """Make an engine of the fp32 engine `reference`; each of `samples` is an input of it. `recipe` is for int8 alone.

    Raises EngineError where it cannot be made so.
    """
    import onnx

    model = onnx.load(reference)
    feeds = [{model.graph.input[0].name: sample} for sample in samples]
    if precision is Precision.FP16:
        model = to_half(model, keep=nodes_out_of_range(model, feeds[:_RANGE_SAMPLES]))
        model.producer_name, model.producer_version = "twinspire", ""
    elif precision is Precision.INT8:
        model = quantize_graph(model, feeds, recipe)
    else:
        model = _for_tensorrt(model, feeds, recipe)
    onnx.save(model, destination)


def _for_tensorrt(model: onnx.ModelProto, feeds: Sequence[Mapping[str, NDArray[Any]]], recipe: Int8Recipe) -> Any:  # noqa: ANN401
    """Quantize for TensorRT: int8 products, and fp16 between them, since its networks have no other precisions."""
    from onnx import version_converter

    keep = nodes_out_of_range(model, feeds[:_RANGE_SAMPLES])
    quantized = quantize_graph(model, feeds, replace(recipe, variant=Variant.TENSORRT))
    made = to_half(version_converter.convert_version(quantized, _FP16_QUANTIZERS_OPSET), keep=keep)
    check_symmetric(made)
    made.producer_name, made.producer_version = "twinspire", ""
    return made


def _checked(precision: Precision | str) -> Precision:
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    return Precision(precision)


def _certify(
    tower: Tower, precision: Precision, reference: Path, made: Path, samples: Split[NDArray[Any]]
) -> Certificate:
    calibrated = precision is not Precision.FP16
    what = "pictures" if tower is Tower.IMAGE else "captions"
    data = samples.describe(what) if calibrated else f"{len(samples.measurement)} {what}"
    certificate = certify(
        EngineRunner(made).embed(samples.measurement),
        EngineRunner(reference).embed(samples.measurement),
        reference="fp32 engine",
        data=data,
        packages=(("nncf", *_VERSIONS) if calibrated else _VERSIONS),
    )
    least = MIN_MEAN_COSINE[precision]
    if certificate.mean_cosine < least:
        raise EngineError(
            f"the {precision} {tower} tower is not usable: its mean cosine to fp32 is {certificate.mean_cosine:.4f} on "
            f"{data}, at least {least} is required. "
            + ("Calibrate on more, and on what the model is used for" if calibrated else "Stay with fp32")
        )
    return certificate
