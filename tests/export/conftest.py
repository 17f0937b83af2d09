"""Tiny CLIP checkpoints, made and saved by the tests themselves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def save_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    image_size: int = 32,
    context_length: int = 32,
    eos_id: int | None = None,
    vocabulary: int | None = None,
    channels: int = 3,
    hidden_act: str = "quick_gelu",
    dtype: str = "float32",
    **saving: Any,
) -> Path:
    """Save a random two-layer `CLIPModel`, a byte-level BPE tokenizer and an image processor to `folder`."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from twinspire_export.random_checkpoints import stand_in_tokenizer

    tokenizer = stand_in_tokenizer()
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **layers,
            "vocab_size": len(tokenizer) if vocabulary is None else vocabulary,
            "max_position_embeddings": context_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id if eos_id is None else eos_id,
            "pad_token_id": tokenizer.pad_token_id,
            "hidden_act": hidden_act,
        },
        vision_config={
            **layers,
            "image_size": image_size,
            "patch_size": 8,
            "num_channels": channels,
            "hidden_act": hidden_act,
        },
        projection_dim=24,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        # As initialised, biases are 0 and norms 1: a mistake in them would go unseen.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(getattr(torch, dtype)).save_pretrained(folder, safe_serialization=True, **saving)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="the export needs torch")
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-clip")


@pytest.fixture
def checkpoint(_pristine: Path, tmp_path: Path) -> Path:
    """Give a folder with an intact tiny CLIP checkpoint, which the test may damage."""
    folder = tmp_path / "tiny-clip"
    shutil.copytree(_pristine, folder)
    return folder


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """Give the function that saves a tiny checkpoint, for tests that want another one."""
    pytest.importorskip("torch", reason="the export needs torch")
    return save_checkpoint
