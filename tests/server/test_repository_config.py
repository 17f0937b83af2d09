"""config.pbtxt, read back with Triton's own protobuf."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from twinspire.bundle import Bundle, Padding, Precision, Tower
from twinspire.bundle.manifest import TowerSpecs
from twinspire.errors import InputError
from twinspire_server.repository.build import MODEL_SPECS
from twinspire_server.repository.config import config_pbtxt
from twinspire_server.repository.settings import Accelerator, Device, RepositoryRuntime, ServingOptions
from twinspire_server.repository.spec import BundleCopy
from twinspire_server.repository.towers import ServedBundle

CPU, GPU = triton.ModelInstanceGroup.KIND_CPU, triton.ModelInstanceGroup.KIND_GPU
WHEEL, CONTAINER = RepositoryRuntime
TOWERS = (Tower.IMAGE, Tower.TEXT)


def _config(tiny: Any, tower: Tower, **options: Any) -> Any:
    """The config of the model that runs a tower's engine."""
    configs = _configs(tiny, **options)
    return configs.get(f"tiny_engine_{tower}") or configs[f"tiny_{tower}"]


def _container_text(tiny: Any, **options: Any) -> Any:
    return _configs(tiny, runtime=CONTAINER, **options)["tiny_text"]


def _configs(tiny: Any, **options: Any) -> dict[str, Any]:
    served = ServedBundle(
        bundle=tiny.bundle,
        precision=Precision.INT8,
        options=ServingOptions(**options),
        copy=BundleCopy(tiny.bundle),
    )
    specs = [spec for make in MODEL_SPECS[served.options.runtime] for spec in make(served)]
    return {spec.name: text_format.Parse(config_pbtxt(spec), triton.ModelConfig()) for spec in specs}


def _parameters(config: Any) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


def _shape(tensor: Any) -> tuple[str, int, list[int]]:
    return tensor.name, tensor.data_type, list(tensor.dims)


@pytest.mark.parametrize(("tower", "runtime", "device"), [*product(TOWERS, RepositoryRuntime, Device)])
def test_every_config_has_the_contract(tiny: Any, tower: Tower, runtime: RepositoryRuntime, device: Device) -> None:
    """Each engine's config parses; its tensors, instances and the facts for the client are the contract's."""
    config = _config(tiny, tower, runtime=runtime, device=device)
    assert config.name == ("tiny_engine_text" if (runtime, tower) == (CONTAINER, Tower.TEXT) else f"tiny_{tower}")
    assert config.backend == {WHEEL: "python", CONTAINER: "onnxruntime"}[runtime]
    length = {WHEEL: 20, CONTAINER: -1}[runtime]
    given = (
        ("image", triton.TYPE_UINT8, [16, 16, 3])
        if tower is Tower.IMAGE
        else ("input_ids", triton.TYPE_INT32, [length])
    )
    assert [_shape(tensor) for tensor in config.input] == [given]
    assert [_shape(tensor) for tensor in config.output] == [("embedding", triton.TYPE_FP32, [12])]
    (group,) = config.instance_group
    assert (group.kind, group.count) == (GPU if (runtime, device) == (CONTAINER, Device.GPU) else CPU, 1)
    expected = {"tower": str(tower), "space": tiny.bundle.space, "precision": "int8", "dim": "12"}
    assert expected.items() <= _parameters(config).items()
    assert config.model_warmup


@pytest.mark.parametrize(("runtime", "device"), [*product(RepositoryRuntime, Device)])
def test_audio_towers(make_tiny: Callable[..., Any], runtime: RepositoryRuntime, device: Device) -> None:
    """An audio tower is a model with spectrograms as its input, which its warm-ups have too."""
    heard = make_tiny(towers=(Tower.TEXT, Tower.AUDIO))
    config = _config(heard, Tower.AUDIO, runtime=runtime, device=device)
    assert config.name == "tiny_audio"
    assert [_shape(tensor) for tensor in config.input] == [("audio", triton.TYPE_FP32, [21, 12])]
    assert [_shape(tensor) for tensor in config.output] == [("embedding", triton.TYPE_FP32, [12])]
    assert _parameters(config)["tower"] == "audio"
    assert list(config.model_warmup[0].inputs["audio"].dims) == [21, 12]


