"""The image processors of image backbones: which one a checkpoint names, and its settings as a bundle states them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    ViTImageProcessor,
)

from twinspire.bundle import ImageSettings
from twinspire.errors import CheckpointError
from twinspire_export.families.huggingface import image_settings, load_processor

_CLASSES = {
    processor.__name__: processor
    for processor in (
        BitImageProcessor,
        CLIPImageProcessor,
        ConvNextImageProcessor,
        EfficientNetImageProcessor,
        ViTImageProcessor,
    )
}
_CONVNEXT_WITHOUT_CROP = 384
"""From this size on `ConvNextImageProcessor` stretches images to a square and crops nothing."""


def load_image_processor(folder: Path) -> Any:  # noqa: ANN401 - one of several classes
    """Load the slow image processor that preprocessor_config.json names, the fast one's reference.

    Raises CheckpointError where the file is missing or malformed, or names another kind.
    """
    file = folder / "preprocessor_config.json"
    name = "CLIPImageProcessor"  # a missing file is reported by `load_processor`
    if file.is_file():
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            name = config.get("image_processor_type") or config.get("feature_extractor_type")
        except (OSError, ValueError, AttributeError) as exc:
            raise CheckpointError(f"{file} is not a JSON object: {exc}. Copy it from the model's repository") from exc
    plain = str(name).removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    if plain not in _CLASSES:
        raise CheckpointError(
            f"{file} names the image processor {name!r} ('image_processor_type'); expected one of "
            f"{', '.join(_CLASSES)}. Save the processor that the model was trained with into the folder"
        )
    return load_processor(_CLASSES[plain], folder)


def backbone_image_settings(processor: Any, vision_config: Any, folder: Path) -> ImageSettings:  # noqa: ANN401
    """Translate an image processor that `load_image_processor` gave. Raises what `image_settings` raises."""
    if isinstance(processor, ConvNextImageProcessor):
        processor = _as_crop(processor, folder)
    return image_settings(processor, vision_config, folder)


def _as_crop(processor: ConvNextImageProcessor, folder: Path) -> SimpleNamespace:
    """Return the settings of a processor with `crop_pct`, the share of the image that the crop keeps, as CLIP's.

    `ConvNextImageProcessor.resize` resizes the shorter side to `size / crop_pct` and crops to `size`, but stretches
    without a crop from 384 pixels on.
    """
    given = dict(vars(processor))
    side, share = dict(processor.size).get("shortest_edge"), processor.crop_pct
    if side is None or not share > 0:
        raise CheckpointError(
            f"{folder / 'preprocessor_config.json'}: 'size' is {dict(processor.size)} and 'crop_pct' {share}; expected "
            "a 'shortest_edge' and a positive share"
        )
    if side < _CONVNEXT_WITHOUT_CROP:
        square = {"height": side, "width": side}
        changes = {"size": {"shortest_edge": int(side / share)}, "do_center_crop": True, "crop_size": square}
    else:
        changes = {"size": {"height": side, "width": side}, "do_center_crop": False}
    return SimpleNamespace(**{**given, **changes})
