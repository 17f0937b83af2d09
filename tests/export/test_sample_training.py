"""The sample's training script, on a scale at which it learns nothing but must run."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from twinspire_eval.scenes import Language, Scene, Split, sample_scenes
from twinspire_eval.scenes.description import Detail, Query, without
from twinspire_export.sample.batches import Batches, Wording
from twinspire_export.sample.data import (
    CONTEXT_LENGTH,
    END,
    SPECIAL_TOKENS,
    START,
    TrainingSettings,
    load_training_set,
    train_tokenizer,
    training_captions,
    training_scenes,
)
from twinspire_export.sample.minimise import learning_rate
from twinspire_export.sample.train import contrastive_loss, train

TINY = TrainingSettings(scenes=24, steps=3, batch=8, warmup_steps=1)


def test_training_writes_a_checkpoint_and_its_log(tmp_path: Path) -> None:
    """A run leaves a safetensors checkpoint with tokenizer and preprocessing, and a log with a line a report."""
    train(TINY, tmp_path / "out", tmp_path / "cache", threads=1, compiled=False, report_every=1)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"} <= names
    preprocessing = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert preprocessing["size"] == {"shortest_edge": 112}
    assert preprocessing["crop_size"] == {"height": 112, "width": 112}
    log = (tmp_path / "out" / "training.jsonl").read_text(encoding="utf-8")
    settings, *reports = map(json.loads, log.splitlines())
    assert settings["settings"]["steps"] == 3
    assert [report["step"] for report in reports] == [1, 2, 3]
    assert all(np.isfinite(report["loss"]) for report in reports)


def test_only_training_scenes_are_trained_on() -> None:
    """Every scene and every sibling of a run is of the training split, and siblings differ in one respect only."""
    scenes, units = training_scenes(TrainingSettings(scenes=500))
    assert {scene.split for scene in scenes} == {Split.TRAIN}
    assert sorted(position for unit in units for position in unit) == list(range(len(scenes)))
    for unit in units:
        first, *siblings = (scenes[position] for position in unit)
        assert len(siblings) == 3
        for sibling in siblings:
            assert sibling != first
            assert (sibling.background, sibling.axis, sibling.place) == (first.background, first.axis, first.place)
            colours, kept = ([group.colour for group in scene.groups] for scene in (sibling, first))
            assert sibling.family == first.family or colours == kept


def test_a_batch_shows_every_scene_once_an_epoch(tmp_path: Path) -> None:
    """Batches run through all scenes before any comes again, but for the last of an epoch."""
    data = load_training_set(TINY, tmp_path, processes=1)
    size = len(data.scenes)
    positions = [
        position
        for _, batch in zip(range(size // 8), data.batches(8, random.Random(0)), strict=False)
        for position in batch
    ]
    assert len(set(positions)) == len(positions)


@pytest.mark.parametrize("text", ["a red car", "一辆红色的汽车", "Ein rotes Auto, früh um 5", "🦊", ""])
def test_every_text_has_tokens(text: str) -> None:
    """Texts that no caption holds, in any script, become tokens between start and end, none of them unknown."""
    scenes = sample_scenes(300, seed=0, split=Split.TRAIN)
    tokenizer = train_tokenizer(training_captions(scenes, random.Random(0)))
    ids = tokenizer.encode(text).ids
    assert ids[0] == SPECIAL_TOKENS.index(START)
    assert ids[-1] == SPECIAL_TOKENS.index(END)
    assert tokenizer.token_to_id("<|unknown|>") not in ids
    assert len(ids) == 2 if not text else len(ids) > 2


def test_captions_fit_the_context() -> None:
    """No caption of either language is cut."""
    scenes = sample_scenes(2_000, seed=0, split=Split.TRAIN)
    captions = list(training_captions(scenes, random.Random(0)))
    tokenizer = train_tokenizer(captions[:1_000])
    assert max(len(encoding.ids) for encoding in tokenizer.encode_batch(captions)) <= CONTEXT_LENGTH
    assert len(captions) == 2_000 * len(Language)


def test_the_learning_rate_rises_and_falls() -> None:
    """It reaches its full value once and ends near zero."""
    settings = TrainingSettings(steps=100, warmup_steps=10)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert max(rates) == 1.0
    assert rates[0] == pytest.approx(0.1)
    assert 0 < rates[-1] < 0.02


def _batches(tmp_path: Path) -> Batches:
    data = load_training_set(TINY, tmp_path, processes=1)
    tokenizer = train_tokenizer(training_captions(data.scenes, random.Random(0)))
    return Batches(data, Wording(lambda text: tokenizer.encode(text).ids), TINY)


def test_a_batch_says_which_text_is_true_of_which_image(tmp_path: Path) -> None:
    """Every caption is true of its own image, every query of one at least, and none of all."""
    batch = next(iter(_batches(tmp_path)))
    assert batch.pixels.shape == (8, 3, 112, 112)
    assert batch.captions.shape[0] == batch.queries.shape[0] == 8
    assert batch.captions_true.diagonal().all()
    assert batch.queries_true.any(dim=1).all()
    assert not batch.captions_true.all()
    assert not batch.queries_true.all()


def test_a_query_matches_what_it_names() -> None:
    """A query is right for a scene with one group that has all it names, not with groups that share it."""
    scene: Scene = next(
        scene
        for scene in sample_scenes(50, seed=0, split=Split.TRAIN)
        if len(scene.groups) == 2 and scene.groups[0].size is not scene.groups[1].size
    )
    first, second = scene.groups
    assert Query(first.kind).matches(scene)
    assert Query(first.kind, first.colour, first.size, first.count, scene.background).matches(scene)
    assert not Query(first.kind, second.colour).matches(scene)
    assert not Query(first.kind, first.colour, second.size).matches(scene)


def test_a_caption_without_details_is_true_of_scenes_that_differ_in_them() -> None:
    """What a caption omits may differ, the rest must be equal."""
    scene = next(scene for scene in sample_scenes(50, seed=0, split=Split.TRAIN) if len(scene.groups) == 2)
    mirrored = Scene(scene.background, scene.groups[::-1], axis=scene.axis)
    assert without(scene, ()) != without(mirrored, ())
    assert without(scene, {Detail.ARRANGEMENT}) == without(mirrored, {Detail.ARRANGEMENT})
    assert without(scene, {Detail.SIZES}) != without(mirrored, {Detail.SIZES})


def test_the_loss_is_clips_where_each_text_is_true_of_one_image() -> None:
    """Without queries it is the symmetric cross-entropy; where all are true there is none."""
    torch.manual_seed(0)
    image, text = torch.randn(6, 16), torch.randn(6, 16)
    scale, own, none = torch.tensor(10.0), torch.eye(6, dtype=torch.bool), torch.zeros(0, 6, dtype=torch.bool)
    logits = scale * functional.normalize(image) @ functional.normalize(text).T
    target = torch.arange(6)
    expected = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
    found = contrastive_loss(image, text, text[:0], own, none, scale)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    both = torch.ones(2, 2, dtype=torch.bool)
    assert contrastive_loss(image[:2], text[:2], text[:0], both, none[:, :2], scale).item() == pytest.approx(0)