@pytest.mark.parametrize("runtime", RepositoryRuntime)
def test_images_need_not_be_square(tiny: Any, runtime: RepositoryRuntime) -> None:
    """Input and warm-up have the height and width of the bundle's images, in this order."""
    bundle = tiny.bundle
    image = replace(bundle.image, height=24)
    towers = TowerSpecs.of_contract(image, bundle.text, dim=bundle.manifest.dim)
    tall = SimpleNamespace(bundle=Bundle(bundle.path, replace(bundle.manifest, towers=towers)))
    config = _config(tall, Tower.IMAGE, runtime=runtime)
    assert list(config.input[0].dims) == [24, 16, 3]
    assert list(config.model_warmup[0].inputs["image"].dims) == [24, 16, 3]


@pytest.mark.parametrize(("tower", "runtime", "device"), [*product(TOWERS, RepositoryRuntime, Device)])
def test_batches_are_what_was_measured(tiny: Any, tower: Tower, runtime: RepositoryRuntime, device: Device) -> None:
    """Batches are 32 images and 64 texts, 8 and 16 on the container's CPU; behind its text model none are formed."""
    config = _config(tiny, tower, runtime=runtime, device=device)
    on_processor = runtime is CONTAINER and device is Device.CPU
    assert config.max_batch_size == ({"image": 8, "text": 16} if on_processor else {"image": 32, "text": 64})[tower]
    assert config.HasField("dynamic_batching") != (runtime is CONTAINER and tower is Tower.TEXT)
    assert config.dynamic_batching == triton.ModelDynamicBatching()


@pytest.mark.parametrize("device", Device)
def test_the_containers_text_model_is_the_wheels_to_clients(tiny: Any, device: Device) -> None:
    """Name, tensors, batches and what the client reads are the same; nothing else runs on the GPU."""
    wheel, container = _config(tiny, Tower.TEXT, device=device), _container_text(tiny, device=device)
    for field in ("name", "backend", "max_batch_size", "input", "output", "dynamic_batching"):
        assert getattr(container, field) == getattr(wheel, field), field
    for name in ("tower", "space", "precision", "dim", "text_lengths"):
        assert _parameters(container)[name] == _parameters(wheel)[name]
    assert [(group.kind, group.count) for group in container.instance_group] == [(CPU, 2)]
    assert not container.model_warmup  # tritonserver 2.51 crashes where a model calls another one during it


@pytest.mark.parametrize(
    ("device", "batch", "lengths"), [(Device.CPU, "16", ""), (Device.GPU, "64", "32,40")], ids=["cpu", "gpu"]
)
def test_the_containers_text_model_knows_its_engine(
    make_tiny: Callable[..., Any], device: Device, batch: str, lengths: str
) -> None:
    """Its parameters name the engine, the batches and lengths to give it, and what a text must be."""
    tiny = make_tiny(context_length=40)
    expected = {
        "engine": "tiny_engine_text",
        "engine_batch": batch,
        "engine_lengths": lengths,
        "context_length": "40",
        "vocabulary_size": "18",
        "pad_id": "0",
        "eos_id": "2",
    }
    assert expected.items() <= _parameters(_container_text(tiny, device=device)).items()


