"""From bundles to a repository: what is written, what is kept, what is refused."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton
from typer.testing import CliRunner

from twinspire import sample_bundle
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.cli.app import application
from twinspire.errors import BundleError, InputError, SpaceMismatchError
from twinspire.towers import auto_selection
from twinspire_server import repository
from twinspire_server.repository import Device, RepositoryRuntime, build_repository
from twinspire_server.repository import build as building

CHECKOUT = Path(__file__).parents[2]
COMMITTED = CHECKOUT / "model_repository"
MODEL_FILE = Path(repository.__file__).with_name("model.py")


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in _files(folder)}


def _parameters(model: Path) -> dict[str, str]:
    config = text_format.Parse((model / "config.pbtxt").read_text(), triton.ModelConfig())
    return {name: value.string_value for name, value in config.parameters.items()}


def test_the_public_names_are_exactly_these() -> None:
    """The package exports these names, each of which resolves; another is an AttributeError."""
    assert repository.__all__ == [
        "Accelerator",
        "BuiltModel",
        "Device",
        "ModelSpec",
        "RepositoryRuntime",
        "build_repository",
    ]
    assert all(getattr(repository, name).__name__ == name for name in repository.__all__)
    with pytest.raises(AttributeError, match="ServedModels"):
        _ = repository.ServedModels


def test_the_wheels_models(tiny: Any, tmp_path: Path) -> None:
    """Each tower is a folder with config, model.py and the whole bundle; the report says what is there."""
    models = build_repository([tiny.bundle.path], tmp_path / "models", precision="int8")
    assert [(model.name, model.version, model.spec.precision) for model in models] == [
        ("tiny_image", 1, Precision.INT8),
        ("tiny_text", 1, Precision.INT8),
    ]
    for model in models:
        assert model.folder == tmp_path / "models" / f"tiny_{model.spec.tower}"
        assert (model.folder / "1" / "model.py").read_bytes() == MODEL_FILE.read_bytes()
        copied = Bundle.open(model.folder / "1" / "bundle")
        assert copied.manifest == tiny.bundle.manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


@pytest.mark.parametrize("runtime", RepositoryRuntime)
def test_the_bundle_is_out_of_reach(tiny: Any, tmp_path: Path, runtime: RepositoryRuntime) -> None:
    """Writing into any file of the repository leaves the bundle as it was."""
    before = _content(tiny.bundle.path)
    build_repository([tiny.bundle.path], tmp_path / "models", precision="int8", runtime=runtime)
    for file in (tmp_path / "models").rglob("*.*"):
        if file.is_file():
            with file.open("r+b") as opened:
                opened.write(b"damaged")
    assert _content(tiny.bundle.path) == before


def test_the_two_models_share_a_copy(tiny: Any, tmp_path: Path) -> None:
    """A bundle is copied once: what both models hold of it are the same files."""
    image, text = build_repository([tiny.bundle.path], tmp_path / "models", precision="int8")
    for file in (image.folder / "1" / "bundle").glob("*.*n*"):
        assert file.name == "bundle.json" or file.samefile(text.folder / "1" / "bundle" / file.name)


def test_the_containers_models(tiny: Any, tmp_path: Path) -> None:
    """Each tower is a config and the engine of the precision; in front of the text engine stands another model."""
    models = build_repository([tiny.bundle.path], tmp_path, precision="fp32", runtime=RepositoryRuntime.CONTAINER)
    assert [model.name for model in models] == ["tiny_image", "tiny_engine_text", "tiny_text"]
    files = {name for name in _files(tmp_path) if "warmup" not in name}
    engines = {Tower.IMAGE: "tiny_image/1/model.onnx", Tower.TEXT: "tiny_engine_text/1/model.onnx"}
    front = {"tiny_text/1/model.py", "tiny_text/1/contract.py"}
    probes = {
        f"tiny_{tower}/1/manifest/{name}" for tower in ("image", "text") for name in ("bundle.json", "tokenizer.json")
    } | {"tiny_image/1/probes.npz", "tiny_text/1/probes.npz"}
    assert files == {
        *(f"tiny_{name}/config.pbtxt" for name in ("image", "text", "engine_text")),
        *engines.values(),
        *front,
        *probes,
    }
    for tower, name in engines.items():
        assert (tmp_path / name).read_bytes() == tiny.bundle.engine(tower, Precision.FP32).read_bytes()


def test_the_containers_text_model_needs_numpy_alone(tiny: Any, tmp_path: Path) -> None:
    """Its files parse as Python 3.10, which NVIDIA's image had last, and import what it has: no twinspire."""
    build_repository([tiny.bundle.path], tmp_path, precision="fp32", runtime=RepositoryRuntime.CONTAINER)
    imported = set()
    for file in (tmp_path / "tiny_text" / "1").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(), feature_version=(3, 10))):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy", "contract", "triton_python_backend_utils"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"threads": 4, "streams": 2}, (2, "2")),
        ({"threads": 3}, (1, "3")),
        ({}, (1, str(len(os.sched_getaffinity(0))))),
    ],
)
def test_the_containers_streams_are_instances(
    tiny: Any, tmp_path: Path, options: dict[str, Any], expected: tuple[int, str]
) -> None:
    """Both engines have `streams` instances that divide the threads, by default all of this machine in one."""
    build_repository([tiny.bundle.path], tmp_path, precision="int8", runtime=RepositoryRuntime.CONTAINER, **options)
    for name in ("tiny_image", "tiny_engine_text"):
        config = text_format.Parse((tmp_path / name / "config.pbtxt").read_text(), triton.ModelConfig())
        found = config.instance_group[0].count, config.parameters["intra_op_thread_count"].string_value
        assert found == expected


