"""Small SentencePiece models, trained by the tests, and transformers' tokenizers of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import SiglipTokenizer
from transformers.utils import sentencepiece_model_pb2_new

from support.families import CHINESE, coco_captions

CONTEXT = 64


@pytest.fixture(scope="module")
def readable_sentencepiece() -> Iterator[None]:
    """Let transformers read SentencePiece models: sentencepiece 0.2.3's own module asks for a newer protobuf."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentencepiece, "sentencepiece_model_pb2", sentencepiece_model_pb2_new, raising=False)
        yield


def train_sentencepiece(model_type: str, **options: Any) -> bytes:
    """Train a small SentencePiece model on captions, by default with T5's and Gemma's ids of padding and end."""
    captions = [*coco_captions(35), *CHINESE]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([caption.lower() for caption in captions] * 3),
        model_writer=model,
        model_type=model_type,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **{"pad_id": 0, "eos_id": 1, **options},
    )
    return model.getvalue()


def save_sentencepiece(folder: Path, **options: Any) -> None:
    """Write spiece.model and the settings of google/siglip-base-patch16-224."""
    trained = train_sentencepiece("unigram", unk_id=2, bos_id=-1, vocab_size=500, eos_piece="</s>", **options)
    (folder / "spiece.model").write_bytes(trained)
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "model_max_length": CONTEXT, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def slow_ids(folder: Path, context_length: int = CONTEXT) -> Callable[[str], list[int]]:
    """Return the tokenization of transformers' `SiglipTokenizer`."""
    tokenizer = SiglipTokenizer.from_pretrained(folder)
    return lambda text: list(tokenizer(text, truncation=True, max_length=context_length)["input_ids"])
