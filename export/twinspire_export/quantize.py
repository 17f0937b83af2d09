"""Bundle to bundle: engines of another precision beside the fp32 ones. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_member
from twinspire.audio import AudioItem
from twinspire.bundle import Bundle, BundleWriter, Certificate, Precision, Reranker, Tower
from twinspire.contract import INPUT_NAMES
from twinspire.errors import BundleError, EngineError, InputError, ItemError
from twinspire.images import ImageItem
from twinspire.tensorrt_support import check_symmetric
from twinspire_eval.statistics import row_cosines
from twinspire_export.calibration import (
    CalibrationSplit,
    audio_samples,
    image_samples,
    scene_captions,
    scene_images,
    text_samples,
)
from twinspire_export.engine_check import EngineRunner, certify, check_engine, check_graph
from twinspire_export.fp16 import nodes_out_of_range, to_fp16
from twinspire_export.pairs import agreement, pair_samples
from twinspire_export.quantization.float_fallback import MIN_COSINE, Accuracy, Layers, Measure, quantize_accurately
from twinspire_export.quantization.graph_passes import has_post_norm_blocks
from twinspire_export.quantization.node_roles import is_convolutional
from twinspire_export.quantization.outlier_channels import split_nodes_of
from twinspire_export.quantization.quantizer import Feed, quantize_graph
from twinspire_export.quantization.recipe import DEFAULT_RECIPE, Int8Recipe, QuantizationTarget, Ranges

if TYPE_CHECKING:
    import onnx

PRECISIONS = (Precision.INT8, Precision.FP16, Precision.INT8_TENSORRT)
"""The precisions that an fp32 engine can be converted to."""

MIN_MEAN_COSINE: Mapping[Precision, float] = {
    Precision.INT8: 0.9,
    Precision.INT8_TENSORRT: 0.9,
    Precision.FP16: 0.999,
}
"""Below it an engine is not imprecise but broken. Measured on ViT-B/32: 0.99 and more for int8, 0.99999 for fp16."""

MAX_DIFFERENCE = 0.02
"""The largest difference from fp32 that a probability of an int8 reranker may have on any pair."""

MAX_MEAN_DIFFERENCE = 0.05
"""Beyond it, on average, a reranker is not imprecise but broken."""

_RANGE_SAMPLES = 16
"""Samples on which the ranges of all activations are measured for fp16; each holds all tensors of a run in memory."""

_FP16_QUANTIZERS_OPSET = 19
"""The first in which QuantizeLinear and DequantizeLinear take float16."""

_VERSIONS = ("onnx", "onnxruntime")
_NOUNS = {Tower.IMAGE: "images", Tower.TEXT: "captions", Tower.AUDIO: "sounds"}


def quantize_bundle(
    bundle: Bundle | str | Path,
    destination: str | Path,
    *,
    precision: Precision | str = Precision.INT8,
    images: Sequence[ImageItem] | NDArray[np.uint8] | None = None,
    captions: Sequence[str] | None = None,
    sounds: Sequence[AudioItem] | None = None,
    recipes: Mapping[Tower, Int8Recipe] | None = None,
    ranges: Ranges | str | None = None,
    min_cosine: float | None = MIN_COSINE,
    reranker: bool = True,
    on_step: Callable[[str], None] | None = None,
    on_bad_item: Callable[[ItemError], None] | None = None,
) -> Bundle:
    """Make the bundle `destination`: `bundle` with an engine of `precision` added for each tower and its reranker.

    Engines are measured on `images`, items that a client takes or (N, S, S, 3) uint8, on `captions` and on `sounds`; by
    default on synthetic scenes and generated sounds. int8 is also calibrated on them: of 20 or more a fifth is held out
    to measure on, and the certificates say so. `recipes` says how to quantize a tower, by default as `default_recipe`
    with `ranges`. Where the worst sample's cosine to fp32 stays below `min_cosine`, layers of the int8 engine are split
    or stay in float until it is reached, and the certificate names them (`quantization.float_fallback`); None keeps to
    the recipe. The reranker scores pairs of the images and captions; unless `min_cosine` is None, layers of its int8
    engine stay in float until no probability is further than MAX_DIFFERENCE from fp32's. With `reranker` False it stays
    as it is.
    Unchanged files are hard links. `on_step` is called with a description of each step as it begins, `on_bad_item` with
    the error of each image or sound that is skipped; without it the first such error is raised.

    Leaves nothing behind where it raises: BundleError where `bundle` has such engines already or `destination` exists,
    InputError and ItemError for the arguments, EngineError where an engine cannot be made or is not usable.
    """
    step = on_step or (lambda _: None)
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    target = Precision(precision)
    base = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    already = [tower for tower in base.towers if target in base.precisions(tower)]
    if already:
        raise BundleError(
            f"{base.path} has {target} engines already ({', '.join(already)}). To replace them, quantize the bundle "
            "that it was made from"
        )
    with BundleWriter(destination, base=base) as writer:
        step(f"reading the samples to {'measure' if target is Precision.FP16 else 'calibrate'} on")
        samples: dict[Tower, CalibrationSplit[NDArray[Any]]] = {}
        if Tower.IMAGE in base.towers:
            chosen_images = scene_images() if images is None else images
            samples[Tower.IMAGE] = image_samples(base, chosen_images, on_bad=on_bad_item)
        if Tower.TEXT in base.towers:
            samples[Tower.TEXT] = text_samples(base, scene_captions() if captions is None else captions)
        if Tower.AUDIO in base.towers:
            samples[Tower.AUDIO] = audio_samples(base, sounds, on_bad=on_bad_item)
        engines: dict[tuple[Tower, Precision], tuple[str, Certificate | None]] = {}
        for tower, chosen in samples.items():
            reference, file = base.engine(tower, Precision.FP32), f"{tower}.{target}.onnx"
            step(f"making the {target} {tower} tower on {len(chosen.calibration)} samples")
            engine, recipe = writer.path(file), (recipes or {}).get(tower)
            options: dict[str, Any] = {"precision": target, "recipe": recipe, "ranges": ranges}
            feeds = [{INPUT_NAMES[tower]: sample} for sample in chosen.calibration]
            write_engine(reference, feeds, engine, **options)
            check_engine(engine, tower, base.manifest.tower(tower))
            step(f"measuring the {tower} tower on {len(chosen.measurement)} samples")
            certificate = _certify(tower, target, reference, engine, chosen)
            if target is not Precision.FP16 and min_cosine is not None and certificate.min_cosine < min_cosine:
                step(
                    f"the {tower} tower's minimum cosine is {certificate.min_cosine:.4f}, below {min_cosine}: looking "
                    "for layers to split or to keep in float"
                )
                accuracy = Accuracy(min_cosine, _measure(reference, chosen.measurement))
                layers = write_engine(reference, feeds, engine, **options, accuracy=accuracy)
                check_engine(engine, tower, base.manifest.tower(tower))
                certificate = replace(
                    _certify(tower, target, reference, engine, chosen),
                    split_layers=layers.split,
                    float_layers=layers.in_float,
                )
            _require_usable(tower, target, certificate)
            engines[tower, target] = file, certificate
        draft = base.manifest.draft()
        if reranker and draft.rerankers:
            name, made = _quantize_reranker(
                base, writer, samples, target, ranges, is_searched=min_cosine is not None, step=step
            )
            draft = replace(draft, rerankers={**draft.rerankers, name: made})
        step("writing the bundle")
        return writer.commit(draft, engines)


def _quantize_reranker(
    base: Bundle,
    writer: BundleWriter,
    samples: Mapping[Tower, CalibrationSplit[NDArray[Any]]],
    target: Precision,
    ranges: Ranges | str | None,
    *,
    is_searched: bool,
    step: Callable[[str], None],
) -> tuple[str, Reranker]:
    """Write the engine of the bundle's reranker; return the reranker with it. Raises EngineError where it is unusable.

    With `is_searched`, layers stay in float until no probability is further than MAX_DIFFERENCE from fp32's.
    """
    name, spec = base.manifest.reranker()
    if target in spec.engines or Precision.FP32 not in spec.engines:
        raise BundleError(
            f"the reranker {name!r} of {base.path} has engines of {', '.join(spec.engines)}: expected fp32 and not yet "
            f"{target}. Leave the reranker as it is (--no-reranker)"
        )
    pairs = pair_samples(samples[Tower.IMAGE], samples[Tower.TEXT], base.text)
    reference, file = base.path / spec.engines[Precision.FP32], f"reranker.{target}.onnx"
    engine, measure = writer.path(file), agreement(reference, pairs.measurement)
    step(f"making the {target} reranker {name} on {len(pairs.calibration)} pairs")
    write_engine(reference, pairs.calibration, engine, precision=target, ranges=ranges)
    differences = _differences(engine, measure)
    if target is not Precision.FP16 and is_searched and differences.max() > MAX_DIFFERENCE:
        step(
            f"the reranker's probabilities differ from fp32's by up to {differences.max():.3f}, more than "
            f"{MAX_DIFFERENCE}: looking for layers to split or to keep in float"
        )
        accuracy = Accuracy(1 - MAX_DIFFERENCE, measure)
        write_engine(reference, pairs.calibration, engine, precision=target, ranges=ranges, accuracy=accuracy)
        differences = _differences(engine, measure)
    check_graph(engine, spec.inputs, spec.output, of=f"the reranker {name}")
    measured = (
        f"its probabilities differ from fp32's by {differences.mean():.4f} on average, {differences.max():.4f} at most"
    )
    data = pairs.describe("pairs")
    if differences.mean() > MAX_MEAN_DIFFERENCE:
        raise EngineError(
            f"the {target} reranker {name} is not usable: {measured}, on {data}; at most {MAX_MEAN_DIFFERENCE} on "
            "average is required. Calibrate on more samples, like those the model is used on, or leave the reranker as "
            "it is (--no-reranker)"
        )
    step(f"the {target} reranker {name}: {measured} ({data})")
    return name, replace(spec, engines={**spec.engines, target: file})


def _differences(engine: Path, measure: Measure) -> NDArray[np.float64]:
    """Return how far each probability is from fp32's, 0 to 1."""
    import onnx

    differences: NDArray[np.float64] = 1.0 - measure(onnx.load(engine), None)
    return differences


