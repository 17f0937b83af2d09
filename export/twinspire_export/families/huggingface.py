"""Checkpoints in the format of transformers: loading them, and their preprocessing as a bundle states it.

Shared by the families whose reference implementation is a class of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from twinspire.bundle import CropRounding, ImageSettings, Interpolation, Resize, TextSettings
from twinspire.errors import CheckpointError
from twinspire.ingest.tables import listed
from twinspire_export import onnx_export
from twinspire_export.families.family import Checkpoint
from twinspire_export.text_encoder import TextEncoder
from twinspire_export.towers import TextTower
from twinspire_export.weights import stored_shapes

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedModel

_INTERPOLATIONS = dict(
    enumerate((Interpolation.NEAREST, Interpolation.LANCZOS, Interpolation.BILINEAR, Interpolation.BICUBIC))
)
"""By the numbers of `PIL.Image.Resampling`, which `resample` holds."""
_MAX_LISTED = 8
_TextModule = TypeVar("_TextModule", TextTower, TextEncoder)

OPEN_CLIP_CONFIG = "open_clip_config.json"
"""OpenCLIP's config, which also lies beside checkpoints that were converted to transformers' format."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HuggingFaceTexts(Checkpoint):
    """A checkpoint with a text tower whose reference is transformers' own model and tokenizer."""

    text: TextSettings
    tokenizer_json: str
    model: Any  # a PreTrainedModel with get_text_features, or what `text_features` calls
    tokenizer: Any  # that of transformers, or what the family's `token_ids` reads

    def embed_texts(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Encode `captions` one at a time, so that nothing is padded but by `token_ids`: (N, D), L2-normalised."""
        rows = []
        for caption in captions:
            with torch.inference_mode():
                rows.append(unit_rows(self.text_features(torch.tensor([self.token_ids(caption)]))))
        return np.concatenate(rows)

    def token_ids(self, caption: str) -> list[int]:
        """Tokenize by the original code, cut to the context."""
        ids: list[int] = self.tokenizer(caption, truncation=True, max_length=self.text.context_length)["input_ids"]
        return ids

    def text_features(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Encode texts of one length: `input_ids` (N, L) int64 to (N, D)."""
        features: torch.Tensor = self.model.get_text_features(input_ids=input_ids)
        return features


@dataclass(frozen=True, kw_only=True, eq=False)
class HuggingFaceCheckpoint(HuggingFaceTexts):
    """A checkpoint of images and texts whose reference is transformers' own model, tokenizer and image processor."""

    image: ImageSettings
    processor: BaseImageProcessor

    @property
    def patches(self) -> int | None:
        """The number of patches that a transformer cuts an image into; convolutional networks have none."""
        side = getattr(self.model.config.vision_config, "patch_size", None)
        return None if side is None else (self.image.height // side) * (self.image.width // side)

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode `images` (N, S, S, 3), resized and cropped: (N, D), L2-normalised."""
        steps = [step for step in ("do_resize", "do_center_crop") if hasattr(self.processor, step)]
        inputs = self.processor(list(images), return_tensors="pt", **dict.fromkeys(steps, False))
        with torch.inference_mode():
            return unit_rows(self.image_features(inputs["pixel_values"]))

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode normalised images: `pixel_values` (N, 3, S, S) to (N, D)."""
        features: torch.Tensor = self.model.get_image_features(pixel_values=pixel_values)
        return features


def fit_one_file(tower: _TextModule) -> _TextModule:
    """Store the table of tokens of a text tower in float16 where the tower would not fit one ONNX file otherwise.

    XLM-RoBERTa large, of 250,002 tokens, takes 2.1 GiB, of which the table is 1.0; MetaCLIP 2 has 901,629 tokens.
    Raises CheckpointError as `TokenTable.store_as_fp16` does.
    """
    if onnx_export.weight_bytes(tower) > onnx_export.MAX_GRAPH_BYTES:
        tower.tokens.store_as_fp16()
    return tower


def unit_rows(vectors: torch.Tensor) -> NDArray[np.float32]:
    """Return (N, D) as float32 with rows of length 1."""
    unit: NDArray[np.float32] = torch.nn.functional.normalize(vectors.float(), dim=-1).numpy()
    return unit


def load_model(
    model_class: type[PreTrainedModel],
    folder: Path,
    files: tuple[Path, ...],
    *,
    config: PretrainedConfig | None = None,
    unused: str | None = None,
    **options: bool,
) -> Any:  # noqa: ANN401
    """Load the weights in float32, for `config` in place of config.json's where it is given.

    Tensors whose names begin with `unused` may be missing, and are random then. `options` are those of the class's
    constructor.

    Raises CheckpointError where other tensors are missing or any of another shape.
    """
    stored = stored_shapes(files)
    try:
        model, report = model_class.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            # Plain matrix multiplications and a softmax, which runtimes and quantizers recognise in a graph.
            attn_implementation="eager",
            # transformers would initialise missing and misshapen tensors at random with a warning; checked here.
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except Exception as exc:  # transformers promises no set of errors for a config or weights that it cannot use
        raise CheckpointError(f"transformers cannot load the checkpoint {folder}: {exc}") from exc
    missing = sorted(name for name in report["missing_keys"] if unused is None or not name.startswith(unused))
    if missing:
        raise CheckpointError(
            f"the checkpoint {folder} is missing {listing(missing)}. Copy or download it "
            "again, or convert it from the original weights again"
        )
    expected = model.state_dict()
    misshapen = [
        f"{name} (stored {stored[name]}, config.json asks for {tuple(expected[name].shape)})"
        for name in sorted(stored.keys() & expected.keys())
        if stored[name] != tuple(expected[name].shape)
    ]
    if misshapen:
        raise CheckpointError(f"the checkpoint {folder} does not fit its config.json: {listing(misshapen)}")
    return model.eval()


def load_tokenizer(
    folder: Path,
    file_sets: Sequence[tuple[str, ...]] = (("tokenizer.json",), ("vocab.json", "merges.txt")),
    tokenizer_class: Any = AutoTokenizer,  # noqa: ANN401 - AutoTokenizer is no tokenizer itself
) -> PreTrainedTokenizerFast:
    """Load the tokenizer from one of `file_sets`, of the class that its config names, or of `tokenizer_class`.

    Raises CheckpointError where its files are missing or malformed.
    """
    if not any(all((folder / name).is_file() for name in names) for names in file_sets):
        expected = ", or ".join(" and ".join(names) for names in file_sets)
        raise CheckpointError(
            f"the checkpoint {folder} has no tokenizer: expected {expected}. Copy them from the model's repository"
        )
    try:
        return tokenizer_class.from_pretrained(folder, local_files_only=True, use_fast=True, trust_remote_code=False)
    except Exception as exc:  # the tokenizers library raises bare Exception for a file that it cannot read
        if "trust_remote_code" in str(exc):
            raise CheckpointError(
                f"the tokenizer of the checkpoint {folder} is a program that comes with it ('auto_map' in "
                "tokenizer_config.json), and such programs are never run. Put the tokenizer.json and "
                "tokenizer_config.json of a tokenizer of transformers with the same vocabulary in their place"
            ) from exc
        raise CheckpointError(f"transformers cannot load the tokenizer of the checkpoint {folder}: {exc}") from exc


def load_processor(processor_class: type[BaseImageProcessor], folder: Path) -> Any:  # noqa: ANN401
    """Load the image processor or feature extractor. Raises CheckpointError where its file is missing or malformed."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        raise CheckpointError(
            f"the checkpoint {folder} has no {file.name}, which says how its inputs are prepared. Copy it "
            "from the model's repository"
        )
    try:
        return processor_class.from_pretrained(folder, local_files_only=True)
    except Exception as exc:  # transformers promises no set of errors for settings that it cannot use
        raise CheckpointError(f"transformers cannot read {file}: {exc}") from exc


def crop_rounding_of(folder: Path) -> CropRounding:
    """Return where the crop begins: as in torchvision, which OpenCLIP trains with, where its config is in `folder`."""
    return CropRounding.ROUND if (folder / OPEN_CLIP_CONFIG).is_file() else CropRounding.FLOOR


def image_settings(
    processor: Any,  # noqa: ANN401 - an image processor of any family
    vision_config: Any,  # noqa: ANN401
    folder: Path,
    *,
    crop_rounding: CropRounding = CropRounding.FLOOR,
) -> ImageSettings:
    """Translate an image processor that makes squares.

    It either resizes the shorter side (`shortest_edge`) and crops the centre, which begins as `crop_rounding` says, or
    stretches to `height` and `width` and crops the centre or nothing. It rescales by 1/255, or by any factor if it
    subtracts 1 after it (`rescale_offset`). `vision_config` has the model's `num_channels` and, unless the model takes
    any size, its `image_size`. Raises CheckpointError where the processor does anything else, or its images are not of
    the model's size.
    """

    def unsupported(found: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{folder / 'preprocessor_config.json'}: {found}; a bundle supports only {expected}")

    resized = dict(processor.size) if processor.do_resize else {}
    stretched, shorter_side = resized.get("height"), resized.get("shortest_edge")
    if shorter_side is None and (stretched is None or stretched != resized.get("width")):
        raise unsupported(
            f"'size' is {resized}" if processor.do_resize else "'do_resize' is false",
            "resizing the shorter side ('shortest_edge') or to a square ('height' and 'width')",
        )
    if processor.resample not in _INTERPOLATIONS:
        numbers = ", ".join(f"{number} ({name})" for number, name in _INTERPOLATIONS.items())
        raise unsupported(f"'resample' is {processor.resample!r}", numbers)
    crops = bool(getattr(processor, "do_center_crop", False))
    crop = dict(processor.crop_size) if crops else {"height": stretched, "width": stretched}
    side = crop.get("height")
    if side is None or side != crop.get("width"):
        cropping = f"'crop_size' is {crop}" if crops else "'do_center_crop' is false"
        raise unsupported(cropping, "cropping a square out of the centre of images resized by their shorter side")
    size, model_size = int(side), getattr(vision_config, "image_size", None)
    if vision_config.num_channels != 3:
        raise CheckpointError(
            f"{folder}: the model of config.json takes {vision_config.num_channels} channels; expected 3, for RGB"
        )
    if model_size is not None and size != model_size:
        raise CheckpointError(
            f"{folder}: preprocessor_config.json makes images of {size} pixels, but the model of config.json takes "
            f"{model_size} ('image_size'); they must be equal"
        )
    if shorter_side is not None:
        resize, scaled = Resize.SHORTEST_SIDE, shorter_side
    else:
        resize, scaled = (Resize.STRETCH, None) if side == stretched else (Resize.STRETCH_AND_CROP, stretched)
    mean, std = _normalisation(processor, unsupported)
    return ImageSettings(
        height=size,
        width=size,
        resize=resize,
        shortest_side=None if scaled is None else int(scaled),
        crop_rounding=None if scaled is None else crop_rounding,
        interpolation=_INTERPOLATIONS[processor.resample],
        mean=mean,
        std=std,
    )


def _normalisation(
    processor: Any,  # noqa: ANN401
    unsupported: Callable[[str, str], CheckpointError],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation, of pixels from 0 to 1, that do what the processor does after resizing.

    It multiplies the pixels by a factor f, subtracts an offset of 0 or 1, then the mean, and divides by the standard
    deviation (twice, with `include_top`): (f p - o - m) / s = (p / 255 - (o + m) / 255 f) / (s / 255 f).
    """
    offset, factor = bool(getattr(processor, "rescale_offset", False)), processor.rescale_factor
    if not processor.do_rescale or not (factor > 0 if offset else math.isclose(factor, 1 / 255, rel_tol=1e-6)):
        found = f"'rescale_factor' is {factor}" if processor.do_rescale else "'do_rescale' is false"
        raise unsupported(found, "rescaling by 1/255, or by a positive factor with 'rescale_offset'")
    divisions = int(processor.do_normalize) + int(getattr(processor, "include_top", False))
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if divisions:
        if len(processor.image_mean) != 3 or len(processor.image_std) != 3 or min(processor.image_std) <= 0:
            raise unsupported(
                f"'image_mean' is {processor.image_mean} and 'image_std' {processor.image_std}",
                "three means and three positive standard deviations",
            )
        std = _triple([value**divisions for value in processor.image_std])
        if processor.do_normalize:
            mean = _triple(processor.image_mean)
    if not offset:
        return mean, std
    scale = 255 * factor
    return _triple([(1 + value) / scale for value in mean]), _triple([value / scale for value in std])


def tokenizer_json(tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    """Serialise a tokenizer in the tokenizers format, without padding and truncation, which the client does itself.

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


def check_vocabulary(tokenizer: Tokenizer, vocabulary: int, folder: Path) -> int:
    """Return the highest id of a tokenizer. Raises CheckpointError where the tower has no embedding for it."""
    highest_id = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if highest_id >= vocabulary:
        raise CheckpointError(
            f"{folder}: the tokenizer has ids up to {highest_id}, but the text tower only {vocabulary} embeddings "
            "('vocab_size' in config.json); tokenizer and weights belong to different models"
        )
    return int(highest_id)


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def listing(names: list[str]) -> str:
    """Count tensors and name some."""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}: {listed(names, at_most=_MAX_LISTED)}"
