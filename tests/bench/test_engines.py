"""The races of the engines, run small: the sample's engines in the place of a full-size model's."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from rich.console import Console

from twinspire import sample_bundle
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import EngineError, InputError
from twinspire.images import Preprocessor
from twinspire_bench.engines.inputs import FOLDER_SIZE, Material, cut_after_normalisation, write_folder
from twinspire_bench.engines.measure import OURS, RACES, Effort, cosines, measure, races
from twinspire_bench.engines.peers import CONTESTANTS, contestant
from twinspire_bench.engines.show import show
from twinspire_bench.engines.task import Task
from twinspire_bench.worker import Worker
from twinspire_eval.datasets import open_dataset
from twinspire_eval.records import Record

DATA = open_dataset("scenes:40")
CAPTIONS = [caption.text for said in DATA.captions for caption in said if caption.language == "en"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """The sample, whose fp32 engines stand for those of foreign runtimes; no checkpoint."""
    work = tmp_path_factory.mktemp("engines")
    bundle = Bundle.open(sample_bundle())
    np.save(work / "pictures.npy", Preprocessor(bundle.image).many(DATA.images))
    (work / "captions.json").write_text(json.dumps(CAPTIONS), encoding="utf-8")
    write_folder(DATA, work / "folder")
    return Material(
        checkpoint=work / "none",
        bundle=bundle.path,
        plain=bundle.path,
        pixels_onnx=work / "model.onnx",
        openvino_int8=bundle.engine(Tower.IMAGE, Precision.FP32),
        pictures=work / "pictures.npy",
        captions=work / "captions.json",
        folder=work / "folder",
    )


@pytest.mark.slow
def test_the_image_race_gives_a_record(material: Material) -> None:
    """Every contestant's figures and ratios stand in a record that reads back and prints."""
    said: list[str] = []
    effort = Effort(rounds=2)
    record = measure(
        material, data=DATA, threads=2, streams=2, effort=effort, say=said.append, only=("image_tower", "text_tower")
    )
    record.save(material.pictures.with_name("record.json"))
    found = Record.load(material.pictures.with_name("record.json")).results["races"]
    assert set(found) == {"image_tower", "text_tower"}
    for race, unit in (("image_tower", "images_per_s"), ("text_tower", "texts_per_s")):
        assert all(len(figures["samples"]) == 2 for figures in found[race][unit].values())
        assert all(ratio["value"] > 0 for ratio in found[race]["times_as_fast_as"].values())
        assert set(found[race]["times_as_fast_as"]) == set(found[race][unit]) - {OURS}
    terminal = io.StringIO()
    show(record, Console(file=terminal, width=120))
    assert "OpenVINO" in terminal.getvalue()
    for race in ("image tower", "text tower"):
        assert [stage for stage in said if stage.startswith(f"{race}: round")] == [
            f"{race}: round 1 of 2",
            f"{race}: round 2 of 2",
        ]


def test_a_race_that_nobody_runs_is_refused(material: Material) -> None:
    """An unknown name of a race is an error that lists those there are."""
    with pytest.raises(InputError, match="one_caption"):
        measure(material, data=DATA, threads=2, streams=2, effort=Effort(), say=print, only=["marathon"])


def test_the_folder_is_of_one_data_set(tmp_path: Path) -> None:
    """What another data set left in the folder is gone."""
    write_folder(open_dataset("scenes:3"), tmp_path / "folder")
    write_folder(open_dataset("scenes:2:5"), tmp_path / "folder")
    assert sorted(file.name for file in (tmp_path / "folder").iterdir()) == ["00000.jpg", "00001.jpg"]


def started(task: Task) -> Worker:
    """Start a contestant."""
    return Worker(contestant, task.to_json(), label=task.name)


def test_the_folder_of_files(material: Material) -> None:
    """Files are of the size that was promised, and the client's rate on them does not exceed what a core allows."""
    from PIL import Image

    with Image.open(next(material.folder.glob("*.jpg"))) as picture:
        assert picture.size == FOLDER_SIZE
    tasks = races(material, threads=2, streams=1, effort=Effort())["folder"].tasks
    with started(tasks[OURS]) as ours, started(tasks["limit of decoding and tower"]) as limit:
        assert 0 < ours.call() < 1.5 * limit.call()


def test_every_task_has_its_contestant(material: Material) -> None:
    """All names that a race uses are known, and a task comes through JSON unchanged."""
    entered = races(material, threads=2, streams=2, effort=Effort())
    assert tuple(entered) == RACES
    tasks = [task for race in entered.values() for task in race.tasks.values()]
    assert {task.name for task in tasks} == set(CONTESTANTS)
    assert all(Task.from_json(json.loads(json.dumps(task.to_json()))) == task for task in tasks)


@pytest.mark.slow
def test_a_contestant_that_cannot_run_says_why(material: Material) -> None:
    """Its own words reach the one who asked, with its name."""
    with pytest.raises(EngineError, match="transformers folder"):
        started(Task(name="transformers folder", threads=1, checkpoint=material.checkpoint, folder=material.folder))
    with pytest.raises(EngineError, match="path"):
        started(Task(name="onnxruntime images", threads=1))


def test_what_is_cut_off_is_what_comes_before_the_patches(material: Material) -> None:
    """The cut tower, given the pixels that the whole one hands to its patch convolution, gives the same embeddings."""
    engine = Bundle.open(material.bundle).engine(Tower.IMAGE, Precision.FP32)
    cut_after_normalisation(engine, material.pixels_onnx)
    cut = onnxruntime.InferenceSession(material.pixels_onnx, providers=["CPUExecutionProvider"])
    (given,) = cut.get_inputs()
    assert given.type == "tensor(float)"
    whole = onnx.load(engine)
    whole.graph.output.append(onnx.helper.make_empty_tensor_value_info(given.name))
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    expected, pixels = session.run(None, {"image": np.load(material.pictures)[:3]})
    assert pixels.shape[1] == 3
    (found,) = cut.run(None, {given.name: pixels})
    print(f"largest difference {np.abs(found - expected).max():.1e}")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_cosines_are_those_of_the_certificates(material: Material) -> None:
    """The least and the mean cosine lie where the sample's certificates have them."""
    found = cosines(Bundle.open(material.bundle), DATA, np.load(material.pictures), threads=2)
    assert found["image"]["samples"] == len(DATA)
    assert 0.98 < found["image"]["min"] <= found["image"]["mean"] <= 1
    assert 0.998 < found["text"]["min"] <= found["text"]["mean"] <= 1