def default_recipe(
    model: onnx.ModelProto, precision: Precision = Precision.INT8, *, ranges: Ranges | str | None = None
) -> Int8Recipe:
    """Return DEFAULT_RECIPE, changed where the fp32 graph `model` is a convolutional network or has post-norm blocks.

    Convolutional networks get asymmetric ranges, where the target has them: EfficientNet's SiLU gives -0.28 and more,
    so symmetric ranges use little more than half of their levels. A small ALIGN has a mean cosine to fp32 of 0.998 in
    place of 0.988. Post-norm blocks, as of BERT, are not smoothed (`has_post_norm_blocks`). `ranges` are taken as
    named. Raises InputError for unknown ranges.
    """
    recipe = DEFAULT_RECIPE
    if has_post_norm_blocks(model):
        recipe = replace(recipe, smooth_alpha=None)
    if ranges is not None:
        return replace(recipe, ranges=as_member(ranges, Ranges, "ranges"))
    if precision is Precision.INT8 and is_convolutional(model):
        return replace(recipe, ranges=Ranges.ASYMMETRIC)
    return recipe


def write_engine(
    reference: Path,
    feeds: Sequence[Feed],
    destination: Path,
    *,
    precision: Precision,
    recipe: Int8Recipe | None = None,
    ranges: Ranges | str | None = None,
    accuracy: Accuracy | None = None,
) -> Layers:
    """Convert the fp32 engine `reference` to `precision`; each of `feeds` holds its inputs for one sample.

    `recipe` is for int8 only, by default as `default_recipe` with `ranges`.

    With `accuracy`, layers are split or stay in float until it is reached; returns which.
    Raises EngineError where it cannot be converted.
    """
    import onnx

    model = onnx.load(reference)
    layers = Layers()
    if precision is Precision.FP16:
        model = to_fp16(model, keep=nodes_out_of_range(model, feeds[:_RANGE_SAMPLES]))
    else:
        recipe = recipe or default_recipe(model, precision, ranges=ranges)
        for_tensorrt = precision is Precision.INT8_TENSORRT
        keep = nodes_out_of_range(model, feeds[:_RANGE_SAMPLES]) if for_tensorrt else []
        if for_tensorrt:
            recipe = replace(recipe, target=QuantizationTarget.TENSORRT)
        if accuracy is None:
            model = quantize_graph(model, feeds, recipe)
        else:
            model, layers = quantize_accurately(model, feeds, recipe, accuracy)
        if for_tensorrt and not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
            raise EngineError(
                f"no layer of {reference.name} can be int8 for TensorRT: the minimum cosine to fp32 is reached "
                "with all of them in float only. Use fp16 (--precision fp16), or accept less (--min-cosine)"
            )
        if for_tensorrt:
            model = _between_in_fp16(model, keep)
    model.producer_name, model.producer_version = "twinspire", ""
    onnx.save(model, destination)
    return layers