def test_the_containers_streams_are_the_measured_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the bundle was measured on such a machine, its streams are taken, as `LocalTowers` does."""
    monkeypatch.setattr(auto_selection, "mismatch_reason", lambda *_, **__: None)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4))
    bundle = Bundle.open(sample_bundle())
    assert bundle.manifest.auto is not None
    build_repository([bundle.path], tmp_path, precision="int8", runtime=RepositoryRuntime.CONTAINER)
    config = text_format.Parse((tmp_path / "scenes_image" / "config.pbtxt").read_text(), triton.ModelConfig())
    assert config.instance_group[0].count == bundle.manifest.auto.streams == 2


def test_more_streams_than_threads_are_refused(tiny: Any, tmp_path: Path) -> None:
    """An instance without a thread is an InputError; nothing is written."""
    with pytest.raises(InputError, match="streams"):
        build_repository(
            [tiny.bundle.path], tmp_path, precision="int8", runtime=RepositoryRuntime.CONTAINER, threads=2, streams=3
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("runtime", RepositoryRuntime)
def test_the_files_of_a_warm_up_are_there(tiny: Any, tmp_path: Path, runtime: RepositoryRuntime) -> None:
    """Each file that a config names for its warm-up holds int32 ids of the length it says, the end token last."""
    build_repository([tiny.bundle.path], tmp_path, precision="int8", runtime=runtime)
    folder = tmp_path / ("tiny_engine_text" if runtime is RepositoryRuntime.CONTAINER else "tiny_text")
    config = text_format.Parse((folder / "config.pbtxt").read_text(), triton.ModelConfig())
    inputs = [sample.inputs["input_ids"] for sample in config.model_warmup]
    assert {given.input_data_file for given in inputs} == {path.name for path in (folder / "warmup").iterdir()}
    for given in inputs:
        ids = np.fromfile(folder / "warmup" / given.input_data_file, np.int32)
        assert [ids.size] == list(given.dims)
        assert ids[-1] == tiny.bundle.text.eos_id


def test_what_serves_the_sample_is_committed(tmp_path: Path) -> None:
    """model_repository/ holds the configs and model.py that the sample's bundle gives today."""
    models = build_repository([sample_bundle()], tmp_path, precision="int8", raw_inputs=True, description=True)
    names = [f"{model.name}/{file}" for model in models for file in ("config.pbtxt", "1/model.py")]
    ensembles = [model.name for model in models if model.spec.steps]
    assert ensembles == ["scenes_image_bytes", "scenes_text_raw"]
    for name in names:
        if name in {f"{ensemble}/1/model.py" for ensemble in ensembles}:
            continue
        assert (COMMITTED / name).read_text() == (tmp_path / name).read_text(), (
            f"{name} is out of date: remove {COMMITTED}/*/ and run "
            f"twinspire build {sample_bundle()} -o {COMMITTED} --precision int8"
        )


@pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="no git checkout")
def test_git_ignores_what_is_generated() -> None:
    """Of what `build` writes into model_repository/, git sees the configs and model.py alone."""

    def ignored(name: str) -> bool:
        command = ["git", "check-ignore", "--quiet", "--no-index", f"model_repository/{name}"]
        return subprocess.run(command, cwd=CHECKOUT, check=False).returncode == 0

    assert all(
        ignored(name)
        for name in (
            *("scenes_text/1/bundle/bundle.json", "scenes_text/1/model.onnx", "scenes_text/warmup/1_of_8_tokens"),
            *("scenes_tokenize/1/bundle.json", "scenes_tokenize/1/tokenizer.json", "twinspire/1/bundles/a/bundle.json"),
        )
    )
    assert not any(ignored(f"scenes_text/{name}") for name in ("config.pbtxt", "1/model.py"))


def test_two_bundles_in_one_repository(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    """Models of other names stay when one is added."""
    build_repository([sample_bundle()], tmp_path / "models", precision="int8")
    before = _content(tmp_path / "models")
    build_repository([make_tiny().bundle.path], tmp_path / "models", precision="int8")
    after = _content(tmp_path / "models")
    assert before.items() <= after.items()
    scenes = {"scenes_image", "scenes_text", "scenes_reranker"}
    assert {name.split("/")[0] for name in after} == {*scenes, "tiny_image", "tiny_text"}


# What is there already


def test_the_same_again_changes_nothing(tiny: Any, tmp_path: Path) -> None:
    """Building again with the same engine keeps version 1 and every byte."""
    build_repository([tiny.bundle.path], tmp_path, precision="int8")
    before = _content(tmp_path)
    again = build_repository([tiny.bundle.path], tmp_path, precision="int8")
    assert [model.version for model in again] == [1, 1]
    assert _content(tmp_path) == before


def test_another_engine_is_a_further_version(tiny: Any, tmp_path: Path) -> None:
    """A new engine of the same space is version 2, which the config then describes; version 1 stays as it was."""
    build_repository([tiny.bundle.path], tmp_path, precision="fp32")
    before = {name: content for name, content in _content(tmp_path).items() if "/1/" in name}
    further = build_repository([tiny.bundle.path], tmp_path, precision="int8")
    assert [model.version for model in further] == [2, 2]
    assert _parameters(tmp_path / "tiny_text")["precision"] == "int8"
    assert before.items() <= _content(tmp_path).items()
    assert build_repository([tiny.bundle.path], tmp_path, precision="int8")[0].version == 2


def test_the_other_runtime_takes_the_version_over(tiny: Any, tmp_path: Path) -> None:
    """The same engine for the container replaces the wheel's version, and the other way round leaves nothing of it."""
    build_repository([tiny.bundle.path], tmp_path, precision="int8")
    before = _files(tmp_path)
    build_repository([tiny.bundle.path], tmp_path, precision="int8", runtime=RepositoryRuntime.CONTAINER)
    left = {name for name in _files(tmp_path / "tiny_image") if not name.startswith(("1/probes", "1/manifest"))}
    assert left == {"config.pbtxt", "1/model.onnx"}
    assert not any("bundle/" in name for name in _files(tmp_path))
    models = build_repository([tiny.bundle.path], tmp_path, precision="int8")
    assert [model.version for model in models] == [1, 1]
    assert _files(tmp_path) - before == {name for name in _files(tmp_path) if "warmup" in name} - before
    assert not (tmp_path / "tiny_engine_text").exists()


def test_the_containers_text_model_and_its_engine_keep_one_version(tiny: Any, tmp_path: Path) -> None:
    """The same engine keeps version 1 and every byte, another one is version 2 of both."""
    options = {"runtime": RepositoryRuntime.CONTAINER, "threads": 1}
    build_repository([tiny.bundle.path], tmp_path, precision="fp32", **options)
    before = _content(tmp_path)
    build_repository([tiny.bundle.path], tmp_path, precision="fp32", **options)
    assert _content(tmp_path) == before
    further = build_repository([tiny.bundle.path], tmp_path, precision="int8", **options)
    assert [model.version for model in further] == [2, 2, 2]
    assert {"tiny_text/2/model.py", "tiny_engine_text/2/model.onnx"} <= _files(tmp_path)


def test_a_fresh_checkout_is_filled(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    """Where only configs and model.py are there, of whatever space, version 1 becomes whole."""
    build_repository([make_tiny("old", seed=1).bundle.path], tmp_path / "models", precision="int8")
    for tower in (Tower.IMAGE, Tower.TEXT):
        shutil.rmtree(tmp_path / "models" / f"tiny_{tower}" / "1" / "bundle")
    (tmp_path / "models" / "README.md").write_text("what this is")
    new = make_tiny("new", seed=2).bundle
    models = build_repository([new.path], tmp_path / "models", precision="int8")
    assert [model.version for model in models] == [1, 1]
    assert all(Bundle.open(model.folder / "1" / "bundle").space == new.space for model in models)


def test_a_damaged_version_is_made_anew(tiny: Any, tmp_path: Path) -> None:
    """Building again replaces a damaged engine."""
    model = build_repository([tiny.bundle.path], tmp_path, precision="int8")[0]
    engine = model.folder / "1" / "bundle" / "image.int8.onnx"
    engine.write_bytes(b"damaged")
    assert build_repository([tiny.bundle.path], tmp_path, precision="int8")[0].version == 1
    Bundle.open(model.folder / "1" / "bundle")


def test_another_space_is_refused(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    """A model that serves one space is not given another; nothing changes."""
    build_repository([make_tiny("one", seed=1).bundle.path], tmp_path / "models", precision="int8")
    before = _content(tmp_path / "models")
    with pytest.raises(SpaceMismatchError, match="tiny_image") as caught:
        build_repository([make_tiny("two", seed=2).bundle.path], tmp_path / "models", precision="fp32")
    assert (caught.value.expected, caught.value.found) == (f"{1:064x}", f"{2:064x}")
    assert _content(tmp_path / "models") == before


@pytest.mark.parametrize("name", ["tiny_image", "tiny_engine_text"])
@pytest.mark.parametrize("config", [None, "no protobuf {", 'name: "tiny_image"', b"\xff"])
def test_a_strangers_folder_is_refused(tiny: Any, tmp_path: Path, config: str | bytes | None, name: str) -> None:
    """A folder of a model's name that `build` did not write is left alone."""
    folder = tmp_path / name
    folder.mkdir()
    if config is not None:
        (folder / "config.pbtxt").write_bytes(config.encode() if isinstance(config, str) else config)
    before = _content(tmp_path)
    with pytest.raises(InputError, match=rf"{name}.config\.pbtxt"):
        build_repository([tiny.bundle.path], tmp_path, precision="int8")
    assert _content(tmp_path) == before


# What cannot be served


def test_a_missing_precision_says_how_to_make_it(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    """A bundle without int8 engines is refused with the command that makes them; nothing is written."""
    bundle = make_tiny("bundle", precisions=[Precision.FP32]).bundle
    with pytest.raises(BundleError, match="twinspire quantize"):
        build_repository([bundle.path], tmp_path / "models", precision="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("device", "flags", "options", "expected"),
    [
        (Device.CPU, {"avx512_vnni"}, {}, Precision.INT8),
        (Device.CPU, {"avx2"}, {}, Precision.FP32),
        (Device.CPU, {"avx512_vnni"}, {"certified": False}, Precision.FP32),
        (Device.GPU, {"avx512_vnni"}, {}, Precision.FP32),
        (Device.GPU, set(), {"precisions": [Precision.FP32, Precision.FP16]}, Precision.FP16),
    ],
)
def test_auto_is_what_the_towers_would_choose(
    make_tiny: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: Device,
    flags: set[str],
    options: dict[str, Any],
    expected: Precision,
) -> None:
    """`auto` is int8 on a CPU that sums it exactly, fp16 on a GPU, where certified; else fp32."""
    monkeypatch.setattr(auto_selection, "processor_flags", lambda: frozenset(flags))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(building, "unavailable_error", lambda provider: None)
    bundle = make_tiny("bundle", **options).bundle
    models = build_repository([bundle.path], tmp_path / "models", device=device)
    assert {model.spec.precision for model in models} == {expected}
    assert {_parameters(model.folder)["precision"] for model in models} == {str(expected)}


@pytest.mark.parametrize(
    ("choice", "options", "expected"),
    [
        ({"precision": "fp32", "provider": "cpu"}, {}, Precision.FP32),
        ({"precision": "fp32", "provider": "cpu"}, {"runtime": RepositoryRuntime.CONTAINER}, Precision.FP32),
        ({"precision": "fp32", "provider": "cpu", "instruction_sets": ["avx2"]}, {}, Precision.INT8),
        ({"precision": "fp32", "provider": "cuda"}, {}, Precision.INT8),
        ({"precision": "int8", "provider": "cuda"}, {"device": Device.GPU}, Precision.INT8),
        ({"precision": "int8", "provider": "cpu"}, {"device": Device.GPU}, Precision.FP32),
        (
            {"precision": "int8", "provider": "cuda"},
            {"device": Device.GPU, "runtime": RepositoryRuntime.CONTAINER},
            Precision.FP32,
        ),
        ({"precision": "fp32", "provider": "cpu", "rejected": ["int8"], "instruction_sets": []}, {}, Precision.FP32),
    ],
)
def test_auto_is_what_the_bundle_was_measured_to_be_best_with(
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    choice: dict[str, Any],
    options: dict[str, Any],
    expected: Precision,
) -> None:
    """A bundle's choice is taken where it is for this device and processor, and goes with the bundle."""
    monkeypatch.setattr(auto_selection, "processor_flags", lambda: frozenset({"avx512_vnni"}))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(building, "unavailable_error", lambda provider: None)
    document = json.loads(tiny.bundle.manifest.to_json())
    document["auto"] = {
        "precision": "int8", "provider": "cpu", "inference_precision": "f32", "streams": 1, "threads": 2, "speed": 2.0,
        "cpu_model": "some processor", "instruction_sets": ["avx512_vnni"], "gpu": None, "data": "some",
        "max_recall_drop": 0.005, "recall_drop": 0.0, "recall_drop_high": 0.0, "rejected": [], "measured": "2026-11-21",
        **choice,
    }  # fmt: skip
    shutil.copytree(tiny.bundle.path, tmp_path / "bundle")
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps(document))
    models = build_repository([tmp_path / "bundle"], tmp_path / "models", **options)
    assert {model.spec.precision for model in models} == {expected}
    if options.get("runtime") is not RepositoryRuntime.CONTAINER:
        copied = Bundle.open(models[0].folder / "1" / "bundle")
        assert copied.manifest.auto == Bundle.open(tmp_path / "bundle").manifest.auto


def test_the_device_decides_the_providers(
    tiny: Any, tmp_path: Path, fake_cuda_driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's model takes CUDA; the CPU's what `auto` finds, except CUDA where packages and driver have it."""
    monkeypatch.setattr(building, "unavailable_error", lambda provider: None)

    def providers(name: str, device: Device) -> str:
        models = build_repository([tiny.bundle.path], tmp_path / name, precision="fp32", device=device)
        return _parameters(models[0].folder)["provider"]

    assert providers("gpu", Device.GPU) == "cuda"
    assert providers("cpu", Device.CPU) == "auto"
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("twinspire._cuda.LIBRARY", "libcuda-that-is-not-here.so.1")
    assert providers("packages", Device.CPU) == "auto"
    monkeypatch.setattr("twinspire._cuda.LIBRARY", str(fake_cuda_driver))
    assert providers("both", Device.CPU) == "cpu"


def test_a_bundle_named_after_anothers_engine_is_refused(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    """`tiny_engine`'s text model would be the engine of `tiny`: not together, not into one folder."""
    tiny = make_tiny("a").bundle.path
    other = tmp_path / "other"
    shutil.copytree(make_tiny("b", seed=1).bundle.path, other)
    manifest = json.loads((other / "bundle.json").read_text())
    (other / "bundle.json").write_text(json.dumps({**manifest, "name": "tiny_engine"}))
    with pytest.raises(InputError, match="tiny_engine_text"):
        build_repository([tiny, other], tmp_path / "models")
    _, text = build_repository([other], tmp_path / "models")
    with pytest.raises(SpaceMismatchError, match="tiny_engine_text"):
        build_repository([tiny], tmp_path / "models")
    assert text.folder.exists()


def test_a_bundle_is_no_destination(make_tiny: Callable[..., Any]) -> None:
    """Building into a bundle's own folder is refused, and nothing is written there."""
    bundle = make_tiny().bundle.path
    before = sorted(bundle.iterdir())
    with pytest.raises(InputError, match="-o"):
        build_repository([bundle], bundle)
    assert sorted(bundle.iterdir()) == before


def test_two_bundles_of_one_name_are_refused(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    """Two bundles that would be the same models are an InputError, as are none."""
    paths = [make_tiny(name, seed=seed).bundle.path for seed, name in enumerate("ab")]
    with pytest.raises(InputError, match="tiny"):
        build_repository(paths, tmp_path / "models")
    with pytest.raises(InputError, match="no bundle"):
        build_repository([], tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_destination_that_cannot_be_is_refused(tiny: Any, tmp_path: Path) -> None:
    """A file where the repository should be is an InputError that names it, in words."""
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(InputError, match=str(tmp_path / name)) as caught:
            build_repository([tiny.bundle.path], tmp_path / name, precision="int8")
        assert "Err" not in str(caught.value)


def test_a_failure_leaves_nothing(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the second model cannot be written, neither appears and no temporary folder stays."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("twinspire_server.repository.engines.copy_file", full)
    with pytest.raises(InputError, match="space"):
        build_repository([tiny.bundle.path], tmp_path / "models", runtime=RepositoryRuntime.CONTAINER)
    assert list((tmp_path / "models").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


# The command


def test_the_command_builds_and_says_what(tiny: Any, tmp_path: Path) -> None:
    """`twinspire build` takes every option and prints one line a model: towers, raw inputs, the description."""
    options = ["--precision", "fp32", "--runtime", "wheel", "--device", "cpu", "--threads", "2"]
    done = CliRunner().invoke(application(), ["build", str(tiny.bundle.path), "-o", str(tmp_path / "models"), *options])
    assert done.exit_code == 0, done.output
    facts = [("fp32" in line, "0" * 12 in line) for line in done.output.splitlines()]
    assert facts == [(True, True)] * 2 + [(False, True)] * 4 + [(False, False)]
    assert _parameters(tmp_path / "models" / "tiny_text")["threads"] == "2"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "-o", "models"], "nowhere"),
        (["{bundle}", "-o", "models", "--precision", "int4"], "'int4'"),
        (["{bundle}", "-o", "models", "--precision", "fp16"], "fp16"),
        (["{bundle}", "-o", "models", "--threads", "0"], "threads"),
        (["{bundle}", "-o", "models", "--streams", "99"], "streams 99"),
        (["{bundle}", "-o", "models", "--runtime", "docker"], "docker"),
        (["{bundle}"], "--output"),
    ],
)
def test_the_command_refuses(tiny: Any, tmp_path: Path, arguments: list[str], says: str) -> None:
    """Wrong input ends with status 2 and a message, without a traceback and with nothing written."""
    command = [str(Path(sys.executable).with_name("twinspire")), "build"]
    command += [argument.format(bundle=tiny.bundle.path) for argument in arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
