"""BLIP-2's image-text contrast: several vectors an image, scored by their maximum, as transformers scores them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the export needs torch")

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertTokenizer,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    BlipImageProcessor,
)

from support.blip_2 import CONTEXT, DIM, QUERIES, SIZE, save_blip_2, vocabulary
from support.families import (
    CHINESE,
    HARD_TEXTS,
    coco_captions,
    minimum_cosine,
    photographs_and_odd_images,
    served,
)
from twinspire import Client
from twinspire.bundle import Bundle, OutputForm, Padding, Precision, Resize, Tower
from twinspire.contract import padded
from twinspire.errors import CheckpointError
from twinspire.index import Index
from twinspire.ingest import IngestOptions, Sidecars, add_images, add_texts
from twinspire.search import Query, Searcher
from twinspire.search.classify import Classifier
from twinspire.similarity import similarities
from twinspire_eval.datasets import open_dataset
from twinspire_eval.recall import Direction
from twinspire_eval.recall.benchmark import measure_recall
from twinspire_export import export_checkpoint
from twinspire_export.checkpoint import open_checkpoint
from twinspire_export.quantize import quantize_bundle
from twinspire_export.rewrite import apply_rewrites
from twinspire_server.repository import build_repository

MIN_COSINE = 0.99999
ODD_TEXTS = [*CHINESE, *HARD_TEXTS]
TEXTS = ["a cat", "two boats on the sea at night", "", "一只猫", "a red car to the left of a green tree", "a man"]


@pytest.fixture(scope="module")
def blip_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the checkpoint once."""
    return save_blip_2(tmp_path_factory.mktemp("checkpoints") / "tiny-blip2")


