"""Post-training quantization of an fp32 graph to int8: static by NNCF, and onnxruntime's dynamic one as a baseline.

NNCF inserts pairs of QuantizeLinear and DequantizeLinear (https://github.com/openvinotoolkit/nncf); `graph_passes` then
adapts the graph to the runtimes' kernels. Weights are stored as int8. Needs no torch.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import EngineError, MissingDependencyError
from twinspire.graph_edit import Wiring
from twinspire.tensorrt_support import check_symmetric
from twinspire_export.dependencies import silenced
from twinspire_export.quantization.graph_passes import (
    absorb_smoothing,
    gather_before_dequantizing,
    mean_patch,
    multiplies_pixels,
    multiply_bytes,
    share_as_uint8,
    sign_activations,
)
from twinspire_export.quantization.node_roles import (
    NodeRole,
    RoleInBlock,
    is_convolutional,
    nodes_labelled,
    roles_of,
)
from twinspire_export.quantization.outlier_channels import SplitNodes, remove_masks, split_outliers
from twinspire_export.quantization.recipe import (
    DEFAULT_RECIPE,
    BiasCorrection,
    Int8Recipe,
    QuantizationTarget,
    RangeEstimator,
    Ranges,
)
from twinspire_export.quantization.token_tables import keep_used_rows, restore_rows

if TYPE_CHECKING:
    import onnx

Feed = Mapping[str, NDArray[Any]]
"""An engine's inputs by name: one sample."""

# A table of positions is small: rows of int8 would save nothing and cost two lookups for one. What a depthwise
# convolution reads would get a scale for each channel, for which neither onnxruntime nor TensorRT has a kernel.
_FLOAT = (NodeRole.POSITIONS, NodeRole.DEPTHWISE)

# TensorRT takes int8 only as an operand of a matrix multiplication, not as a table to look rows up in; and pixels from
# 0 to 255 would use half of its range.
_FLOAT_FOR_TENSORRT = (NodeRole.TOKENS, NodeRole.PATCHES)


def quantize_graph(
    model: onnx.ModelProto, feeds: Sequence[Feed], recipe: Int8Recipe = DEFAULT_RECIPE
) -> onnx.ModelProto:
    """Quantize `model` by `recipe`, with ranges estimated on `feeds`. `model` must not be used afterwards.

    The biases of a convolutional network are never corrected, whatever the recipe.

    Raises InputError where the recipe names what is not in the graph, EngineError where NNCF fails.
    """
    prepared = prepare(model, recipe)
    split_layers(prepared, feeds)
    return finish(prepared, run_nncf(prepared, feeds), feeds)


@dataclass
class Prepared:
    """A float graph and which of its nodes are quantized how, before NNCF.

    `in_float` stay in float32; `pixels` are multiplications of pixels, quantized after NNCF, which would estimate a
    range for the uint8 pixels; `split` are the nodes that splitting outlier channels added. `mean_patches` are the
    mean pixels of each of `pixels`, once `finish` has measured them.
    """

    model: onnx.ModelProto
    recipe: Int8Recipe
    roles: Mapping[str, RoleInBlock]
    in_float: frozenset[str]
    pixels: tuple[str, ...]
    split: SplitNodes = field(default_factory=SplitNodes)
    mean_patches: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def quantized(self) -> dict[str, RoleInBlock]:
        """The nodes that NNCF quantizes, with their roles."""
        return {name: role for name, role in self.roles.items() if name not in self.in_float.union(self.pixels)}


def prepare(model: onnx.ModelProto, recipe: Int8Recipe) -> Prepared:
    """Find out what `recipe` means for `model`. Raises InputError where it names what is not in the graph."""
    # Shapes that the exporter stored go stale as nodes are inserted; runtimes infer them again.
    model.graph.ClearField("value_info")
    roles, wiring = roles_of(model), Wiring(model.graph)
    in_float = set(nodes_labelled(model, recipe.keep_float))
    pixels: list[str] = []
    if recipe.target is QuantizationTarget.CPU:
        pixels = [node.name for node in model.graph.node if multiplies_pixels(node, wiring)]
    else:
        in_float.update(name for name, found in roles.items() if found.role in _FLOAT_FOR_TENSORRT)
    in_float.update(name for name, found in roles.items() if found.role in _FLOAT)
    if is_convolutional(model):
        # A correction of convolutions costs more than the rounding of weights: with it a ResNet of 10 layers has a mean
        # cosine of 0.989 to fp32, without it 0.9999. The accurate one fails on residual connections (NNCF 3.4).
        recipe = replace(recipe, bias_correction=BiasCorrection.NONE)
    return Prepared(model, recipe, roles, frozenset(in_float), tuple(pixels))


