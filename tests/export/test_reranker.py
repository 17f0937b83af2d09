"""A module that scores pairs of an image and a text becomes an engine that is compared with torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("torch", reason="the export needs torch")

import torch
from tokenizers import Tokenizer as TokenizerJson
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from twinspire.bundle import ImageSettings, Padding, Precision, Reranker, TextSettings
from twinspire.contract import padded
from twinspire.errors import CheckpointError
from twinspire.text import Tokenizer
from twinspire_export.probes import probe_captions, probe_images
from twinspire_export.reranker import RERANKER_FILE, export_reranker

SIZE, CONTEXT, PAD, END = 16, 12, 0, 1
IMAGE = ImageSettings.centre_crop(SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Give a tokenizer of whole words that ends texts with the end token."""
    words = ["[PAD]", "[END]", "[UNK]", "a", "cat", "red", "car", "of"]
    plain = TokenizerJson(WordLevel({word: position for position, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = Whitespace()
    plain.post_processor = TemplateProcessing(single="$A [END]", special_tokens=[("[END]", END)])
    settings = TextSettings(context_length=CONTEXT, pad_id=PAD, eos_id=END, padding=Padding.TRIM)
    return Tokenizer(plain.to_str().encode(), settings)


class Pairs(nn.Module):
    """The mean colour and the mean of the words, multiplied: a module of the contract with dropout in it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words = nn.Embedding(8, 3)
        self.dropout = nn.Dropout(0.5)
        self.bias = nn.Parameter(torch.tensor(0.3))

    def logit(self, image: Tensor, input_ids: Tensor) -> Tensor:
        """Return (N, 1)."""
        mask = (input_ids != PAD)[..., None]
        text = (self.words(input_ids) * mask).sum(dim=1) / mask.sum(dim=1)  # (N, 3)
        colour = self.dropout(image.to(torch.float32).mean(dim=(1, 2)) / 255.0)  # (N, 3)
        return (colour * text).sum(dim=1, keepdim=True) + self.bias

    def forward(self, image: Tensor, input_ids: Tensor) -> Tensor:
        """Return probabilities (N, 1)."""
        return self.logit(image, input_ids).sigmoid()


def test_the_engine_gives_what_torch_gives(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Images and texts that were no probes, in batches of one and of many, get torch's probabilities."""
    module, path = Pairs(), tmp_path / RERANKER_FILE
    spec = export_reranker(module, path, image=IMAGE, tokenizer=tokenizer)
    assert spec == Reranker.of_contract(IMAGE, tokenizer.settings, {Precision.FP32: RERANKER_FILE})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(node.name, node.type, node.shape) for node in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["N", SIZE, SIZE, 3]),
        ("input_ids", "tensor(int32)", ["N", CONTEXT]),
    ]
    generator = np.random.default_rng(0)
    for count in (1, 5):
        images = generator.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
        ids = padded(tokenizer.encode(["a red car", "a cat", "car", "", "a car of a cat"][:count]), PAD, CONTEXT)
        (found,) = session.run(["probability"], {"image": images, "input_ids": ids})
        with torch.inference_mode():
            expected = module.eval()(torch.from_numpy(images), torch.from_numpy(ids)).numpy()
        assert expected.std() > 0.01 or count == 1
        assert np.abs(found - expected).max() <= 1e-6


def test_it_is_compared_with_the_original_code(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A reference of another temperature is an error with both numbers, also of a model that is sure of its answers."""
    module = Pairs().eval()

    def reference(scale: float) -> Any:
        def score(images: Any, captions: Any) -> Any:
            ids = padded(tokenizer.encode(captions), PAD, CONTEXT)
            with torch.inference_mode():
                logits = module.logit(torch.from_numpy(images), torch.from_numpy(ids))
            return (scale * logits).sigmoid().numpy()[:, 0]

        return score

    path = tmp_path / RERANKER_FILE
    export_reranker(module, path, image=IMAGE, tokenizer=tokenizer, reference=reference(1.0))
    with pytest.raises(CheckpointError, match=r"differs from torch.* in place of "):
        export_reranker(module, path, image=IMAGE, tokenizer=tokenizer, reference=reference(1.05))
    with torch.no_grad():
        module.bias -= 12.0  # probabilities of 1e-5, which differ by 1e-6 and less
    with pytest.raises(CheckpointError, match="differs from torch"):
        export_reranker(module, path, image=IMAGE, tokenizer=tokenizer, reference=reference(1.005))


def test_a_trace_that_froze_a_value_is_found(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A module that reads a number of its input in Python, which becomes a constant of the graph, is an error."""

    class Frozen(Pairs):
        def logit(self, image: Tensor, input_ids: Tensor) -> Tensor:
            return super().logit(image, input_ids) + float(image[-1, 0, 0, 0]) / 255

    with pytest.raises(CheckpointError, match="differs from torch"):
        export_reranker(Frozen(), tmp_path / RERANKER_FILE, image=IMAGE, tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda scores: scores[:, 0], r"gives \(8,\) float32 for 8 pairs: expected \(8, 1\)"),
        (lambda scores: torch.cat([scores, scores], dim=1), r"gives \(8, 2\)"),
        (lambda scores: scores.double(), r"gives \(8, 1\) float64"),
        (lambda scores: scores * 3, "expected a probability"),
        (lambda scores: scores * float("nan"), "gives nan in torch itself"),
    ],
)
def test_what_gives_no_probabilities_is_refused(tokenizer: Tokenizer, tmp_path: Path, change: Any, words: str) -> None:
    """Other shapes and types, numbers beyond 0 and 1 and NaN are errors before anything is written."""

    class Wrong(Pairs):
        def forward(self, image: Tensor, input_ids: Tensor) -> Tensor:
            return change(super().forward(image, input_ids))

    with pytest.raises(CheckpointError, match=words):
        export_reranker(Wrong(), tmp_path / RERANKER_FILE, image=IMAGE, tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


def test_probes_fit_the_context(tokenizer: Tokenizer) -> None:
    """Captions longer than the context are no probes; the images are of the model's size, and differ."""
    captions = probe_captions(tokenizer)
    assert "" in captions
    assert 1 < len(captions) < 12
    assert max(map(len, tokenizer.encode(captions))) <= CONTEXT
    images = probe_images(8, 6)
    assert images.shape[1:] == (8, 6, 3)
    assert len({image.tobytes() for image in images}) == len(images)
