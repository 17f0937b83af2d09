"""All settings of the sample model and its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twinspire.bundle import ImageSettings
from twinspire_eval.scenes.vocabulary import Language

PAD, START, UNKNOWN, END = "<|pad|>", "<|startoftext|>", "<|unknown|>", "<|endoftext|>"
# In this order from 0. CLIPModel treats an end id of 2 as a legacy case, so the end token is not the third.
SPECIAL_TOKENS = (PAD, START, UNKNOWN, END)

IMAGE_SETTINGS = ImageSettings.centre_crop(
    112,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
JPEG_QUALITY = 90
CONTEXT_LENGTH = 64
VOCABULARY_SIZE = 1024
LANGUAGES = tuple(Language)


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training run.

    `scenes` descriptions are sampled, each with three siblings that differ in one respect: other kinds, or exchanged
    colours, sides or kinds. They are hard negatives in the same batch, which teaches kinds and binding.
    """

    scenes: int = 15_000
    steps: int = 1_700
    batch: int = 256
    warmup_steps: int = 100
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    partial_captions: float = 0.2
    seed: int = 2026


def clip_config(vocabulary: int) -> dict[str, dict[str, Any]]:
    """Return the keyword arguments of a `CLIPConfig` for the sample's two towers."""
    return {
        "text_config": {
            "vocab_size": vocabulary,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT_LENGTH,
            "pad_token_id": SPECIAL_TOKENS.index(PAD),
            "bos_token_id": SPECIAL_TOKENS.index(START),
            "eos_token_id": SPECIAL_TOKENS.index(END),
        },
        "vision_config": {
            "hidden_size": 160,
            "intermediate_size": 640,
            "num_hidden_layers": 6,
            "num_attention_heads": 5,
            "image_size": IMAGE_SETTINGS.size,
            "patch_size": 16,
        },
    }
