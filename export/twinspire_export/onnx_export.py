"""A tower or a reranker as an ONNX file, through optimum's exporter or torch's own."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import onnx
import torch
from optimum.exporters.onnx import export as export_through_optimum
from optimum.exporters.onnx.base import OnnxConfig
from optimum.utils import NormalizedConfig
from torch import Tensor, nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]  # not in its __all__
from transformers import PretrainedConfig

from twinspire.contract import EMBEDDING, INPUT_IDS
from twinspire.errors import CheckpointError
from twinspire_export.dependencies import silenced

OPSET = 17
"""The first with LayerNormalization as one operator; nothing here needs a later one."""

MAX_GRAPH_BYTES = 2**31 - 2**24
"""The largest engine: protobuf files end at 2 GiB, of which 16 MiB are left for the graph itself."""


class Exporter(StrEnum):
    """What writes a tower's ONNX file: optimum for the families that it knows, torch itself for the others."""

    OPTIMUM = "optimum"
    TORCH = "torch"


class _GraphConfig(OnnxConfig):  # type: ignore[misc]  # optimum ships no types
    """What optimum asks about a module: its tensors, their dynamic axes, and inputs to trace it with."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig

    def __init__(self, examples: Mapping[str, Tensor], axes: Mapping[str, dict[int, str]]) -> None:
        super().__init__(PretrainedConfig())
        self._examples, self._axes = examples, axes

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """The inputs with their dynamic axes."""
        return {name: self._axes[name] for name in self._examples}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """The output with its dynamic axis."""
        return {name: axes for name, axes in self._axes.items() if name not in self._examples}

    def generate_dummy_inputs(self, **_: object) -> dict[str, Tensor]:
        """Return the inputs that are traced."""
        return dict(self._examples)


def export_graph(
    module: nn.Module,
    destination: Path,
    *,
    inputs: Mapping[str, Tensor],
    exporter: Exporter,
    output: str = EMBEDDING,
    free_lengths: Collection[str] = (INPUT_IDS,),
) -> None:
    """Write `module` as an ONNX file of opset 17, traced on `inputs`, by name in the order of its arguments.

    The first axis N is dynamic, and the second one, L, of the inputs `free_lengths`. Does not compare the result with
    torch. Raises CheckpointError where the module does not fit one ONNX file.
    """
    size_bytes = weight_bytes(module)
    if size_bytes > MAX_GRAPH_BYTES:
        raise CheckpointError(
            f"the {type(module).__name__} has {size_bytes / 2**30:.1f} GiB of weights; an engine is one ONNX "
            "file of at most 2 GiB. Use a smaller checkpoint"
        )
    axes = {name: {0: "N", 1: "L"} if name in free_lengths else {0: "N"} for name in (*inputs, output)}
    # The exporters restore the mode that the module was in: in training mode dropout and batch norms would change it.
    module.eval()
    with silenced("optimum", "transformers", "torch.onnx"), warnings.catch_warnings():
        # Warns of indexing by a pair, before the rewrite `end-token`: it is right for indices that are not negative.
        warnings.filterwarnings("ignore", "Exporting aten::index operator", UserWarning)
        # Modules of transformers check shapes in Python, which are the same for every input, and slice backwards.
        warnings.filterwarnings("ignore", category=TracerWarning)
        # Says that the pads of a padding stay a few nodes, which runtimes fold.
        warnings.filterwarnings("ignore", "Constant folding - Only steps=1", UserWarning)
        if exporter is Exporter.TORCH:
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                destination,
                input_names=list(inputs),
                output_names=[output],
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
        else:
            config = _GraphConfig(inputs, axes)
            module.config = config._config  # optimum sets return_dict in it
            export_through_optimum(module, config, destination, opset=OPSET)
    with torch.inference_mode():
        _state_output_shape(destination, module(*inputs.values()).shape[1:])


def _state_output_shape(file: Path, shape: Sequence[int]) -> None:
    """State the shape of an item's output where the trace lost track of it, as behind a repetition for each item."""
    model = onnx.load(file)
    (output,) = model.graph.output
    _, *axes = output.type.tensor_type.shape.dim
    if [axis.dim_value for axis in axes] != list(shape):
        for axis, length in zip(axes, shape, strict=True):
            axis.dim_value = length
        onnx.save(model, file)


def weight_bytes(module: nn.Module) -> int:
    """Return the size of a module's weights."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