def test_the_wheel_takes_texts_padded_to_the_context(tiny: Any) -> None:
    """For the wheel the text input has one length, so that Triton refuses every other shape, and clients are told."""
    config = _config(tiny, Tower.TEXT)
    assert not config.input[0].allow_ragged_batch
    assert list(config.input[0].dims) == [20]
    assert _parameters(config)["text_lengths"] == "20"


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({"context_length": 77}, "32,77"),
        ({"context_length": 32}, "32"),
        ({"context_length": 20}, "20"),
        ({"context_length": 64, "padding": Padding.MAX_LENGTH}, "64"),
    ],
)
def test_a_gpus_engine_sees_two_lengths(make_tiny: Callable[..., Any], options: dict[str, Any], lengths: str) -> None:
    """On a GPU texts are padded to 32 or the context, to the context alone where 32 is not shorter."""
    assert _parameters(_container_text(make_tiny(**options), device=Device.GPU))["engine_lengths"] == lengths


def test_a_processors_engine_sees_any_length(make_tiny: Callable[..., Any]) -> None:
    """On a CPU batches are padded to their longest text; families that take the whole context get it."""
    assert _parameters(_container_text(make_tiny(context_length=77)))["engine_lengths"] == ""
    whole = make_tiny("whole", context_length=64, padding=Padding.MAX_LENGTH)
    assert _parameters(_container_text(whole))["engine_lengths"] == "64"


def _warm_ups(config: Any) -> list[tuple[int, list[int]]]:
    (name,) = {tensor.name for tensor in config.input}
    return [(sample.batch_size, list(sample.inputs[name].dims)) for sample in config.model_warmup]


def test_images_are_warmed_up_alone_and_as_a_full_batch(tiny: Any) -> None:
    """In the container one black image, then 32, run before the image tower counts as ready."""
    config = _config(tiny, Tower.IMAGE, runtime=CONTAINER)
    assert _warm_ups(config) == [(1, [16, 16, 3]), (8, [16, 16, 3])]
    assert all(sample.inputs["image"].zero_data for sample in config.model_warmup)


@pytest.mark.parametrize(("tower", "dims"), [(Tower.IMAGE, [16, 16, 3]), (Tower.TEXT, [20])])
def test_the_wheel_is_warmed_up_by_one_request(tiny: Any, tower: Tower, dims: list[int]) -> None:
    """Triton runs and counts a single request; model.py warms up everything else itself."""
    assert _warm_ups(_config(tiny, tower)) == [(1, dims)]


@pytest.mark.parametrize(
    ("options", "padding", "expected"),
    [
        ({}, Padding.TRIM, [(1, 40)]),
        ({}, Padding.MAX_LENGTH, [(1, 40)]),
        ({"runtime": CONTAINER, "device": Device.GPU}, Padding.TRIM, [(1, 32), (1, 40), (64, 32), (64, 40)]),
        ({"runtime": CONTAINER, "device": Device.GPU}, Padding.MAX_LENGTH, [(1, 40), (64, 40)]),
        (
            {"runtime": CONTAINER},
            Padding.TRIM,
            [(batch, length) for batch in (1, 16) for length in (8, 16, 24, 32, 40)],
        ),
        ({"runtime": CONTAINER}, Padding.MAX_LENGTH, [(1, 40), (16, 40)]),
    ],
)
def test_texts_are_warmed_up_in_every_shape(
    make_tiny: Callable[..., Any], options: dict[str, Any], padding: Padding, expected: list[tuple[int, int]]
) -> None:
    """Each length that the container's engine will see runs alone and as a full batch."""
    config = _config(make_tiny(context_length=40, padding=padding), Tower.TEXT, **options)
    assert _warm_ups(config) == [(batch, [length]) for batch, length in expected]


def test_the_engine_is_opened_as_the_options_say(tiny: Any) -> None:
    """The wheel's model reads threads and providers, the container's backend its own name for threads."""
    wheel = _parameters(_config(tiny, Tower.IMAGE, threads=3, streams=2, provider="openvino"))
    assert (wheel["threads"], wheel["streams"], wheel["provider"]) == ("3", "2", "openvino")
    assert not {"threads", "streams"} & set(_parameters(_config(tiny, Tower.IMAGE)))
    assert _parameters(_config(tiny, Tower.IMAGE, runtime=CONTAINER, threads=3))["intra_op_thread_count"] == "3"


