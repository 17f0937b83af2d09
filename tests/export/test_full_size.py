"""Checkpoints as they are published: ViT-B/32 at full size, and the files as OpenAI's repositories hold them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the export needs torch")
pytest.importorskip("nncf", reason="quantizing needs nncf")

import onnxruntime as ort
import torch
from transformers import CLIPImageProcessor, CLIPModel

from support.data import TOKENIZATIONS, VOCABULARY
from twinspire.bundle import Precision, Tower
from twinspire.images import Preprocessor
from twinspire.text import Tokenizer
from twinspire_eval.scenes import Language, Split, scene_set
from twinspire_export import export_checkpoint, quantize_bundle
from twinspire_export.random_checkpoints import ModelSize, save_random_checkpoint, write_clip_tokenizer


def test_openais_files(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """A checkpoint in the files of OpenAI's repositories exports, and its tokenizer gives the published ids."""
    checkpoint = make_checkpoint(tmp_path / "openai", image_size=32, context_length=77, vocabulary=49408, eos_id=2)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (checkpoint / name).unlink()
    write_clip_tokenizer(VOCABULARY, checkpoint)
    (checkpoint / "tokenizer_config.json").unlink()
    processor = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "resample": 3}
    (checkpoint / "preprocessor_config.json").write_text(json.dumps({**processor, "do_resize": True}))

    bundle = export_checkpoint(checkpoint, tmp_path / "bundle")
    assert (bundle.text.context_length, bundle.text.eos_id) == (77, 49407)
    assert (bundle.image.size, bundle.image.shortest_side, bundle.image.mean[0]) == (32, 32, 0.48145466)
    tokenizer = Tokenizer(bundle.tokenizer_path, bundle.text)
    for case in json.loads(TOKENIZATIONS.read_text(encoding="utf-8")):
        expected = case["ids"] if len(case["ids"]) <= 77 else [*case["ids"][:76], 49407]
        assert tokenizer.encode([case["text"]])[0].tolist() == expected, case["text"]


@pytest.mark.thorough
def test_vit_b_32(tmp_path: Path) -> None:
    """ViT-B/32 with random weights exports to the embeddings of torch, and quantizes to a quarter of the size."""
    checkpoint = save_random_checkpoint(ModelSize.VIT_B_32, tmp_path / "checkpoint")
    scenes = scene_set(18, seed=5, split=Split.HELDOUT)
    pictures, captions = [scene.draw() for scene in scenes], [scene.captions[Language.ENGLISH] for scene in scenes]

    base = export_checkpoint(checkpoint, tmp_path / "fp32", name="vit-b-32")
    pixels = CLIPImageProcessor.from_pretrained(checkpoint)(pictures[16:], return_tensors="pt")
    with torch.inference_mode():
        model = CLIPModel.from_pretrained(checkpoint)
        expected = torch.nn.functional.normalize(model.get_image_features(**pixels), dim=-1).numpy()
    del model

    bundle = quantize_bundle(base, tmp_path / "int8", images=pictures[:16], captions=captions[:16])
    ids = Tokenizer(bundle.tokenizer_path, bundle.text).encode(captions[16:])
    feeds = {Tower.IMAGE: [Preprocessor(bundle.image).many(pictures[16:])], Tower.TEXT: [row[None] for row in ids]}
    for tower, least in ((Tower.IMAGE, 0.99), (Tower.TEXT, 0.98)):
        engines = bundle.manifest.engines[tower]
        ratio = engines[Precision.INT8].size_bytes / engines[Precision.FP32].size_bytes
        assert ratio <= 0.26, f"{tower}: int8 is {ratio:.3f} of fp32"
        rows = {}
        for precision in engines:
            session = ort.InferenceSession(bundle.engine(tower, precision), providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            rows[precision] = np.concatenate([session.run(["embedding"], {name: feed})[0] for feed in feeds[tower]])
        cosines = (rows[Precision.INT8] * rows[Precision.FP32]).sum(axis=1)
        assert cosines.min() >= least, f"{tower}: least cosine of int8 to fp32 {cosines.min()}"
        if tower is Tower.IMAGE:
            difference = np.abs(rows[Precision.FP32] - expected).max()
            assert difference <= 2e-6, f"largest difference to transformers {difference}"
