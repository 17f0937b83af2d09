"""transformers' tokenizer and image processor in the bundle's terms, or the reason why that cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from twinspire.bundle import ImageSettings, Interpolation, Padding, TextSettings
from twinspire.errors import CheckpointError
from twinspire_export.towers import LEGACY_EOS_ID

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPVisionConfig, PreTrainedTokenizerFast

_INTERPOLATIONS = {1: Interpolation.LANCZOS, 2: Interpolation.BILINEAR, 3: Interpolation.BICUBIC}
"""By the numbers of `PIL.Image.Resampling`, which `resample` holds."""


def image_settings(processor: CLIPImageProcessor, vision_config: CLIPVisionConfig, folder: Path) -> ImageSettings:
    """Read transformers' `CLIPImageProcessor`.

    Raises CheckpointError unless it resizes the shorter side, crops a square out of the centre, of the size and
    channels that the model takes, and rescales by 1/255.
    """

    def refuse(what: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{folder / 'preprocessor_config.json'}: {what}; a bundle can express only {expected}")

    if not processor.do_resize or "shortest_edge" not in processor.size:
        resizing = f"'size' is {dict(processor.size)}" if processor.do_resize else "'do_resize' is false"
        raise refuse(resizing, "resizing of the shorter side ('shortest_edge')")
    if processor.resample not in _INTERPOLATIONS:
        raise refuse(f"'resample' is {processor.resample!r}", "3 (bicubic), 2 (bilinear) or 1 (lanczos)")
    crop = dict(processor.crop_size)
    if not processor.do_center_crop or crop.get("height") != crop.get("width"):
        cropping = f"'crop_size' is {crop}" if processor.do_center_crop else "'do_center_crop' is false"
        raise refuse(cropping, "a square cropped out of the centre")
    resize, size = int(processor.size["shortest_edge"]), int(crop["height"])
    model_size = int(vision_config.image_size)
    if vision_config.num_channels != 3:
        raise CheckpointError(
            f"{folder}: config.json says that the model takes {vision_config.num_channels} channels; a bundle takes RGB"
        )
    if size != model_size:
        raise CheckpointError(
            f"{folder}: preprocessor_config.json crops to {size} pixels, but config.json says that the model takes "
            f"{model_size} ('image_size'); they must agree"
        )
    if not processor.do_rescale or not math.isclose(processor.rescale_factor, 1 / 255, rel_tol=1e-6):
        rescaling = (
            f"'rescale_factor' is {processor.rescale_factor}" if processor.do_rescale else "'do_rescale' is false"
        )
        raise refuse(rescaling, "rescaling by 1/255")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if processor.do_normalize:
        if len(processor.image_mean) != 3 or len(processor.image_std) != 3 or min(processor.image_std) <= 0:
            raise refuse(
                f"'image_mean' is {processor.image_mean} and 'image_std' {processor.image_std}",
                "three means and three positive standard deviations",
            )
        mean, std = _triple(processor.image_mean), _triple(processor.image_std)
    return ImageSettings.centre_crop(
        size, shortest_side=resize, interpolation=_INTERPOLATIONS[processor.resample], mean=mean, std=std
    )


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def tokenizer_json(tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    """Serialise a transformers tokenizer in the tokenizers format.

    Padding and truncation are left out of it: they are the runtime's own.
    Raises CheckpointError where it has no such form.
    """
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"the tokenizer of the checkpoint {folder}, {type(tokenizer).__name__}, cannot be written as tokenizer.json"
        )
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    return str(plain.to_str())


def text_settings(
    tokenizer: PreTrainedTokenizerFast, serialised: str, text_config: CLIPTextConfig, folder: Path
) -> TextSettings:
    """Read transformers' tokenizer and the text tower's config.

    Raises CheckpointError where the two do not fit each other: pooling would be at the wrong token, or an id
    has no embedding.
    """
    plain = Tokenizer.from_str(serialised)
    highest_id = max(plain.get_vocab(with_added_tokens=True).values())
    vocabulary, pooled_at = int(text_config.vocab_size), text_config.eos_token_id
    eos_id = tokenizer.eos_token_id
    if highest_id >= vocabulary:
        raise CheckpointError(
            f"{folder}: the tokenizer has ids up to {highest_id}, but the text tower only {vocabulary} embeddings "
            "('vocab_size' in config.json); tokenizer and weights belong to different models"
        )
    empty = list(plain.encode("").ids)
    if eos_id is None or not empty or empty[-1] != eos_id:
        raise CheckpointError(
            f"{folder}: the tokenizer must end every text with its end token, where the text tower is pooled; the "
            f"empty text became {empty} and the end token is {eos_id}. Give tokenizer.json a post-processor that "
            "writes it"
        )
    if pooled_at == LEGACY_EOS_ID and eos_id != highest_id:
        raise CheckpointError(
            f"{folder}: 'eos_token_id' {LEGACY_EOS_ID} in config.json makes transformers pool at the highest token id, "
            f"which is {highest_id}, but the tokenizer's end token is {eos_id}. Give the end token the highest id, or "
            "set another 'eos_token_id'"
        )
    if pooled_at not in (LEGACY_EOS_ID, eos_id):
        raise CheckpointError(
            f"{folder}: config.json says that texts are pooled at the token {pooled_at} ('eos_token_id' of the text "
            f"tower), but the tokenizer ends them with {eos_id}; they must agree"
        )
    return TextSettings(
        context_length=int(min(text_config.max_position_embeddings, tokenizer.model_max_length)),
        # Any id will do right of the end token; without a padding token the end token itself is the safe one.
        pad_id=int(eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id),
        eos_id=int(eos_id),
        padding=Padding.TRIM,
    )
