"""An fp32 graph to an int8 one, by NNCF's post-training quantization. Knows no torch and no bundle.

Made are Q/DQ pairs (https://github.com/openvinotoolkit/nncf), then tidied so that runtimes find in them what they have
kernels for. Weights are stored as int8.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from twinspire.bundle import Tower
from twinspire.errors import EngineError, MissingDependencyError
from twinspire.graph_edit import Wiring
from twinspire.tensorrt_support import check_symmetric
from twinspire_export.quantization.graph_passes import (
    absorb_smoothing,
    gather_before_dequantizing,
    share_as_uint8,
    sign_activations,
)
from twinspire_export.quantization.node_roles import Kind, nodes_labelled, parts_of
from twinspire_export.quantization.patches import multiplies_pixels, multiply_bytes
from twinspire_export.quantization.recipe import BiasCorrection, Int8Recipe, RangeEstimator, Ranges, Variant

if TYPE_CHECKING:
    import onnx

Feed = Mapping[str, NDArray[Any]]
"""An engine's inputs by name, one sample."""

DEFAULT_RECIPE = Int8Recipe(left_out=(Kind.ATTENTION_SCORES, Kind.PROJECTION))
"""What a search on ViT-B/32 with seeded weights gave, whose trials were not kept (bench/LOG.md). What it leaves out are
the smallest products; ranges without clipping also hold for images of another kind than those calibrated on."""

DEFAULT_RECIPES: Mapping[Tower, Int8Recipe] = {Tower.IMAGE: DEFAULT_RECIPE, Tower.TEXT: DEFAULT_RECIPE}


def recipes_with(*, ranges: str) -> dict[Tower, Int8Recipe]:
    """Return the default recipes with other ranges. Raises InputError for what is none."""
    return {
        tower: Int8Recipe.from_json({**recipe.to_json(), "ranges": ranges}) for tower, recipe in DEFAULT_RECIPES.items()
    }


def quantize_graph(
    model: onnx.ModelProto, feeds: Sequence[Feed], recipe: Int8Recipe = DEFAULT_RECIPE
) -> onnx.ModelProto:
    """Quantize `model` by `recipe`, with the ranges that `feeds` show. `model` is not to be used afterwards.

    Raises InputError where the recipe names what is not in the graph, EngineError where NNCF cannot do it.
    """
    # Shapes that the exporter wrote down go stale as nodes come in between; runtimes infer them anew.
    model.graph.ClearField("value_info")
    for_cpu = recipe.variant is Variant.CPU
    parts, wiring = parts_of(model), Wiring(model.graph)
    left_out = nodes_labelled(model, recipe.left_out)
    if for_cpu:
        # Products of pixels are quantized here: NNCF would give uint8 pixels a range.
        apart = [node.name for node in model.graph.node if multiplies_pixels(node, wiring)]
    else:
        apart = [name for name, part in parts.items() if part.kind in _NOT_FOR_TENSORRT]
    quantized = _run_nncf(model, feeds, recipe, ignored=sorted({*left_out, *apart}))
    absorb_smoothing(quantized)
    gather_before_dequantizing(quantized)
    if for_cpu:
        for name in apart:
            if name not in left_out:
                multiply_bytes(quantized, name, feeds)
        share_as_uint8(quantized)
    else:
        sign_activations(quantized)
        check_symmetric(quantized)
    quantized.graph.ClearField("value_info")
    quantized.producer_name = "twinspire"
    quantized.producer_version = ""
    return quantized


# TensorRT knows int8 as an operand of products alone, not as a table to look rows up in; and pixels from 0 to 255 would
# use half of its range.
_NOT_FOR_TENSORRT = (Kind.TOKENS, Kind.PATCHES)


def _run_nncf(
    model: onnx.ModelProto, feeds: Sequence[Feed], recipe: Int8Recipe, *, ignored: Sequence[str]
) -> onnx.ModelProto:
    nncf = _import_nncf()
    try:
        with _silenced():
            quantized: onnx.ModelProto = nncf.quantize(
                model,
                nncf.Dataset(list(feeds)),
                preset=nncf.QuantizationPreset.PERFORMANCE
                if recipe.ranges is Ranges.SYMMETRIC
                else nncf.QuantizationPreset.MIXED,
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(feeds),
                fast_bias_correction=recipe.bias_correction is not BiasCorrection.ACCURATE,
                ignored_scope=nncf.IgnoredScope(names=list(ignored)),
                advanced_parameters=_advanced(recipe),
            )
    except Exception as exc:  # NNCF's errors, onnx's and onnxruntime's share no base class
        raise EngineError(f"nncf cannot quantize the engine: {exc}") from exc
    return quantized


def _advanced(recipe: Int8Recipe) -> Any:  # noqa: ANN401 - nncf ships no types
    from nncf.common.quantization.structs import QuantizationScheme
    from nncf.quantization.advanced_parameters import (
        AdvancedBiasCorrectionParameters,
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        QuantizationParameters,
    )

    return AdvancedQuantizationParameters(
        disable_bias_correction=recipe.bias_correction is BiasCorrection.NONE,
        # By default a layer is left as it is where the shift is twice the bias in any one channel: in every layer of a
        # CLIP, since some of a thousand biases always lie near 0.
        bias_correction_params=AdvancedBiasCorrectionParameters(threshold=math.inf),
        weights_quantization_params=QuantizationParameters(
            mode=QuantizationScheme.SYMMETRIC, per_channel=recipe.per_channel
        ),
        activations_range_estimator_params=_estimator(recipe.estimator),
        smooth_quant_alphas=AdvancedSmoothQuantParameters(
            matmul=-1 if recipe.smooth_alpha is None else recipe.smooth_alpha
        ),
    )


def _estimator(estimator: RangeEstimator) -> Any:  # noqa: ANN401 - nncf ships no types
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return getattr(RangeEstimatorParametersSet, estimator.name)


def _import_nncf() -> ModuleType:
    # NNCF reports its use to Google Analytics unless this is set when it is first imported.
    variable = "NNCF_CI"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        import nncf
    except ImportError as exc:
        raise MissingDependencyError("nncf", "quantize", "quantizing a bundle") from exc
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
    module: ModuleType = nncf
    return module


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep NNCF's log and progress bars from stdout."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
