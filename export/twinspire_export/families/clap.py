"""LAION's CLAP: checkpoints of transformers' `ClapModel` without feature fusion, https://arxiv.org/abs/2211.06687.

The audio tower is HTSAT, a Swin transformer over log-mel spectrograms, https://arxiv.org/abs/2202.00874; it is
transformers' own module. The text tower is RoBERTa with its pooler. Both end in a projection of two layers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import ClapFeatureExtractor, ClapModel

from twinspire.bundle import AudioSettings, MelNorm, MelScale, Tower
from twinspire.errors import CheckpointError
from twinspire_export.dependencies import silenced
from twinspire_export.families.bert_text import text_settings
from twinspire_export.families.family import CheckpointSource, ModelFamily
from twinspire_export.families.huggingface import (
    HuggingFaceTexts,
    load_model,
    load_processor,
    load_tokenizer,
    tokenizer_json,
    unit_rows,
)
from twinspire_export.rewrite import ALL
from twinspire_export.text_encoder import TextPooling, encoder_of
from twinspire_export.towers import unit


class ClapFamily(ModelFamily):
    """HTSAT over log-mel spectrograms, and RoBERTa."""

    model_type = "clap"
    architecture = "ClapModel"
    title = "CLAP"
    examples = ("laion/clap-htsat-unfused", "laion/larger_clap_general")
    modalities = ("text", "audio")
    rewrites = ALL

    def open(self, source: CheckpointSource, files: tuple[Path, ...]) -> ClapCheckpoint:
        """Open a checkpoint. Raises what `ModelFamily.open` says."""
        folder = source.folder
        with silenced("transformers"):
            extractor: ClapFeatureExtractor = load_processor(ClapFeatureExtractor, folder)
            tokenizer = load_tokenizer(folder)
            model: ClapModel = load_model(ClapModel, folder, files)
        serialised = tokenizer_json(tokenizer, folder)
        return ClapCheckpoint(
            source=source,
            family=self,
            files=files,
            dim=int(model.config.projection_dim),
            audio=audio_settings(extractor, model.config.audio_config, folder),
            text=text_settings(tokenizer, serialised, model.text_model, folder),
            tokenizer_json=serialised,
            pooling=TextPooling.FIRST_TOKEN.value,
            # Of audio to texts, as probabilities of labels need it; `logit_scale_t` is of a text to audio.
            logit_scale=float(model.logit_scale_a.detach().double().exp()),
            model=model,
            tokenizer=tokenizer,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ClapCheckpoint(HuggingFaceTexts):
    """An opened `ClapModel`."""

    audio: AudioSettings

    def tower(self, tower: Tower) -> nn.Module:
        """Return a new module of a tower."""
        if tower is Tower.AUDIO:
            return HtsatTower(self.model)
        projection = self.model.text_projection
        head = (projection.linear1, projection.activation, projection.linear2)
        return encoder_of(self.model.text_model, pooler=True, head=head)

    def embed_audio(self, spectrograms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode `spectrograms` (N, F, M): (N, D), L2-normalised."""
        with torch.inference_mode():
            return unit_rows(self.model.get_audio_features(torch.from_numpy(spectrograms)[:, None]))


class HtsatTower(nn.Module):
    """transformers' HTSAT with its projection: `(N, F, M) float32 -> (N, D) float32`, L2-normalised.

    Shares the weights of `model`. Windows and masks depend on the layer alone and are fixed here: transformers' layers
    find them anew in each `forward`, and a trace would compute them at run time and leave its tensors in the model.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - a ClapModel
        super().__init__()
        encoder = model.audio_model.audio_encoder
        shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
        self.encoder, self.projection = copy.deepcopy(encoder, shared), model.audio_projection
        for stage, resolution in zip(self.encoder.layers, self.encoder.input_resolutions, strict=True):
            for layer in stage.blocks:
                layer.set_shift_and_window_size(resolution)
                layer.shift_size, window = int(layer.shift_size), int(layer.window_size)
                layer.window_size = window
                height, width = (-(-side // window) * window for side in resolution)
                mask = layer.get_attn_mask(height, width, torch.float32, torch.device("cpu"))  # (windows, L, L) or None
                layer.get_attn_mask = _Constant(mask)
        self.eval()

    def forward(self, audio: Tensor) -> Tensor:
        """Encode log-mel spectrograms (N, F, M) float32 to (N, D) float32."""
        pooled = self.encoder(audio.unsqueeze(1), always_partition=True).pooler_output  # (N, W)
        return unit(self.projection(pooled))


class _Constant:
    """A function that returns the same tensor whatever it is given."""

    def __init__(self, value: Tensor | None) -> None:
        self._value = value

    def __call__(self, *_: object, **__: object) -> Tensor | None:
        return self._value


def audio_settings(extractor: ClapFeatureExtractor, config: Any, folder: Path) -> AudioSettings:  # noqa: ANN401
    """Translate the feature extractor and the audio tower's config, a ClapAudioConfig.

    Sounds longer than `max_length_s` are cut at their start, where transformers takes a random part of them.

    Raises CheckpointError for a model with feature fusion, and where the spectrograms do not fit the tower.
    """
    if config.enable_fusion or extractor.truncation == "fusion":
        raise CheckpointError(
            f"{folder}: the model is fused: it hears a long sound as four spectrograms, three of them of random parts "
            "('enable_fusion' in config.json, 'truncation' in preprocessor_config.json), which a bundle cannot "
            "express. Use an unfused checkpoint, such as laion/clap-htsat-unfused"
        )
    if extractor.truncation != "rand_trunc":
        raise CheckpointError(
            f"{folder}: 'truncation' in preprocessor_config.json is {extractor.truncation!r}; expected 'rand_trunc'"
        )
    settings = AudioSettings(
        sample_rate=int(extractor.sampling_rate),
        max_length_s=float(extractor.max_length_s),
        fft_size=int(extractor.fft_window_size),
        hop=int(extractor.hop_length),
        mels=int(extractor.feature_size),
        min_hz=float(extractor.frequency_min),
        max_hz=float(extractor.frequency_max),
        mel_scale=MelScale.SLANEY,
        mel_norm=MelNorm.SLANEY,
        padding=extractor.padding,
    )
    longest = int(config.spec_size) * (int(config.spec_size) // int(config.num_mel_bins))
    if settings.mels != config.num_mel_bins or settings.frames > longest:
        raise CheckpointError(
            f"{folder}: preprocessor_config.json makes spectrograms of {settings.frames} x {settings.mels}, the audio "
            f"tower of config.json takes at most {longest} x {config.num_mel_bins} ('spec_size', 'num_mel_bins'); they "
            "belong to different models"
        )
    return settings
