"""Tiny CLAP checkpoints, made and saved by the tests themselves, and sounds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.families import coco_captions, perturb

RATE = 8_000
"""Of the tiny model; the published ones have 48,000."""


def save_clap(folder: Path, *, seed: int = 0, audio: dict[str, Any] | None = None, **extractor: Any) -> Path:
    """Save a random `ClapModel`, a RoBERTa tokenizer and a feature extractor to `folder`.

    Its three stages have windows that are shifted, windows that are not, and, the last, one window alone.
    """
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    trained = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(coco_captions(300), vocab_size=600, special_tokens=specials, show_progress=False)
    trained.save_model(str(folder))
    tokenizer = RobertaTokenizerFast(
        vocab_file=str(folder / "vocab.json"), merges_file=str(folder / "merges.txt"), model_max_length=40
    )
    tokenizer.save_pretrained(folder)
    config = ClapConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 50, "projection_dim": 24,
            "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        },
        audio_config={
            "spec_size": 64, "num_mel_bins": 16, "window_size": 4, "patch_size": 4, "patch_stride": [4, 4],
            "patch_embeds_hidden_size": 16, "depths": [2, 2, 2], "num_attention_heads": [2, 4, 4], "hidden_size": 64,
            "projection_dim": 24, "enable_fusion": False, **(audio or {}),
        },
        projection_dim=24,
        logit_scale_init_value=7.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = ClapModel(config).eval()
    perturb(model, seed=seed)
    with torch.no_grad():
        model.logit_scale_t.fill_(2.5)  # another than that of audio
        for name, parameter in model.named_parameters():  # as initialised, attention would be nearly uniform
            if parameter.dim() == 2 and "layer" in name:
                parameter.mul_(6)
        for name, buffer in model.named_buffers():  # as initialised, batch norms would do nothing
            if name.endswith("running_mean"):
                buffer.uniform_(-60, -20)
            elif name.endswith("running_var"):
                buffer.uniform_(50, 400)
    model.save_pretrained(folder, safe_serialization=True)
    ClapFeatureExtractor(
        **{
            "feature_size": 16, "sampling_rate": RATE, "hop_length": 80, "max_length_s": 2, "fft_window_size": 256,
            "frequency_min": 50, "frequency_max": 3800, "truncation": "rand_trunc", **extractor,
        }
    ).save_pretrained(folder)  # fmt: skip
    return folder


def sounds(rate: int, seconds: float = 2.0, *, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Return sounds by name, (n,) at full scale 0.5: a sine, a chirp, noise, clicks and a voice-like one."""
    generator = np.random.default_rng(seed)
    times = np.arange(round(seconds * rate)) / rate
    clicks = np.zeros(len(times))
    clicks[:: max(1, rate // 4)] = 1
    voice = sum(np.sin(2 * np.pi * 140 * n * times) / n for n in range(1, 12)) * (np.sin(2 * np.pi * 3 * times) > 0)
    found = {
        "sine": np.sin(2 * np.pi * 440 * times),
        "chirp": np.sin(2 * np.pi * (100 + 400 * times) * times),
        "noise": generator.normal(size=len(times)) / 4,
        "clicks": clicks,
        "voice": voice / 3,
    }
    return {name: 0.5 * sound for name, sound in found.items()}


def encoded(samples: NDArray[Any], rate: int, form: str = "WAV", subtype: str = "FLOAT") -> bytes:
    """Return a sound file's bytes."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()
