"""What serving costs, measured small: the sample in process and through a real Triton."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from support.data import VAL2017_CAPTIONS
from twinspire import sample_bundle
from twinspire.bundle import Bundle
from twinspire.errors import EngineError, InputError, ServerError
from twinspire_bench.scripts import TWINSPIRE, random_model, read_captions, run, running_server
from twinspire_bench.serving_overhead import IN_PROCESS, THROUGH_TRITON, ServingSettings, measure, show
from twinspire_eval.records import Record

if importlib.util.find_spec("pytriton") is None:  # importing it would load CUDA and change the process
    pytest.skip("a real Triton comes with the extra `server`", allow_module_level=True)


@pytest.mark.slow
def test_the_sample_is_measured_both_ways(tmp_path: Path) -> None:
    """A run gives figures of both sides, the batches that Triton made, and a record that reads back and prints."""
    settings = ServingSettings(rounds=2, images=64, lone_images=2, texts=128)
    stages: list[str] = []
    record = measure(
        Bundle.open(sample_bundle()),
        read_captions(None, settings.texts),
        threads=2,
        streams=2,
        settings=settings,
        work=tmp_path,
        say=stages.append,
    )
    record.save(tmp_path / "served.json")
    found = Record.load(tmp_path / "served.json").results
    for variant in (IN_PROCESS, THROUGH_TRITON):
        assert len(found["images_in_flight"]["images_per_s"][variant]["samples"]) == 2
        assert len(found["texts_in_flight"]["texts_per_s"][variant]["samples"]) == 2
        assert len(found["one_image_in_flight"]["latency_ms"][variant]["samples"]) == 3 * 2  # one round warms up
    assert 1 < found["images_in_flight"]["mean_batch_size"] <= 16
    assert found["texts_in_flight"]["requests"] == 3 * 128
    assert 1 < found["texts_in_flight"]["mean_batch_size"] <= 64
    assert found["limit_images_per_s"] > 0
    assert [stage for stage in stages if stage.startswith("round ")] == 3 * ["round 1 of 2", "round 2 of 2"]
    terminal = io.StringIO()
    show(record, Console(file=terminal, width=120))
    assert "images/s" in terminal.getvalue()


def test_a_command_that_fails_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The error names the command as a user would write it; its own reason stands on standard error."""
    with pytest.raises(EngineError, match="twinspire build"):
        run(*TWINSPIRE, "build", tmp_path / "nothing", "-o", tmp_path / "models")
    assert "nothing" in capfd.readouterr().err
    with pytest.raises(ServerError, match="twinspire serve"), running_server(tmp_path / "none"):
        pass


def test_an_unknown_size_is_an_error(tmp_path: Path) -> None:
    """A size that cannot be made leaves no bundle behind."""
    pytest.importorskip("torch", reason="making a checkpoint needs torch")
    with pytest.raises(EngineError, match="vit-x"):
        random_model("vit-x", tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_captions_are_of_different_images_first() -> None:
    """COCO's captions come image by image, the second ones of each after the first ones of all."""
    document = json.loads(VAL2017_CAPTIONS.read_text(encoding="utf-8"))
    count = len(document["images"])
    owners: dict[str, set[int]] = {}
    for annotation in document["annotations"]:
        owners.setdefault(annotation["caption"].strip(), set()).add(annotation["image_id"])
    captions = read_captions(VAL2017_CAPTIONS, count + 5)
    assert len(captions) == count + 5
    assert set.union(*(owners[caption] for caption in captions[:count])) >= {
        image["id"] for image in document["images"]
    }
    with pytest.raises(InputError, match="99999"):
        read_captions(VAL2017_CAPTIONS, 99999)
