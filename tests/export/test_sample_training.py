"""The sample's training script, on a scale at which it learns nothing but must run."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from twinspire_eval.scenes import Language, Split, sample_scenes
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
from twinspire_export.sample.train import learning_rate, train

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
    tokenizer = train_tokenizer(training_captions(scenes, random.Random(0), partial=0.2))
    ids = tokenizer.encode(text).ids
    assert ids[0] == SPECIAL_TOKENS.index(START)
    assert ids[-1] == SPECIAL_TOKENS.index(END)
    assert tokenizer.token_to_id("<|unknown|>") not in ids
    assert len(ids) == 2 if not text else len(ids) > 2


def test_captions_fit_the_context() -> None:
    """No caption of either language is cut."""
    scenes = sample_scenes(2_000, seed=0, split=Split.TRAIN)
    captions = list(training_captions(scenes, random.Random(0), partial=0))
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
