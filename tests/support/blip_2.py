"""Tiny BLIP-2 checkpoints, made and saved by the tests themselves."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from support.data import DATA
from support.families import perturb

SIZE, QUERIES, DIM, CONTEXT = 32, 6, 24, 40


def vocabulary() -> list[str]:
    """Return a WordPiece vocabulary: BERT's special tokens, characters and pieces of them, and words of captions."""
    document = json.loads((DATA / "coco" / "captions_val2017.json").read_text(encoding="utf-8"))
    counts = Counter(word for found in document["annotations"] for word in found["caption"].lower().split())
    characters = [chr(code) for code in range(33, 127) if not 65 <= code <= 90] + list(
        "一只猫在雪地里夜晚的海上有两艘小船。"
    )
    words = [word for word, _ in counts.most_common() if word.isalpha() and len(word) > 1]
    pieces = [f"##{character}" for character in characters] + ["##ing", "##s", "##ed"]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*characters, *pieces, *words])]


def save_blip_2(folder: Path, *, image_token: bool = False, model_class: Any = None) -> Path:
    """Save a random BLIP-2 of two ViT layers and three Q-Former layers, its tokenizer and image processor."""
    import torch
    from transformers import BertTokenizerFast, Blip2Config, Blip2ForImageTextRetrieval, BlipImageProcessor

    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True, model_max_length=512)
    words = len(tokenizer)
    if image_token:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    text = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": words}
    config = Blip2Config(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": SIZE,
            "patch_size": 8,
            "initializer_range": 0.2,  # the default of 1e-10 would make all images alike
        },
        qformer_config={
            "vocab_size": words,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "max_position_embeddings": CONTEXT,
            "encoder_hidden_size": 48,
            "cross_attention_frequency": 2,
            "use_qformer_text_input": True,
            "initializer_range": 0.2,
        },
        text_config={"model_type": "opt", "max_position_embeddings": 32, "word_embed_proj_dim": 16, **text},
        num_query_tokens=QUERIES,
        image_text_hidden_size=DIM,
        image_token_index=words if image_token else None,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    model = (model_class or Blip2ForImageTextRetrieval)(config).eval()
    perturb(model)
    model.save_pretrained(folder)
    BlipImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder
