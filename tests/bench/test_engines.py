"""The comparison of engines with other libraries, run small: with the sample's engines."""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from rich.console import Console

from twinspire import sample_bundle
from twinspire._codec import decode, encode
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import EngineError, InputError
from twinspire.images import Preprocessor
from twinspire_bench import merged_tokens
from twinspire_bench.engines.inputs import FOLDER_SIZE, PeerInputs, cut_after_normalisation, write_folder
from twinspire_bench.engines.measure import (
    OURS,
    EngineSettings,
    comparisons,
    cosines,
    measure,
    run_comparison,
    show,
    start_worker,
)
from twinspire_bench.engines.peer import PEERS, EngineComparison, PeerTask, peer_tasks, register_peer
from twinspire_eval.datasets import open_dataset
from twinspire_eval.records import Record
from twinspire_export.export import export_checkpoint
from twinspire_export.sample.data import train_tokenizer
from twinspire_export.sample.train import build_model, save_checkpoint

DATA = open_dataset("scenes:40")
CAPTIONS = [caption.text for captions in DATA.captions for caption in captions if caption.language == "en"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> PeerInputs:
    """The sample, whose fp32 engines stand for those of foreign runtimes; no checkpoint."""
    work = tmp_path_factory.mktemp("engines")
    bundle = Bundle.open(sample_bundle())
    np.save(work / "images.npy", Preprocessor(bundle.image).many(DATA.images))
    (work / "captions.json").write_text(json.dumps(CAPTIONS), encoding="utf-8")
    write_folder(DATA, work / "folder")
    return PeerInputs(
        checkpoint=work / "none",
        bundle=bundle.path,
        plain=bundle.path,
        fastembed_onnx=work / "model.onnx",
        openvino_int8=bundle.engine(Tower.IMAGE, Precision.FP32),
        images=work / "images.npy",
        captions=work / "captions.json",
        folder=work / "folder",
    )


@pytest.mark.slow
def test_a_comparison_gives_a_record(inputs: PeerInputs) -> None:
    """Every peer's rates and ratios stand in a record that reads back and prints."""
    stages: list[str] = []
    settings = EngineSettings(rounds=2)
    only = ("image_tower", "text_tower")
    record = measure(inputs, data=DATA, threads=2, streams=2, settings=settings, say=stages.append, only=only)
    record.save(inputs.images.with_name("record.json"))
    found = Record.load(inputs.images.with_name("record.json")).results["comparisons"]
    assert set(found) == {"image_tower", "text_tower"}
    for name, unit in (("image_tower", "images_per_s"), ("text_tower", "texts_per_s")):
        assert all(len(rates["samples"]) == 2 for rates in found[name][unit].values())
        assert all(ratio["value"] > 0 for ratio in found[name]["times_as_fast_as"].values())
        assert set(found[name]["times_as_fast_as"]) == set(found[name][unit]) - {OURS}
    terminal = io.StringIO()
    show(record, Console(file=terminal, width=120))
    assert "OpenVINO" in terminal.getvalue()
    for title in ("image tower", "text tower"):
        assert [stage for stage in stages if stage.startswith(f"{title}: round")] == [
            f"{title}: round 1 of 2",
            f"{title}: round 2 of 2",
        ]


def test_merged_tokens_are_compared_with_the_better_of_openvinos(inputs: PeerInputs, tmp_path: Path) -> None:
    """Ours, whole and with tokens merged, are divided by the faster number of OpenVINO's streams in each round."""
    bundles = merged_tokens.merged_bundles(inputs.bundle, Precision.INT8, [2], tmp_path)
    certificate = Bundle.open(bundles[2]).manifest.engines[Tower.IMAGE][Precision.INT8_TOME].certificate
    assert certificate is not None
    assert certificate.merged_tokens == 2
    tasks = merged_tokens.tasks_of(inputs, Precision.INT8, bundles, threads=2)
    found = merged_tokens.measure(tasks, rounds=2, say=print)
    rates = {label: np.array(rates["samples"]) for label, rates in found["images_per_s"].items()}
    better = np.maximum(rates["OpenVINO, whole, 1 stream"], rates["OpenVINO, whole, 2 streams"])
    ratios = found["times_as_fast_as_openvino"]
    assert {"whole", "r 2"} <= set(ratios)
    for label, ratio in ratios.items():
        assert ratio.value == pytest.approx(np.median(rates[label] / better))


def test_an_unknown_comparison_is_refused(inputs: PeerInputs) -> None:
    """An unknown name is an error that lists the comparisons."""
    with pytest.raises(InputError, match="one_caption"):
        measure(inputs, data=DATA, threads=2, streams=2, settings=EngineSettings(), say=print, only=["marathon"])


def test_the_folder_is_of_one_data_set(tmp_path: Path) -> None:
    """What another data set left in the folder is gone."""
    write_folder(open_dataset("scenes:3"), tmp_path / "folder")
    write_folder(open_dataset("scenes:2:5"), tmp_path / "folder")
    assert sorted(file.name for file in (tmp_path / "folder").iterdir()) == ["00000.jpg", "00001.jpg"]


@pytest.mark.serial
def test_the_folder_of_files(inputs: PeerInputs) -> None:
    """Files are of the size that was promised, and the client's rate on them does not exceed what a core allows."""
    from PIL import Image

    with Image.open(next(inputs.folder.glob("*.jpg"))) as image:
        assert image.size == FOLDER_SIZE
    tasks = comparisons(inputs, threads=2, streams=1, settings=EngineSettings())[EngineComparison.FOLDER]
    limit_label = "limit of decoding and tower"
    with start_worker(OURS, tasks[OURS]) as ours, start_worker(limit_label, tasks[limit_label]) as limit:
        assert 0 < ours.call() < 1.5 * limit.call()


def test_every_comparison_has_twinspire_and_peers(inputs: PeerInputs) -> None:
    """Each comparison has twinspire first and others after it, and a task comes through JSON unchanged."""
    found = comparisons(inputs, threads=2, streams=2, settings=EngineSettings())
    assert list(found) == list(EngineComparison)
    for tasks in found.values():
        assert next(iter(tasks)) == OURS
        assert len(tasks) > 1
        assert all(decode(PeerTask, json.loads(json.dumps(encode(task))), "task") == task for task in tasks.values())


def test_a_peer_is_added_by_one_class(inputs: PeerInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that another package registers is measured, in a process of its own, beside twinspire."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    registered = list(PEERS)
    try:
        toy = importlib.import_module("toy_peer").ToyPeer
        tasks = peer_tasks(EngineComparison.ONE_CAPTION, PeerTask(inputs=inputs, threads=1, streams=1))
        chosen = {label: tasks[label] for label in (OURS, "toy")}
        found = run_comparison(EngineComparison.ONE_CAPTION, chosen, rounds=2, say=print)
        assert found["captions_per_s"]["toy"]["samples"] == [len(CAPTIONS), len(CAPTIONS) + 1]
        assert all(10 * 2**20 < size < 2**34 for size in found["peak_memory_bytes"].values())
        assert set(found["times_as_fast_as"]) == {"toy"}
        with pytest.raises(InputError, match="toy"):
            register_peer(toy)
    finally:
        PEERS[:] = registered
        sys.modules.pop("toy_peer", None)


@pytest.mark.slow
def test_a_peer_that_cannot_run_says_why(inputs: PeerInputs) -> None:
    """The cause reaches the caller, with the peer's label."""
    tasks = comparisons(inputs, threads=1, streams=1, settings=EngineSettings())[EngineComparison.FOLDER]
    with pytest.raises(EngineError, match="transformers fp32") as caught:
        start_worker("transformers fp32", tasks["transformers fp32"])
    assert str(inputs.checkpoint) in str(caught.value)


def test_what_is_cut_off_is_what_comes_before_the_patches(inputs: PeerInputs, tmp_path: Path) -> None:
    """The cut tower, given the pixels that the whole one hands to its patch convolution, gives the same embeddings."""
    tokenizer = train_tokenizer(["a red car", "一辆红色的汽车"])
    save_checkpoint(build_model(tokenizer.get_vocab_size(), seed=0), tokenizer, tmp_path / "checkpoint")
    plain = export_checkpoint(tmp_path / "checkpoint", tmp_path / "plain", rewrites=())
    engine = plain.engine(Tower.IMAGE, Precision.FP32)
    cut_after_normalisation(engine, tmp_path / "cut.onnx")
    cut = onnxruntime.InferenceSession(tmp_path / "cut.onnx", providers=["CPUExecutionProvider"])
    (given,) = cut.get_inputs()
    assert given.type == "tensor(float)"
    whole = onnx.load(engine)
    whole.graph.output.append(onnx.helper.make_empty_tensor_value_info(given.name))
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    expected, pixels = session.run(None, {"image": np.load(inputs.images)[:3]})
    assert pixels.shape[1] == 3
    (found,) = cut.run(None, {given.name: pixels})
    print(f"largest difference {np.abs(found - expected).max():.1e}")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_cosines_are_those_of_the_certificates(inputs: PeerInputs) -> None:
    """The minimum and the mean cosine lie where the sample's certificates have them."""
    found = cosines(Bundle.open(inputs.bundle), DATA, np.load(inputs.images), threads=2)
    assert found["image"]["samples"] == len(DATA)
    assert 0.98 < found["image"]["min"] <= found["image"]["mean"] <= 1
    assert 0.998 < found["text"]["min"] <= found["text"]["mean"] <= 1
