"""`python -m twinspire_bench.engines` as it is without options: its captions, its tokenizer, what it says meanwhile."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import typer

from twinspire import sample_bundle
from twinspire.bundle import Bundle
from twinspire.errors import MissingDependencyError
from twinspire_bench import scripts
from twinspire_bench.engines import __main__ as command
from twinspire_bench.engines import peer
from twinspire_bench.engines.inputs import PeerInputs
from twinspire_bench.engines.peer import PeerTask
from twinspire_bench.engines.peers import OpenVinoBf16Texts, TransformersClip
from twinspire_bench.scripts import read_captions, run
from twinspire_eval.load import interleaved
from twinspire_export import random_checkpoints


@pytest.mark.slow
def test_drawn_captions_fit_the_context_of_a_seeded_checkpoint(tmp_path: Path) -> None:
    """Transformers reads the checkpoint's tokenizer; captions are about as long as with CLIP's own, none is cut."""
    pytest.importorskip("torch", reason="making a checkpoint needs torch")
    from transformers import AutoTokenizer

    from twinspire_export.random_checkpoints import ModelSize, save_random_checkpoint

    captions = read_captions(None, 200)
    checkpoint = save_random_checkpoint(ModelSize.TINY, tmp_path / "checkpoint")
    reference = TransformersClip(checkpoint, threads=1)
    padded, trimmed = (reference.encode_texts(captions[:8], padded=padded) for padded in (True, False))
    difference = float((padded - trimmed).abs().max())
    print(f"largest difference {difference:.1e}")
    assert padded.shape == (8, 64)
    assert difference < 1e-5
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(checkpoint)(captions)["input_ids"]]
    assert max(lengths) < 40
    assert 10 < np.mean(lengths) < 20


def test_a_long_caption_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A peer that encodes part after part says once that a caption was cut."""
    pytest.importorskip("openvino", reason="needs the extra peers")
    bundle = Bundle.open(sample_bundle())
    (tmp_path / "captions.json").write_text(json.dumps(["a red car " * 60] * 8), encoding="utf-8")
    paths = dict.fromkeys((field.name for field in fields(PeerInputs)), tmp_path)
    inputs = replace(PeerInputs(**paths), bundle=bundle.path, plain=bundle.path, captions=tmp_path / "captions.json")
    measured = OpenVinoBf16Texts(PeerTask(peer="", inputs=inputs, threads=1, streams=1, batch=2, bf16_texts=4))
    with caplog.at_level(logging.WARNING, "twinspire"):
        assert all(measured.measure() > 0 for _ in range(3))
    assert [record.args for record in caplog.records] == [(182, bundle.text.context_length)]


def test_a_missing_peer_is_an_error_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error names the extra; no model is made first, which takes minutes."""
    monkeypatch.setattr(peer, "find_spec", lambda name: None if name == "fastembed" else object())
    with pytest.raises(MissingDependencyError) as raised:
        peer.require_peers()
    assert (raised.value.package, raised.value.extra) == ("fastembed", "peers")
    with pytest.raises(typer.Exit) as ended:
        command.main(work=tmp_path / "work")
    assert ended.value.exit_code == 1
    assert "fastembed" in capfd.readouterr().err
    assert not (tmp_path / "work").exists()


def test_an_unknown_race_is_an_error_before_anything_is_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`--only` is checked first, and the names there are stand in the error."""
    with pytest.raises(typer.Exit):
        command.main(work=tmp_path / "work", only=["marathon"])
    assert "one_caption" in capfd.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_wrong_vocabulary_is_told_without_a_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The command that makes the checkpoint says what its folder lacks."""
    pytest.importorskip("torch", reason="making a checkpoint needs torch")
    with pytest.raises(typer.Exit) as ended:
        random_checkpoints.main(random_checkpoints.ModelSize.TINY, tmp_path / "checkpoint", vocabulary=tmp_path)
    assert ended.value.exit_code == 2
    assert random_checkpoints.MERGES_NAME in capfd.readouterr().err


def test_rounds_are_told() -> None:
    """`on_round` is told of the warm-up and of each round before it begins."""
    told: list[str] = []
    interleaved({"a": lambda: float(len(told))}, rounds=2, on_round=told.append)
    assert told == ["warm-up", "round 1 of 2", "round 2 of 2"]


def test_a_long_command_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """What runs is named on standard error, and while it is silent a line says that it is at work."""
    monkeypatch.setattr(scripts, "_HEARTBEAT_S", 0.1)
    run(sys.executable, "-c", "import time; time.sleep(0.5)")
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("running ")
    assert len(lines) > 2
    assert all("still" in line for line in lines[1:])
