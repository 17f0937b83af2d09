"""A Hugging Face CLIP checkpoint: opened, checked, and read into the bundle's terms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

from twinspire.bundle import ImageSettings, TextSettings
from twinspire.errors import CheckpointError, InputError
from twinspire_export.log_silencing import quiet
from twinspire_export.settings import image_settings, text_settings, tokenizer_json
from twinspire_export.source import CheckpointSource, locate
from twinspire_export.weights import stored_shapes, weight_files

FAMILIES = ("clip",)
"""Values of `model_type` in config.json that can be exported."""

_ARCHITECTURE = "CLIPModel"


@dataclass(frozen=True)
class Checkpoint:
    """A CLIP model in memory, as transformers' objects, with its settings in the bundle's terms."""

    source: CheckpointSource
    family: str
    files: tuple[Path, ...]
    model: CLIPModel
    tokenizer: PreTrainedTokenizerFast
    processor: CLIPImageProcessor
    image: ImageSettings
    text: TextSettings
    tokenizer_json: str

    @property
    def dim(self) -> int:
        """The length of an embedding."""
        return int(self.model.config.projection_dim)

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied with in training: the inverse temperature."""
        return float(self.model.logit_scale.detach().double().exp())

    def embed_images(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode `images` (N, S, S, 3) uint8, already of the model's size, by transformers' own code.

        Returns (N, D) float32, L2-normalised.
        """
        inputs = self.processor(list(pictures), do_resize=False, do_center_crop=False, return_tensors="pt")
        with torch.inference_mode():
            return _unit_rows(self.model.get_image_features(**inputs))

    def embed_texts(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Encode `captions` by transformers' own tokenizer and model, one at a time: nothing is padded.

        Returns (N, D) float32, L2-normalised.
        """
        rows = []
        for caption in captions:
            ids = self.tokenizer(caption, truncation=True, max_length=self.text.context_length, return_tensors="pt")
            with torch.inference_mode():
                rows.append(_unit_rows(self.model.get_text_features(input_ids=ids["input_ids"])))
        return np.concatenate(rows)


def open_checkpoint(checkpoint: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Open a CLIP checkpoint, a local folder or a hub id, in float32.

    Reads safetensors only, and runs no code that comes with the checkpoint.

    Raises CheckpointError where it cannot be found, is of another architecture, is pickled, damaged, lacks
    tensors or files, or has preprocessing that a bundle cannot express.
    """
    source = locate(checkpoint, revision=revision)
    family = _check_architecture(source.folder)
    files = weight_files(source.folder)
    with quiet():
        processor = _load_processor(source.folder)
        tokenizer = _load_tokenizer(source.folder)
        model = _load_model(source.folder, files)
    try:
        serialised = tokenizer_json(tokenizer, source.folder)
        image = image_settings(processor, model.config.vision_config, source.folder)
        text = text_settings(tokenizer, serialised, model.config.text_config, source.folder)
    except (InputError, TypeError, ValueError, KeyError) as exc:
        raise CheckpointError(
            f"the tokenizer or preprocessing of the checkpoint {source.folder} is malformed: {exc}"
        ) from exc
    return Checkpoint(
        source=source,
        family=family,
        files=files,
        model=model,
        tokenizer=tokenizer,
        processor=processor,
        image=image,
        text=text,
        tokenizer_json=serialised,
    )


def _check_architecture(folder: Path) -> str:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"the checkpoint {folder} has no config.json, which says what architecture it is")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        family, architectures = config.get("model_type"), config.get("architectures")
    except (OSError, ValueError, AttributeError) as exc:
        raise CheckpointError(f"{config_file} is no JSON object ({exc})") from exc
    if family not in FAMILIES:
        raise CheckpointError(
            f"the checkpoint {folder} is of the architecture {family!r} ('model_type' in config.json); expected "
            f"{', '.join(FAMILIES)}, in the format of transformers. Other families cannot be exported yet"
        )
    if architectures is not None and _ARCHITECTURE not in architectures:
        raise CheckpointError(
            f"the checkpoint {folder} holds {architectures!r} ('architectures' in config.json); expected "
            f"{_ARCHITECTURE}, which has both towers and their projections"
        )
    return str(family)


def _load_model(folder: Path, files: tuple[Path, ...]) -> CLIPModel:
    stored = stored_shapes(files)
    try:
        model, report = CLIPModel.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            # Plain matrix products and a softmax: what runtimes and quantizers recognise in a graph.
            attn_implementation="eager",
            # What is missing or misshapen would be initialised at random with a warning; the report is checked instead.
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as exc:  # transformers promises no set of errors for a config or weights that it cannot use
        raise CheckpointError(f"transformers cannot load the checkpoint {folder}: {exc}") from exc
    if report["missing_keys"]:
        raise CheckpointError(
            f"the checkpoint {folder} is missing {_listing(sorted(report['missing_keys']))}. Copy or download it "
            "again, or convert it from the original weights again"
        )
    expected = model.state_dict()
    wrong = [
        f"{name} (stored {stored[name]}, config.json asks for {tuple(expected[name].shape)})"
        for name in sorted(stored.keys() & expected.keys())
        if stored[name] != tuple(expected[name].shape)
    ]
    if wrong:
        raise CheckpointError(f"the checkpoint {folder} does not fit its config.json: {_listing(wrong)}")
    return model.eval()


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").is_file() and not all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    ):
        raise CheckpointError(
            f"the checkpoint {folder} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt. Copy "
            "them from the model's repository"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True, trust_remote_code=False)
    except Exception as exc:  # the tokenizers library raises bare Exception for a file that it cannot read
        raise CheckpointError(f"transformers cannot load the tokenizer of the checkpoint {folder}: {exc}") from exc


def _load_processor(folder: Path) -> CLIPImageProcessor:
    if not (folder / "preprocessor_config.json").is_file():
        raise CheckpointError(
            f"the checkpoint {folder} has no preprocessor_config.json, which says how pictures are resized and "
            "normalised. Copy it from the model's repository"
        )
    try:
        return CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as exc:  # transformers promises no set of errors for settings that it cannot use
        raise CheckpointError(f"transformers cannot read {folder / 'preprocessor_config.json'}: {exc}") from exc


def _listing(names: list[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    rest = f", and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}: {shown}{rest}"


def _unit_rows(vectors: torch.Tensor) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = torch.nn.functional.normalize(vectors.float(), dim=-1).numpy()
    return unit