def _between_in_fp16(quantized: onnx.ModelProto, keep: Sequence[str]) -> onnx.ModelProto:
    """Make fp16 what is between int8 multiplications, but for `keep`: TensorRT's networks are strongly typed."""
    from onnx import version_converter

    kept = [*keep, *(added for name in keep for added in split_nodes_of(name))]
    converted = to_fp16(version_converter.convert_version(quantized, _FP16_QUANTIZERS_OPSET), keep=kept)
    check_symmetric(converted)
    return converted


def _measure(reference: Path, samples: Sequence[NDArray[Any]]) -> Measure:
    """Return what measures a graph's cosine to the engine `reference` on `samples`; -1 where it is not finite."""
    expected = EngineRunner(reference).embed(samples)

    def measure(model: onnx.ModelProto, positions: Sequence[int] | None) -> NDArray[np.float64]:
        chosen = list(range(len(samples)) if positions is None else positions)
        found = EngineRunner(model.SerializeToString()).embed(samples[position] for position in chosen)
        cosines: NDArray[np.float64] = np.nan_to_num(row_cosines(found, expected[chosen]), nan=-1.0)
        by_sample: NDArray[np.float64] = cosines.reshape(len(chosen), -1).min(axis=1)  # the worst of its vectors
        return by_sample

    return measure


def _certify(
    tower: Tower, precision: Precision, reference: Path, engine: Path, samples: CalibrationSplit[NDArray[Any]]
) -> Certificate:
    is_calibrated = precision is not Precision.FP16
    noun = _NOUNS[tower]
    data = samples.describe(noun) if is_calibrated else f"{len(samples.measurement)} {noun}"
    return certify(
        EngineRunner(engine).embed(samples.measurement),
        EngineRunner(reference).embed(samples.measurement),
        reference="fp32 engine",
        data=data,
        packages=(("nncf", *_VERSIONS) if is_calibrated else _VERSIONS),
    )


def _require_usable(tower: Tower, precision: Precision, certificate: Certificate) -> None:
    minimum = MIN_MEAN_COSINE[precision]
    if certificate.mean_cosine < minimum:
        raise EngineError(
            f"the {precision} {tower} tower is not usable: its mean cosine to fp32 is {certificate.mean_cosine:.4f} on "
            f"{certificate.data}; at least {minimum} is required. "
            + (
                "Stay with fp32"
                if precision is Precision.FP16
                else "Calibrate on more samples, like those the model is used on"
            )
        )