def split_layers(prepared: Prepared, feeds: Sequence[Feed]) -> None:
    """Split the layers that have outlier channels, where the recipe says so, in the graph of `prepared`."""
    if prepared.recipe.outlier_factor is not None:
        prepared.split = split_outliers(prepared.model, prepared.quantized, feeds, prepared.recipe.outlier_factor)


def run_nncf(prepared: Prepared, feeds: Sequence[Feed]) -> onnx.ModelProto:
    """Quantize the graph of `prepared` by NNCF, for `finish`; the graph must not be used afterwards."""
    ignored = {*prepared.in_float, *prepared.pixels, *prepared.split.in_float}
    tables, reduced = keep_used_rows(prepared.model, feeds)
    quantized = _run_nncf(prepared.model, reduced, prepared.recipe, ignored=sorted(ignored))
    restore_rows(quantized, tables)
    return quantized


def finish(prepared: Prepared, quantized: onnx.ModelProto, feeds: Sequence[Feed]) -> onnx.ModelProto:
    """Adapt what `run_nncf` returned to the target's kernels, in place, and return it."""
    remove_masks(quantized, prepared.split.masks)
    absorb_smoothing(quantized)
    gather_before_dequantizing(quantized)
    if prepared.recipe.target is QuantizationTarget.CPU:
        for name in prepared.pixels:
            if name not in prepared.in_float:
                if name not in prepared.mean_patches:
                    prepared.mean_patches[name] = mean_patch(quantized, name, feeds)
                multiply_bytes(quantized, name, prepared.mean_patches[name])
        share_as_uint8(quantized)
    else:
        sign_activations(quantized)
        if any(node.op_type == "QuantizeLinear" for node in quantized.graph.node):
            check_symmetric(quantized)  # `write_engine` refuses a graph where none is left
    quantized.graph.ClearField("value_info")
    return quantized


def quantize_dynamically(engine: Path, destination: Path) -> None:
    """Write `engine`, fp32, to `destination` with int8 weights and activations quantized at run time, by onnxruntime.

    A baseline that needs no samples. No bundle is made of it: its activations are scaled by the range of the whole
    batch, so that an embedding depends on the other items of its batch, and a server that batches dynamically would
    return another vector each time. Its MatMulInteger is fast on onnxruntime's CPU provider and slow on OpenVINO.
    Raises EngineError where onnxruntime fails.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as exc:
        raise MissingDependencyError("onnxruntime", "cpu", "quantizing an engine") from exc
    with tempfile.TemporaryDirectory() as folder:
        model = onnx.load(engine)
        # The quantizer fails on shapes that the exporter stored and that no longer hold.
        model.graph.ClearField("value_info")
        clean = Path(folder) / "engine.onnx"
        onnx.save(model, clean)
        del model
        try:
            with silenced(""):  # the root logger recommends a preparation that is for graphs with subgraphs
                quantize_dynamic(
                    clean, destination, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8
                )
        except Exception as exc:  # onnxruntime's errors share no base class
            raise EngineError(f"onnxruntime cannot quantize {engine.name}: {exc}") from exc


def _run_nncf(
    model: onnx.ModelProto, feeds: Sequence[Feed], recipe: Int8Recipe, *, ignored: Sequence[str]
) -> onnx.ModelProto:
    nncf = _import_nncf()
    try:
        with silenced("nncf"), contextlib.redirect_stdout(io.StringIO()):  # progress bars go to stdout
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
        # By default a layer is not corrected where the shift is twice the bias in any one channel: true of every wide
        # layer, since some of a thousand biases always are near 0.
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
    # Disable NNCF's telemetry to Google Analytics: it reads this variable when it is first imported.
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
