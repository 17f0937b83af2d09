"""TensorRT plans in a repository: what serves them, what a client reads, and which plans are refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import tritonclient.grpc as grpc
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from twinspire import sample_bundle
from twinspire.bundle import Bundle, Certificate, Padding, Precision, Tower
from twinspire.cli.app import application
from twinspire.errors import BundleError, InputError, SpaceMismatchError
from twinspire.tensorrt_support import PlanFolder, PlanManifest, PlanRecord, Profile
from twinspire.towers.triton.models import expected_tower, read_model
from twinspire_server.repository import Accelerator, Device, RepositoryRuntime, build_repository
from twinspire_server.triton import find_triton

CONTAINER_GPU: dict[str, Any] = {"runtime": RepositoryRuntime.CONTAINER, "device": Device.GPU}
PLAN: dict[str, Any] = {**CONTAINER_GPU, "accelerator": Accelerator.PLAN}
CERTIFICATE = Certificate(
    reference="torch fp32", data="probes", samples=1, min_cosine=1.0, mean_cosine=1.0, recall=None, versions={}
)


def _config(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(), triton.ModelConfig())


def write_plans(
    bundle: Bundle, folder: Path, *, lengths: tuple[int, ...], changes: Mapping[str, Any] = MappingProxyType({})
) -> Path:
    """Write what `twinspire tensorrt` writes, with plans of a few bytes; `changes` are of the manifest."""
    folder.mkdir()
    size = bundle.image.size
    shapes = {Tower.IMAGE: [(size, size, 3)], Tower.TEXT: [(length,) for length in lengths]}
    plans = {}
    for tower in (Tower.IMAGE, Tower.TEXT):
        data = f"the plan of the {tower} tower".encode()
        name = f"{tower}.fp32.nvidia-h200.trt-11.4.0.106.plan"
        (folder / name).write_bytes(data)
        plans[tower] = PlanRecord(
            file=name,
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            engine_sha256=bundle.manifest.engines[tower][Precision.FP32].sha256,
            profiles=tuple(Profile((1, *shape), (48, *shape), (48, *shape)) for shape in shapes[tower]),
            certificate=Certificate(
                reference="torch fp32",
                data="probes",
                samples=1,
                min_cosine=1.0,
                mean_cosine=1.0,
                recall=None,
                versions={},
            ),
        )
    manifest = PlanManifest(
        bundle=bundle.name,
        space=bundle.space,
        precision=Precision.FP32,
        max_batch=48,
        gpu="NVIDIA H200",
        tensorrt="11.4.0.106",
        plans=plans,
    )
    document = {**json.loads(manifest.to_json()), **changes}
    (folder / "plans.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def planned(make_tiny: Callable[..., Any], tmp_path: Path) -> Bundle:
    """Give a tiny bundle with a context of 40, and plans beside it in profiles of 32 and 40 tokens."""
    bundle: Bundle = make_tiny(context_length=40).bundle
    write_plans(bundle, tmp_path / "tiny.plans", lengths=(32, 40))
    return bundle


def test_plans_are_served_by_the_tensorrt_backend(planned: Bundle, tmp_path: Path) -> None:
    """Each tower is a tensorrt_plan with its plan, the profiles, and what a client reads of the contract."""
    models = build_repository([planned.path], tmp_path / "models", **PLAN)
    assert [(model.spec.precision, model.version) for model in models] == [(Precision.FP32, 1)] * 3
    image, engine, text = models
    for model, runs, profiles in ((image, image, ["0"]), (text, engine, ["0", "1"])):
        tower = model.spec.tower
        assert tower is not None
        plan = next((tmp_path / "tiny.plans").glob(f"{tower}.*.plan"))
        assert (runs.folder / "1" / "model.plan").read_bytes() == plan.read_bytes()
        config = _config(runs.folder)
        assert f"# {plan.name} " in (runs.folder / "config.pbtxt").read_text()
        assert (config.platform, config.backend, config.max_batch_size) == ("tensorrt_plan", "tensorrt", 48)
        (group,) = config.instance_group
        assert (group.kind, list(group.profile)) == (triton.ModelInstanceGroup.KIND_GPU, profiles)
        assert not config.HasField("optimization")
        served = read_model(_config(model.folder), expected_tower(planned, tower, "tiny"), planned, address="here")
        assert (served.max_batch, served.precision) == (48 if tower is Tower.IMAGE else 64, "fp32")
        assert served.text_lengths == (() if tower is Tower.IMAGE else (40,))
        assert {(sample.batch_size, *sample.inputs.popitem()[1].dims) for sample in config.model_warmup} == (
            {(1, 16, 16, 3), (48, 16, 16, 3)}
            if tower is Tower.IMAGE
            else {(batch, length) for batch in (1, 48) for length in (32, 40)}
        )


def test_texts_are_given_to_a_plan_as_its_profiles_are(planned: Bundle, tmp_path: Path) -> None:
    """The model in front of the text plan is told the plan's batch and lengths."""
    *_, text = build_repository([planned.path], tmp_path / "models", **PLAN)
    parameters = {name: value.string_value for name, value in _config(text.folder).parameters.items()}
    assert (parameters["engine_batch"], parameters["engine_lengths"]) == ("48", "32,40")


