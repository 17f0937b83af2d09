"""The measurement of the rewrites: engines after each of them, all measured round by round, and a record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the export needs torch")

import numpy as np
from transformers import CLIPConfig, CLIPModel
from typer.testing import CliRunner

from twinspire.errors import InputError
from twinspire_eval.records import Record
from twinspire_export.random_checkpoints import CONTEXT_LENGTH, VOCABULARY_SIZE, ModelSize, randomize_weights
from twinspire_export.rewrite import ALL, measure

IMAGE = ["none", "normalisation", "patches", "norms", "scale", "qkv", "pooled"]
TEXT = ["none", "mask", "end-token", "norms", "scale", "qkv", "pooled"]


def narrow_model(size: ModelSize, *, seed: int, layers: int | None) -> CLIPModel:
    """Make a `CLIPModel` for images and tokens of a published size, but narrow."""
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {"vocab_size": VOCABULARY_SIZE, "max_position_embeddings": CONTEXT_LENGTH, "eos_token_id": 2}
    config = CLIPConfig(
        text_config={**tower, **text}, vision_config={**tower, "image_size": 224, "patch_size": 32}, projection_dim=8
    )
    model = CLIPModel(config).eval()
    randomize_weights(model, seed=seed)
    return model


@pytest.mark.slow
def test_each_rewrite_is_measured_beside_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make` writes an engine after each rewrite, near to transformers; `run` a table and a record with raw rounds."""
    monkeypatch.setattr(measure, "random_model", narrow_model)
    runner = CliRunner()
    made = runner.invoke(measure.app, ["make", str(tmp_path / "engines")], catch_exceptions=False)
    assert made.exit_code == 0
    steps = json.loads((tmp_path / "engines" / measure.DESCRIPTION).read_text())["steps"]
    assert {tower: [step["rewrite"] for step in steps[tower]] for tower in steps} == {"image": IMAGE, "text": TEXT}
    assert {*IMAGE, *TEXT} == {"none", *ALL} - {"probe"}
    options = ["--rounds", "2", "--batch", "2", "--length", "5", "-o", str(tmp_path / "record.json")]
    done = runner.invoke(measure.app, ["run", str(tmp_path / "engines"), *options], catch_exceptions=False)
    assert done.exit_code == 0
    assert "images/s" in done.output
    record = Record.load(tmp_path / "record.json")
    assert (record.kind, record.parameters["precision"], record.parameters["batch"]) == ("rewrites", "fp32", 2)
    for tower, unit, names, rounds in (("image", "images_per_s", IMAGE, 2), ("text", "texts_per_s", TEXT, 6)):
        rows = record.results[tower]
        assert list(rows) == names
        before = np.array(rows["none"][unit]["samples"])
        for name in names:
            rates = np.array(rows[name][unit]["samples"])
            assert len(rates) == rounds
            assert rows[name][unit]["median"] == pytest.approx(np.median(rates))
            assert rows[name]["ratio_to_none"]["value"] == pytest.approx(np.median(rates / before))
            assert rows[name]["largest_difference_to_transformers"] <= 1e-5


def test_a_folder_that_make_did_not_write(tmp_path: Path) -> None:
    """`run` on another folder is an InputError that says what was expected."""
    with pytest.raises(InputError, match=r"engines\.json"):
        CliRunner().invoke(measure.app, ["run", str(tmp_path)], catch_exceptions=False)