@pytest.fixture(scope="module")
def bundle(blip_2: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Export it once."""
    return Bundle.open(export_checkpoint(blip_2, tmp_path_factory.mktemp("bundles") / "blip2").path)


@pytest.fixture
def client(bundle: Bundle) -> Any:
    """Open the bundle's fp32 engines."""
    with Client.local(bundle, precision=Precision.FP32, provider="cpu", threads=1) as opened:
        yield opened


@pytest.fixture
def copy(blip_2: Path, tmp_path: Path) -> Path:
    """Give a copy of the checkpoint, which the test may damage."""
    return Path(shutil.copytree(blip_2, tmp_path / "tiny-blip2"))


def reference(folder: Path, images: list[Any], texts: list[str]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return transformers' own image and text embeddings, and its scores (N images, M texts), padded as it pads."""
    model: Any = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    tokens = BertTokenizer(str(folder / "vocab.txt"))(
        texts, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt"
    )
    pixels = BlipImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = model(pixel_values=pixels, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        scores = torch.stack(
            [
                model(pixel_values=pixels, input_ids=row[None], attention_mask=mask[None]).logits_per_image[:, 0]
                for row, mask in zip(tokens["input_ids"], tokens["attention_mask"], strict=True)
            ],
            dim=1,
        )
    return found.image_embeds.numpy(), found.text_embeds.numpy(), scores.numpy()


def test_the_bundle_says_what_the_model_is(bundle: Bundle) -> None:
    """Several vectors an image and one a text, stretched images, trimmed texts, cosines as logits."""
    manifest = bundle.manifest
    assert (manifest.family, bundle.dim, bundle.vectors_per_item) == ("blip-2", DIM, QUERIES)
    assert manifest.towers.image.output_form is OutputForm.MAX_OF_VECTORS
    assert manifest.towers.text.output_form is OutputForm.VECTOR
    assert bundle.output_spec(Tower.IMAGE).shape == (QUERIES, DIM)
    assert bundle.output_spec(Tower.TEXT).shape == (DIM,)
    assert (bundle.image.resize, bundle.image.size) == (Resize.STRETCH, SIZE)
    assert (bundle.text.padding, bundle.text.context_length) == (Padding.TRIM, CONTEXT)
    assert (manifest.logit_scale, manifest.logit_bias) == (1.0, None)
    probes = bundle.probes()
    assert probes.towers[Tower.IMAGE].embedding.shape[1:] == (QUERIES, DIM)
    certificate = manifest.engines[Tower.IMAGE][Precision.FP32].certificate
    assert certificate is not None
    assert certificate.samples == len(probes.towers[Tower.IMAGE].inputs)


@pytest.mark.parametrize("count", [1, 3, 17])
def test_embeddings_are_those_of_transformers(blip_2: Path, client: Client, count: int) -> None:
    """Images of every shape and captions of mixed lengths give transformers' vectors, in batches of any size."""
    images = (photographs_and_odd_images() * 2)[:count] if count < 17 else photographs_and_odd_images()[-17:]
    texts = (TEXTS + coco_captions(40))[:count]
    expected_images, expected_texts, _ = reference(blip_2, images, texts)
    found = client.encode_images(images)
    assert found.shape == (len(images), QUERIES, DIM)
    assert minimum_cosine(found, expected_images) >= MIN_COSINE
    assert minimum_cosine(client.encode_texts(texts), expected_texts) >= MIN_COSINE


def test_vectors_differ(client: Client) -> None:
    """Each query gives a vector of its own, and each photograph others: the tests here would see a wrong one."""
    vectors = client.encode_images(photographs_and_odd_images()[:8])
    assert (vectors[0] @ vectors[0].T)[~np.eye(QUERIES, dtype=bool)].max() < 0.999
    assert np.einsum("aqd,bqd->abq", vectors, vectors)[~np.eye(8, dtype=bool)].min(axis=-1).max() < 0.999


def test_scores_are_those_of_transformers(blip_2: Path, client: Client) -> None:
    """The maximum of the cosines is `logits_per_image`, and a classifier's probabilities are its softmax."""
    images = photographs_and_odd_images()[:5]
    _, _, expected = reference(blip_2, images, TEXTS)
    scores = similarities(client.encode_images(images), client.encode_texts(TEXTS))
    assert np.abs(scores - expected).max() <= 2e-6
    labels = [text for text in TEXTS if text]
    columns = [TEXTS.index(label) for label in labels]
    powers = np.exp(expected[:, columns])
    for found, row in zip(
        Classifier(client, labels).classify(images), powers / powers.sum(1, keepdims=True), strict=True
    ):
        by_label = {score.label: score.probability for score in found.scores}
        assert [by_label[label] for label in labels] == pytest.approx(row.tolist(), abs=1e-6)


def test_padding_changes_nothing(client: Client) -> None:
    """A short text beside the longest one gets the vector that it has alone, from finite numbers."""
    ids = client.tokenize(["a cat", "word " * 100])
    together = client.towers.encode_texts(ids)
    assert np.isfinite(together).all()
    assert np.abs(together[0] - client.towers.encode_texts(ids[:1])[0]).max() <= 1e-6


def test_ids_are_those_of_the_slow_tokenizer(blip_2: Path, client: Client) -> None:
    """Captions, Chinese, emoji, empty and overlong texts give the ids of transformers' Python tokenizer."""
    texts = coco_captions(2_000) + ODD_TEXTS
    expected = BertTokenizer(str(blip_2 / "vocab.txt"))(texts, truncation=True, max_length=CONTEXT)["input_ids"]
    assert [ids.tolist() for ids in client.tokenize(texts)] == expected


def test_pixels_are_those_of_the_slow_processor(blip_2: Path, client: Client) -> None:
    """Photographs, odd and generated images are stretched as `BlipImageProcessor` does, to the byte."""
    images = photographs_and_odd_images()
    expected = BlipImageProcessor.from_pretrained(blip_2)(images, do_rescale=False, do_normalize=False)["pixel_values"]
    assert np.array_equal(client.preprocess(images), np.transpose(np.stack(expected), (0, 2, 3, 1)))


def test_every_rewrite_is_lossless(blip_2: Path) -> None:
    """With each of the family's rewrites, and with all, the image tower gives what it gave without."""
    opened = open_checkpoint(blip_2)
    images = torch.from_numpy(
        np.stack([np.asarray(image.resize((SIZE, SIZE))) for image in photographs_and_odd_images()[:6]])
    )
    with torch.inference_mode():
        expected = opened.tower(Tower.IMAGE)(images).numpy()
        names = opened.family.rewrites
        for chosen in [("normalisation",), ("normalisation", "patches"), ("scale",), ("qkv",), names]:
            rewritten = apply_rewrites(opened.tower(Tower.IMAGE), chosen)
            before, after = opened.tower(Tower.IMAGE).state_dict(), rewritten.state_dict()
            assert before.keys() != after.keys() or any(not torch.equal(before[name], after[name]) for name in before)
            found = rewritten(images).numpy()
            assert minimum_cosine(found, expected) >= 1 - 1e-6


def test_an_image_token_is_left_out(tmp_path: Path) -> None:
    """Where transformers' processor has a token for images, texts get the ids and vectors that they have without it."""
    folder = save_blip_2(tmp_path / "with-token", image_token=True)
    bundle = export_checkpoint(folder, tmp_path / "bundle")
    with Client.local(bundle, precision="fp32", provider="cpu", threads=1) as client:
        assert max(ids.max() for ids in client.tokenize(["<image>", "a cat"])) < len(vocabulary())
        model: Any = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
        ids = torch.from_numpy(padded(client.tokenize(["a cat"]), 0)).long()
        prefix = torch.full((1, QUERIES), model.config.image_token_index)
        ids = torch.cat([prefix, ids], dim=1)
        with torch.no_grad():
            output = model(pixel_values=torch.zeros(1, 3, SIZE, SIZE), input_ids=ids, attention_mask=ids * 0 + 1)
        assert minimum_cosine(client.encode_texts(["a cat"]), output.text_embeds.numpy()) >= MIN_COSINE


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP16])
def test_further_precisions(bundle: Bundle, tmp_path: Path, precision: Precision) -> None:
    """int8 and fp16 engines are made with certificates, and score nearly as fp32 does."""
    made = quantize_bundle(bundle, tmp_path / "made", precision=precision)
    for tower in made.towers:
        certificate = made.manifest.engines[tower][precision].certificate
        assert certificate is not None
        print(tower, certificate.min_cosine, certificate.mean_cosine)
        assert certificate.mean_cosine >= (0.999 if precision is Precision.FP16 else 0.99)
    images = photographs_and_odd_images()[:8]
    scores = []
    for chosen in (Precision.FP32, precision):
        with Client.local(made, precision=chosen, provider="cpu", threads=1) as client:
            scores.append(similarities(client.encode_images(images), client.encode_texts(TEXTS)))
    assert np.abs(scores[0] - scores[1]).max() <= (0.005 if precision is Precision.FP16 else 0.1)


@pytest.mark.slow
def test_it_is_served(bundle: Bundle, tmp_path: Path, client: Client) -> None:
    """Triton's answers are those of this process: (N, Q, D) for images, (N, D) for texts."""
    images, texts = photographs_and_odd_images()[:9], TEXTS + coco_captions(20)
    with served(bundle, tmp_path, precision="fp32") as remote:
        found = remote.encode_images(images)
        assert found.shape == (9, QUERIES, DIM)
        assert np.abs(found - client.encode_images(images)).max() <= 1e-6
        assert np.abs(remote.encode_texts(texts) - client.encode_texts(texts)).max() <= 1e-6
        assert remote.encode_images([]).shape == (0, QUERIES, DIM)


def test_a_search_ranks_as_transformers_scores(blip_2: Path, client: Client, tmp_path: Path) -> None:
    """Image files through ingestion, the index and a searcher: the order of `logits_per_image`; images find images."""
    folder = tmp_path / "images"
    folder.mkdir()
    images = photographs_and_odd_images()
    for number, image in enumerate(images):
        image.save(folder / f"{number:02}.png")
    files = sorted(folder.iterdir())
    image_vectors, _, scores = reference(blip_2, images, TEXTS)
    with Index.create(
        tmp_path / "index", space=client.space, dim=client.dim, vectors_per_item=client.vectors_per_item
    ) as index:
        assert add_images(index, client, files).added == len(files)
        searcher = Searcher(client, index)
        for column, text in enumerate(TEXTS):
            if not text:
                continue
            hits = searcher.search(text, len(files), mode="vector").hits
            assert [hit.score for hit in hits] == pytest.approx(sorted(scores[:, column], reverse=True), abs=2e-6)
            assert [scores[int(Path(hit.uri).stem), column] for hit in hits] == pytest.approx(
                [hit.score for hit in hits], abs=2e-6
            )
        pairs = np.einsum("qd,npd->nqp", image_vectors[3], image_vectors).max(axis=(1, 2))
        hits = searcher.search(Query.image(files[3]), 5).hits
        assert hits[0].uri == str(files[3])
        assert [hit.score for hit in hits] == pytest.approx(sorted(pairs, reverse=True)[:5], abs=2e-6)
        mixed = Query.image(files[3]) + Query.text("a cat")
        total = image_vectors[3] + client.encode_texts(["a cat"])
        total /= np.linalg.norm(total, axis=1, keepdims=True)
        hits = searcher.search(mixed, 5, mode="vector").hits
        expected = np.einsum("qd,npd->nqp", total, image_vectors).max(axis=(1, 2))
        assert [hit.score for hit in hits] == pytest.approx(sorted(expected, reverse=True)[:5], abs=2e-6)
        bound = float(np.median(scores[:, 0]))
        assert all(hit.score >= bound for hit in searcher.search(TEXTS[0], 50, mode="vector", min_score=bound).hits)
        varied = searcher.search(TEXTS[0], 5, mode="vector", diversify=0.7).hits
        assert len({hit.uri for hit in varied}) == 5


def test_captions_are_fused_with_each_vector(client: Client, tmp_path: Path) -> None:
    """An image indexed with its caption has as many vectors, each the weighted mean with the caption's."""
    photographs_and_odd_images()[0].save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cat", encoding="utf-8")
    options = IngestOptions(captions=Sidecars(), caption_weight=0.3)
    with Index.create(
        tmp_path / "index", space=client.space, dim=client.dim, vectors_per_item=client.vectors_per_item
    ) as index:
        add_images(index, client, [tmp_path / "a.png"], options)
        (image,) = client.encode_images([tmp_path / "a.png"])
        mixed = 0.7 * image + 0.3 * client.encode_texts(["a cat"])
        mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
        assert np.abs(index.vectors([0])[0] - mixed).max() <= 1e-6
        (tmp_path / "lines.txt").write_text("a dog\na cat\n", encoding="utf-8")
        add_texts(index, client, [tmp_path / "lines.txt"])
        (tmp_path / "more.txt").write_text("a boat\na cat\n", encoding="utf-8")
        add_texts(index, client, [tmp_path / "more.txt"])  # whose second line has a twin
        assert index.count(kind="text") == 4
        (hit,) = index.search(client.encode_texts(["a boat"]), k=1, kind="text", space=client.space)[0]
        assert (hit.caption, hit.score) == ("a boat", pytest.approx(1.0, abs=1e-6))


@pytest.mark.parametrize("runtime", ["wheel", "container"])
def test_repositories_state_the_output(bundle: Bundle, tmp_path: Path, runtime: str) -> None:
    """The image model's config has Q vectors an item in its output, the text model's one."""
    models = build_repository([bundle.path], tmp_path / "models", precision="fp32", runtime=runtime, threads=1)
    configs = {model.name.rsplit("_", 1)[-1]: (model.folder / "config.pbtxt").read_text() for model in models}
    assert f'"embedding" data_type: TYPE_FP32 dims: [ {QUERIES}, {DIM} ]' in configs["image"]
    assert f'"embedding" data_type: TYPE_FP32 dims: [ {DIM} ]' in configs["text"]


def test_recall_is_measured(client: Client) -> None:
    """`bench recall`'s measurement takes the model: both directions of both languages, by the maximum."""
    report = measure_recall({"fp32": client}, open_dataset("scenes:12"))
    data = open_dataset("scenes:12")
    images = client.encode_images([image for chunk in data.chunks(12) for image in chunk])
    for language, both in report.rankings["fp32"].items():
        captions = [caption.text for found in data.captions for caption in found if caption.language == language]
        scores = similarities(client.encode_texts(captions), images)
        own = np.diagonal(scores)
        assert both[Direction.TEXT_TO_IMAGE].first_ranks.tolist() == (scores >= own[:, None]).sum(axis=1).tolist()


# ------------------------------------------------------------------------------------------- bad checkpoints


def _edit(file: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        document = json.loads((folder / file).read_text(encoding="utf-8"))
        change(document)
        (folder / file).write_text(json.dumps(document), encoding="utf-8")

    return edit


def _without_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["vision_projection.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _misshapen(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["query_tokens"] = tensors["query_tokens"][:, :-1].contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _without_tokenizer(folder: Path) -> None:
    for file in ("tokenizer.json", "vocab.txt"):
        (folder / file).unlink()


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (_without_tokenizer, "tokenizer"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (_without_tensor, "vision_projection.weight"),
        (_misshapen, "query_tokens"),
        (_edit("tokenizer.json", lambda document: document.update(normalizer={"type": "NFC"})), "normalizer"),
        (_edit("tokenizer.json", lambda document: document.update(normalizer=None)), "tokenizer"),
        (_edit("tokenizer.json", lambda document: document.update(post_processor=None)), "empty text"),
        (_edit("config.json", lambda document: document["qformer_config"].update(pad_token_id=1)), "pad_token_id"),
        (_edit("preprocessor_config.json", lambda document: document.update(resample=2)), "resample"),
        (_edit("preprocessor_config.json", lambda document: document["size"].update(height=48)), "size"),
        (_edit("preprocessor_config.json", lambda document: document.update(image_std=[1, 1])), "image_std"),
        (
            _edit("config.json", lambda document: document.update(architectures=["Blip2ForConditionalGeneration"])),
            "Blip2ForConditionalGeneration",
        ),
    ],
)
def test_what_is_no_checkpoint_of_the_family_is_refused(
    copy: Path, tmp_path: Path, damage: Callable[[Path], None], word: str
) -> None:
    """Missing files and tensors, other shapes, another tokenizer or processor: an error that names it, no bundle."""
    damage(copy)
    with pytest.raises(CheckpointError, match=word):
        export_checkpoint(copy, tmp_path / "bundle")
    assert sorted(tmp_path.iterdir()) == [copy]


def test_the_generating_model_is_refused_by_name(tmp_path: Path) -> None:
    """A captioning BLIP-2 has no contrastive projections: the error names what it is and what is expected."""
    folder = save_blip_2(tmp_path / "captioner", model_class=Blip2ForConditionalGeneration)
    with pytest.raises(CheckpointError, match=r"Blip2ForConditionalGeneration.*Blip2ForImageTextRetrieval"):
        export_checkpoint(folder, tmp_path / "bundle")