def test_plans_of_one_length(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    """A plan of the context alone is served at that length."""
    bundle = make_tiny(context_length=64, padding=Padding.MAX_LENGTH).bundle
    write_plans(bundle, tmp_path / "plans", lengths=(64,))
    *_, text = build_repository([bundle.path], tmp_path / "models", plans=[tmp_path / "plans"], **PLAN)
    expected = expected_tower(bundle, Tower.TEXT, "tiny")
    assert read_model(_config(text.folder), expected, bundle, address="here").text_lengths == (64,)


def test_another_plan_is_a_further_version(planned: Bundle, tmp_path: Path) -> None:
    """Building with the same plans keeps the version; other plans of the same engines are the next one."""
    build_repository([planned.path], tmp_path / "models", **PLAN)
    assert build_repository([planned.path], tmp_path / "models", **PLAN)[0].version == 1
    shutil.rmtree(tmp_path / "tiny.plans")
    folder = write_plans(planned, tmp_path / "tiny.plans", lengths=(40,))
    document = json.loads((folder / "plans.json").read_text())
    for record in document["plans"].values():
        (folder / record["file"]).write_bytes(b"another")
        record.update(sha256=hashlib.sha256(b"another").hexdigest(), size_bytes=7)
    (folder / "plans.json").write_text(json.dumps(document))
    models = build_repository([planned.path], tmp_path / "models", **PLAN)
    assert [model.version for model in models] == [2, 2, 2]
    assert (models[1].folder / "1" / "model.plan").exists()


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"space": "f" * 64}, SpaceMismatchError, "space"),
        ({"bundle": "other"}, InputError, "other"),
        ({"schema_version": 2}, BundleError, "schema_version"),
        ({"precision": "fp16"}, BundleError, "fp16"),
        ({"plans": {}}, BundleError, "tower"),
    ],
)
def test_plans_that_are_not_the_bundles(
    planned: Bundle, tmp_path: Path, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    """Plans of another space, bundle, schema or engine are refused, and nothing is written."""
    folder = write_plans(planned, tmp_path / "plans", lengths=(32, 40), changes=changes)
    with pytest.raises(error, match=says):
        build_repository([planned.path], tmp_path / "models", plans=[folder], **PLAN)
    assert not (tmp_path / "models").exists()


def test_plans_of_another_engine_context_or_bundle(planned: Bundle, tmp_path: Path) -> None:
    """Plans of another engine or bundle, and those that take shorter texts than the bundle, are refused."""
    folder = write_plans(planned, tmp_path / "short", lengths=(32,))
    with pytest.raises(BundleError, match=r"\b32\b"):
        build_repository([planned.path], tmp_path / "models", plans=[folder], **PLAN)
    other = write_plans(planned, tmp_path / "other", lengths=(40,), changes={"bundle": "other"})
    with pytest.raises(BundleError, match="'other'"):
        PlanFolder.open(other).check(planned)
    document = json.loads((tmp_path / "tiny.plans" / "plans.json").read_text())
    document["plans"]["image"]["engine_sha256"] = "0" * 64
    (tmp_path / "tiny.plans" / "plans.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match="image"):
        build_repository([planned.path], tmp_path / "models", **PLAN)


@pytest.mark.parametrize("spoil", [lambda plan: plan.write_bytes(b"damaged"), Path.unlink])
def test_damaged_plans(planned: Bundle, tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    """A plan that was changed or is missing is a BundleError that names it and the command that builds plans."""
    spoil(next((tmp_path / "tiny.plans").glob("text.*.plan")))
    with pytest.raises(BundleError, match=r"text\.fp32\.") as caught:
        build_repository([planned.path], tmp_path / "models", **PLAN)
    assert "twinspire tensorrt" in str(caught.value)
    assert not (tmp_path / "models").exists()


def test_which_plans(planned: Bundle, tmp_path: Path) -> None:
    """Plans of another precision, none, two folders of one bundle, and plans that nothing serves are refused."""
    folder = tmp_path / "tiny.plans"
    for precision in ("fp16", "int8"):
        with pytest.raises(InputError, match=precision):
            build_repository([planned.path], tmp_path / "models", precision=precision, **PLAN)
    with pytest.raises(BundleError, match=r"plans\.json"):
        build_repository([planned.path], tmp_path / "models", plans=[tmp_path], **PLAN)
    with pytest.raises(InputError, match="'tiny'"):
        build_repository([planned.path], tmp_path / "models", plans=[folder, folder], **PLAN)
    with pytest.raises(InputError, match="accelerator"):
        build_repository([planned.path], tmp_path / "models", plans=[folder], **CONTAINER_GPU)
    assert not (tmp_path / "models").exists()


def test_manifest_of_plans_goes_round(planned: Bundle, tmp_path: Path) -> None:
    """plans.json read and written again is the same text; profiles that do not ascend are refused."""
    text = (tmp_path / "tiny.plans" / "plans.json").read_text()
    manifest = PlanFolder.open(tmp_path / "tiny.plans").manifest
    assert json.loads(manifest.to_json()) == json.loads(text)
    with pytest.raises(BundleError, match="ascend"):
        PlanManifest.from_json(text.replace("48", "0"), "plans.json")


def test_the_command_serves_plans(planned: Bundle, tmp_path: Path) -> None:
    """`twinspire build --accelerator plan` takes folders with --plans, by default BUNDLE.plans."""
    container = ["--runtime", "container", "--device", "gpu", "--accelerator", "plan"]
    for more in ([], ["--plans", str(tmp_path / "tiny.plans")]):
        command = ["build", str(planned.path), "-o", str(tmp_path / f"models{len(more)}"), *container, *more]
        done = CliRunner().invoke(application(), command)
        assert done.exit_code == 0, done.output
        assert (tmp_path / f"models{len(more)}" / "tiny_engine_text" / "1" / "model.plan").exists()


def test_the_real_server_accepts_the_configs(needs_triton: None, planned: Bundle, tmp_path: Path) -> None:
    """A real Triton loads the configs of plans and of engines for TensorRT, without a GPU, on stubs of the backends."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("the stub of the backends is compiled with gcc, which is not here")
    source = tmp_path / "stub.c"
    source.write_text("void *TRITONBACKEND_ModelInstanceExecute(void *i, void **r, unsigned n) { return 0; }")
    for backend in ("tensorrt", "onnxruntime"):
        library = tmp_path / "backends" / backend / f"libtriton_{backend}.so"
        library.parent.mkdir(parents=True)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    models = build_repository([planned.path], tmp_path / "models", **PLAN)
    models += build_repository([sample_bundle()], tmp_path / "models", precision="fp32", **CONTAINER_GPU)
    for model in models:
        if model.spec.backend == "python":
            shutil.rmtree(model.folder)  # there is no stub of that backend
            continue
        config = (model.folder / "config.pbtxt").read_text()
        # A server without a GPU refuses KIND_GPU, and the stubs cannot run what warms a model up.
        config = config[: config.index("model_warmup")].replace("KIND_GPU", "KIND_CPU")
        (model.folder / "config.pbtxt").write_text(config)
    install = find_triton()
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    command = [
        install.executable,
        f"--model-repository={tmp_path / 'models'}",
        f"--backend-directory={tmp_path / 'backends'}",
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        "--allow-http=false",
        "--allow-metrics=false",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={port}",
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(map(str, install.libraries))}
    log = tmp_path / "triton.log"
    with log.open("w") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as server:
        try:
            with grpc.InferenceServerClient(f"127.0.0.1:{port}") as channel:
                _wait_until_ready(channel, server, log)
                for model in models[:2]:
                    config = channel.get_model_config(model.name).config
                    assert config.default_model_filename == "model.plan"
        finally:
            server.terminate()


def _wait_until_ready(channel: Any, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s and server.poll() is None:
        try:
            if channel.is_server_ready():
                return
        except InferenceServerException:
            pass
        time.sleep(0.05)
    raise AssertionError(log.read_text())
