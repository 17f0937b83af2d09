"""From a wrapped tower to an ONNX file, through optimum's exporter."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from optimum.exporters.onnx import export as export_through_optimum
from optimum.exporters.onnx.base import OnnxConfig
from optimum.utils import NormalizedConfig

from twinspire.errors import CheckpointError
from twinspire_export.log_silencing import quiet
from twinspire_export.towers import ClipTower, ImageTower

OPSET = 17
"""The first with LayerNormalization as one operator; nothing here needs a later one."""

MAX_GRAPH_BYTES = 2**31 - 2**24
"""A protobuf file ends at 2 GiB; 16 MiB of it are left for the graph itself."""


class ImageOnnxConfig(OnnxConfig):  # type: ignore[misc]  # optimum ships no types
    """What optimum needs to know of an image tower: `image (N, S, S, 3) -> embedding (N, D)`."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Name the input and its dynamic axis."""
        return {"image": {0: "N"}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Name the output and its dynamic axis."""
        return {"embedding": {0: "N"}}

    def generate_dummy_inputs(self, framework: str = "pt", **_: object) -> dict[str, Any]:
        """Make the images that are traced."""
        size = int(self._config.image_size)
        image = torch.arange(2 * size * size * 3).remainder(256).to(torch.uint8).view(2, size, size, 3)
        return {"image": image if framework == "pt" else image.numpy()}


class TextOnnxConfig(OnnxConfig):  # type: ignore[misc]  # optimum ships no types
    """What optimum needs to know of a text tower: `input_ids (N, L) -> embedding (N, D)`."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Name the input and its dynamic axes."""
        return {"input_ids": {0: "N", 1: "L"}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Name the output and its dynamic axis."""
        return {"embedding": {0: "N"}}

    def generate_dummy_inputs(self, framework: str = "pt", **_: object) -> dict[str, Any]:
        """Make the token ids that are traced."""
        length = min(5, int(self._config.max_position_embeddings))
        ids = torch.arange(2 * length, dtype=torch.int32).remainder(int(self._config.vocab_size)).view(2, length)
        return {"input_ids": ids if framework == "pt" else ids.numpy()}


def export_graph(tower: ClipTower, destination: Path) -> None:
    """Write `tower` as an ONNX file of opset 17 with the dynamic axes N (and L).

    Does not compare the result with torch. Raises CheckpointError where the tower does not fit one ONNX file.
    """
    size_bytes = sum(parameter.numel() * 4 for parameter in tower.parameters())
    if size_bytes > MAX_GRAPH_BYTES:
        raise CheckpointError(
            f"the {type(tower).__name__} has {size_bytes / 2**30:.1f} GiB of float32 weights; an engine is one ONNX "
            "file of at most 2 GiB. Use a smaller checkpoint"
        )
    config_class = ImageOnnxConfig if isinstance(tower, ImageTower) else TextOnnxConfig
    with quiet(), warnings.catch_warnings():
        # Of indexing by a pair, before the rewrite `end-token`: it is right for indices that are not negative.
        warnings.filterwarnings("ignore", "Exporting aten::index operator", UserWarning)
        export_through_optimum(tower, config_class(tower.config), destination, opset=OPSET)
