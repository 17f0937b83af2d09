"""The training of the sample's reranker, on a scale at which it learns nothing but must run."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from twinspire import Client, sample_bundle
from twinspire_export.sample.batches import Texts, Wording, truth
from twinspire_export.sample.data import IMAGE_SETTINGS, TrainingSettings, load_training_set
from twinspire_export.sample.matcher import SceneMatcher
from twinspire_export.sample.reranker import END_ID, RerankerSettings, SceneReranker
from twinspire_export.sample.train import train as train_towers
from twinspire_export.sample.train_reranker import ClusterBatches, nearest_scenes, train

TINY_DATA = TrainingSettings(scenes=24, steps=2, batch=8, warmup_steps=1)
TINY = RerankerSettings(steps=2, clusters=2, warmup_steps=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an untrained checkpoint of the sample and its training images."""
    folder = tmp_path_factory.mktemp("reranker")
    train_towers(TINY_DATA, folder / "checkpoint", folder / "cache", threads=1, compiled=False)
    return folder


def test_training_writes_weights_that_open_again(folder: Path, tmp_path: Path) -> None:
    """A run leaves the weights of the model that it returns, and a log with its settings."""
    with Client.local(sample_bundle()) as client:
        made = train(
            folder / "checkpoint",
            client,
            TINY,
            tmp_path,
            folder / "cache",
            data_settings=TINY_DATA,
            threads=1,
            compiled=False,
        ).eval()
    opened = SceneReranker.load(folder / "checkpoint", tmp_path, TINY)
    images = torch.randint(0, 255, (3, 112, 112, 3), dtype=torch.uint8)
    ids = torch.randint(4, 100, (3, 64))
    with torch.no_grad():
        assert torch.equal(made(images, ids), opened(images, ids))
    settings = json.loads((tmp_path / "training.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert settings["settings"]["steps"] == 2


def test_padding_changes_nothing(folder: Path) -> None:
    """A text has the same probability however far it is padded, and whatever else is in the batch."""
    model = _randomized(folder)
    images, ids = _pairs((5, 12, 64))
    with torch.no_grad():
        together = model(images, ids)
        for row, length in enumerate((5, 12, 64)):
            alone = model(images[row : row + 1], ids[row : row + 1, :length])
            assert alone.item() == pytest.approx(together[row].item(), abs=1e-6)


def test_the_exported_modules_compute_what_is_trained(folder: Path) -> None:
    """The plain modules, rewritten, give the probabilities of the trained model, which differ."""
    model = _randomized(folder)
    images, ids = _pairs((3, 5, 12, 30, 63, 64))
    with torch.no_grad():
        expected = model(images, ids)
        found = SceneMatcher(model, IMAGE_SETTINGS).eval()(images, ids.int())
    assert found.shape == (6, 1)
    assert expected.std() > 0.01
    assert torch.allclose(found, expected, atol=1e-5)


def _randomized(folder: Path) -> SceneReranker:
    """Return a reranker of which every part counts: untrained, its cross-attentions would add nothing."""
    torch.manual_seed(0)
    model = SceneReranker(CLIPModel.from_pretrained(folder / "checkpoint"), TINY).eval()
    with torch.no_grad():
        for parameter in [*model.fusion.parameters(), *model.image_norm.parameters(), *model.head.parameters()]:
            parameter.normal_(std=0.3)
    return model


def _pairs(lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images, and token ids of texts of these lengths, each with its end token, padded on the right."""
    images = torch.randint(0, 255, (len(lengths), 112, 112, 3), dtype=torch.uint8)
    ids = torch.zeros(len(lengths), 64, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, : length - 1] = torch.randint(4, 100, (length - 1,))
        ids[row, length - 1] = END_ID
    return images, ids


def test_a_cluster_is_of_like_scenes(folder: Path) -> None:
    """Each cluster has different images, and a text is true of its own and not of all."""
    data = load_training_set(TINY_DATA, folder / "cache", processes=1)
    with Client.local(sample_bundle()) as client:
        nearest = nearest_scenes(data, client, 8, seed=0)
        tokenizer = client.tokenize
        wording = Wording(lambda text: tokenizer([text])[0].tolist())
        batch = next(iter(ClusterBatches(data, nearest, Texts(wording, TINY_DATA, random.Random(0)), TINY)))
    assert nearest.shape == (len(data.units), 8)
    assert all(len({unit[0], *row}) == 9 for unit, row in zip(data.units, nearest.tolist(), strict=True))
    assert batch.images.shape == (2, 7, 112, 112, 3)
    assert batch.ids.shape[:2] == (2, 7)
    assert batch.true.diagonal(dim1=1, dim2=2).all()
    assert not batch.true.flatten(1).all(dim=1).any()
    flat = batch.images.flatten(2).numpy()
    assert all(len(np.unique(cluster, axis=0)) == 7 for cluster in flat)


def test_truth_is_what_each_text_says(folder: Path) -> None:
    """The matrix holds, row by row, what a text's view gives for every scene."""
    data = load_training_set(TINY_DATA, folder / "cache", processes=1)
    texts = Texts(Wording(lambda text: list(text.encode())), TINY_DATA, random.Random(1))
    scenes = data.scenes[:20]
    said = [texts.caption(scene) for scene in scenes] + [texts.query(scene) for scene in scenes]
    expected = [[text.view(scene) == text.value for scene in scenes] for text in said]
    assert truth(said, scenes).tolist() == expected