@pytest.mark.parametrize("tower", [Tower.IMAGE, Tower.TEXT])
def test_the_containers_instances_divide_the_threads(tiny: Any, tower: Tower) -> None:
    """Streams are instances of the engine, each with its share of the threads, which the text model keeps busy."""
    config = _config(tiny, tower, runtime=CONTAINER, threads=5, streams=2)
    assert [group.count for group in config.instance_group] == [2]
    assert _parameters(config)["intra_op_thread_count"] == "2"
    assert [group.count for group in _container_text(tiny, threads=5, streams=5).instance_group] == [5]


@pytest.mark.parametrize("threads", [0, -1, True, 1.5])
def test_threads_and_streams_are_whole_numbers(threads: Any) -> None:
    """Threads of any other value are refused."""
    with pytest.raises(InputError, match="threads"):
        ServingOptions(threads=threads)
    with pytest.raises(InputError, match="streams"):
        ServingOptions(streams=threads)


@pytest.mark.parametrize(
    ("tower", "shapes"),
    [
        (Tower.IMAGE, ("image:1x16x16x3", "image:32x16x16x3", "image:32x16x16x3")),
        (Tower.TEXT, ("input_ids:1x32", "input_ids:64x32", "input_ids:64x40")),
    ],
)
def test_tensorrt_is_told_every_shape_and_keeps_its_engines(
    make_tiny: Callable[..., Any], tower: Tower, shapes: tuple[str, str, str]
) -> None:
    """On a GPU the container's profile spans what the client may send; the cache's folder is this engine's own."""
    tiny = make_tiny(context_length=40)
    config = _config(tiny, tower, runtime=CONTAINER, device=Device.GPU)
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [accelerator.name for accelerator in accelerators] == ["tensorrt", "cuda"]
    settings = dict(accelerators[0].parameters)
    assert tuple(settings[f"trt_profile_{which}_shapes"] for which in ("min", "opt", "max")) == shapes
    assert settings["trt_engine_cache_enable"] == "1"
    folder = f"/var/cache/twinspire/{tiny.bundle.manifest.engines[tower][Precision.INT8].sha256[:16]}"
    assert settings["trt_engine_cache_path"] == settings["trt_timing_cache_path"] == folder
    assert settings["trt_timing_cache_enable"] == "1"


@pytest.mark.parametrize("accelerator", [Accelerator.TENSORRT, Accelerator.CUDA])
def test_cuda_computes_without_tf32(tiny: Any, accelerator: Accelerator) -> None:
    """Whether CUDA runs the whole engine or what TensorRT leaves, fp32 is not rounded to TF32."""
    config = _config(tiny, Tower.TEXT, runtime=CONTAINER, device=Device.GPU, accelerator=accelerator)
    cuda = config.optimization.execution_accelerators.gpu_execution_accelerator[-1]
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})


@pytest.mark.parametrize("options", [{"runtime": CONTAINER}, {"device": Device.GPU}])
def test_accelerators_are_asked_for_nowhere_else(tiny: Any, options: dict[str, Any]) -> None:
    """On the CPU and in the wheel no accelerator is named."""
    assert not _config(tiny, Tower.TEXT, **options).HasField("optimization")


def test_streams_are_for_processors() -> None:
    """Streams on a GPU, and plans anywhere but in the container on a GPU, are refused."""
    for runtime in RepositoryRuntime:
        with pytest.raises(InputError, match="streams"):
            ServingOptions(runtime=runtime, device=Device.GPU, streams=2)
    for options in ({"runtime": CONTAINER}, {"device": Device.GPU}):
        with pytest.raises(InputError, match="plan"):
            ServingOptions(accelerator=Accelerator.PLAN, **options)
