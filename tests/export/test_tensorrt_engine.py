"""TensorRT plans, on stand-ins for TensorRT and CUDA that record the calls: neither can be had where this is tested."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the bundle to build from is exported, which needs torch")

import onnxruntime as ort

from twinspire import _cuda
from twinspire._cuda import CudaDevice
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.cli import app as cli
from twinspire.errors import BundleError, EngineError, InputError, ProviderError
from twinspire.tensorrt_support import Profile
from twinspire_export import export_checkpoint, quantize_bundle, tensorrt_plans
from twinspire_export.commands import register
from twinspire_export.tensorrt_engine import import_tensorrt, platform_name, profiles
from twinspire_export.tensorrt_plans import build_plans

GPU = "NVIDIA H200"


class FakeMemory:
    """What lies at which address of the GPU; numpy arrays, since the stand-in computes with onnxruntime."""

    def __init__(self) -> None:
        self.arrays: dict[int, NDArray[Any]] = {}
        self.entered = False

    def put(self, array: NDArray[Any]) -> int:
        """Keep an array and give its address."""
        address = 1000 + len(self.arrays)
        self.arrays[address] = array
        return address


class FakeDevice:
    """Stands in for CudaDevice."""

    memory = FakeMemory()
    name = GPU

    def __enter__(self) -> FakeDevice:
        self.memory.entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self.memory.entered = False

    def upload(self, array: NDArray[Any]) -> int:
        """Keep an array and give its address."""
        assert self.memory.entered
        return self.memory.put(array)

    def reserve(self, size_bytes: int) -> int:
        """Give an address."""
        return self.memory.put(np.zeros(size_bytes, np.uint8))

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Fill an array with what is kept at an address."""
        array[...] = self.memory.arrays[address]


class FakeTensorRT(ModuleType):
    """Stands in for the module `tensorrt`: a plan is the ONNX file itself, run by onnxruntime."""

    def __init__(self, version: str) -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.calls: list[tuple[Any, ...]] = []
        self.refused: str | None = None
        self.spoiled = False
        fake = self

        class Logger:
            WARNING = 2

            def __init__(self, level: int) -> None:
                fake.calls.append(("Logger", level))

        class NetworkDefinitionCreationFlag:
            STRONGLY_TYPED = 1

        class BuilderFlag:
            TF32 = "TF32"

        class Network:
            model = b""

        class OnnxParser:
            num_errors = 1

            def __init__(self, network: Network, logger: Logger) -> None:
                self.network = network

            def parse(self, data: bytes) -> bool:
                self.network.model = data
                return fake.refused != "parse"

            def get_error(self, index: int) -> str:
                return f"error {index}: no such operator"

        class Profile:
            def set_shape(self, *arguments: Any) -> None:
                fake.calls.append(("set_shape", *arguments))

        class Config:
            def create_timing_cache(self, data: bytes) -> bytes:
                fake.calls.append(("create_timing_cache", data))
                return data

            def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
                assert not ignore_mismatch
                return fake.refused != "timing cache"

            def get_timing_cache(self) -> SimpleNamespace:
                return SimpleNamespace(serialize=lambda: b"timings")

            def add_optimization_profile(self, profile: Profile) -> int:
                return 0

            def clear_flag(self, flag: str) -> None:
                fake.calls.append(("clear_flag", flag))

            def __getattr__(self, name: str) -> Any:
                raise AssertionError(f"{name} is not to be used: precisions lie in the ONNX file")

        class Builder:
            def __init__(self, logger: Logger) -> None:
                pass

            def create_network(self, flags: int) -> Network:
                fake.calls.append(("create_network", flags))
                return Network()

            def create_builder_config(self) -> Config:
                return Config()

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
                return None if fake.refused == "build" else network.model

        class Context:
            def __init__(self, plan: bytes) -> None:
                self.session = ort.InferenceSession(plan, providers=["CPUExecutionProvider"])
                self.addresses: dict[str, int] = {}
                self.shape: tuple[int, ...] = ()

            def set_optimization_profile_async(self, index: int, stream: int) -> bool:
                fake.calls.append(("profile", index))
                return True

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                self.shape = shape
                fake.calls.append(("input", name, shape))
                return fake.refused != "shape"

            def set_tensor_address(self, name: str, address: int) -> None:
                self.addresses[name] = address

            def execute_async_v3(self, stream: int) -> bool:
                name = self.session.get_inputs()[0].name
                arrays = FakeDevice.memory.arrays
                result = self.session.run(["embedding"], {name: arrays[self.addresses[name]].reshape(self.shape)})[0]
                arrays[self.addresses["embedding"]] = -result if fake.spoiled else result
                return fake.refused != "execute"

        class Runtime:
            def __init__(self, logger: Logger) -> None:
                pass

            def deserialize_cuda_engine(self, plan: bytes) -> SimpleNamespace | None:
                return SimpleNamespace(create_execution_context=lambda: Context(plan))

        for part in (Logger, NetworkDefinitionCreationFlag, BuilderFlag, OnnxParser, Builder, Runtime):
            setattr(self, part.__name__, part)

    def named(self, name: str) -> list[tuple[Any, ...]]:
        """Give the arguments of every call of a name."""
        return [arguments for what, *arguments in self.calls if what == name]  # type: ignore[misc]


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """Install the stand-ins, of TensorRT 11."""
    fake = FakeTensorRT("11.4.0.106")
    FakeDevice.memory = FakeMemory()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(tensorrt_plans, "CudaDevice", FakeDevice)
    return fake


def make_bundle(make_checkpoint: Callable[..., Path], folder: Path, context_length: int) -> Bundle:
    """Export a tiny bundle and give it fp16 engines."""
    base = export_checkpoint(
        make_checkpoint(folder / "tiny-clip", context_length=context_length), folder / "fp32", name="tiny"
    )
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    return quantize_bundle(base, folder / "bundle", precision="fp16", images=pictures, captions=["a cat"])


@pytest.fixture(scope="module")
def bundle(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Give a tiny bundle with fp16 engines and a context of 77."""
    return make_bundle(make_checkpoint, tmp_path_factory.mktemp("base"), 77)


def test_profiles(bundle: Bundle, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Images have one profile, texts one of 32 tokens and one of the context, tuned for the full batch."""
    assert profiles(bundle, Tower.IMAGE, max_batch=64) == (Profile((1, 32, 32, 3), (64, 32, 32, 3), (64, 32, 32, 3)),)
    assert profiles(bundle, Tower.TEXT, max_batch=16) == (
        Profile((1, 32), (16, 32), (16, 32)),
        Profile((1, 77), (16, 77), (16, 77)),
    )
    short = export_checkpoint(make_checkpoint(tmp_path / "short", context_length=32), tmp_path / "bundle")
    assert profiles(short, Tower.TEXT, max_batch=1) == (Profile((1, 32), (1, 32), (1, 32)),)
    with pytest.raises(InputError, match="max_batch"):
        profiles(bundle, Tower.IMAGE, max_batch=0)


def test_names() -> None:
    """Files are named after GPU and TensorRT, in letters that any file system takes."""
    assert platform_name(gpu="NVIDIA GeForce RTX 4090 (24 GB)", version="10.13.2.6") == (
        "nvidia-geforce-rtx-4090-24-gb.trt-10.13.2.6"
    )
    assert platform_name(gpu="", version="11.4.0+cuda 13") == "gpu.trt-11.4.0-cuda-13"


@pytest.mark.parametrize(("version", "flags"), [("10.16.1.11", 2), ("11.4.0.106", 0)])
def test_networks_are_strongly_typed(
    tensorrt: FakeTensorRT, bundle: Bundle, tmp_path: Path, version: str, flags: int
) -> None:
    """TensorRT 10 is asked for a strongly typed network; 11 knows no other. No builder flag is set."""
    tensorrt.__version__ = version
    build_plans(bundle, tmp_path / "plans")
    assert tensorrt.named("create_network") == [[flags], [flags]]


def test_tf32_is_off(tensorrt: FakeTensorRT, bundle: Bundle, tmp_path: Path) -> None:
    """What stays in fp32 is computed in fp32: TensorRT's TF32, on by default, is cleared for every engine."""
    build_plans(bundle, tmp_path / "plans")
    assert tensorrt.named("clear_flag") == [["TF32"], ["TF32"]]


def test_folder_of_plans(tensorrt: FakeTensorRT, bundle: Bundle, tmp_path: Path) -> None:
    """The folder holds a plan for each tower, the timings, and plans.json with profiles and certificates."""
    said: list[str] = []
    folder = build_plans(bundle, tmp_path / "plans", max_batch=8, on_step=said.append)
    names = {tower: f"{tower}.fp16.nvidia-h200.trt-11.4.0.106.plan" for tower in (Tower.IMAGE, Tower.TEXT)}
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*names.values(), "plans.json", "timings.nvidia-h200.trt-11.4.0.106.cache"]
    )
    assert sorted(tmp_path.iterdir()) == [folder]
    document = json.loads((folder / "plans.json").read_text())
    assert (document["bundle"], document["space"], document["precision"]) == ("tiny", bundle.space, "fp16")
    assert (document["gpu"], document["tensorrt"], document["max_batch"]) == (GPU, "11.4.0.106", 8)
    for tower, probed in ((Tower.IMAGE, 8), (Tower.TEXT, 2 * len(bundle.probes().towers[Tower.TEXT].inputs))):
        plan = document["plans"][tower]
        assert plan["file"] == names[tower]
        assert plan["engine_sha256"] == bundle.manifest.engines[tower][Precision.FP16].sha256
        assert plan["size_bytes"] == (folder / names[tower]).stat().st_size
        certificate = plan["certificate"]
        assert certificate["min_cosine"] >= 0.9999
        assert certificate["reference"] == "torch fp32"
        assert certificate["versions"] == {"tensorrt": "11.4.0.106"}
        # Texts of more than 32 tokens are left to the longer profile.
        assert 0 <= probed - certificate["samples"] <= 4
    assert document["plans"]["text"]["profiles"][1]["maximum"] == [8, 77]
    assert len(said) == 4


def test_shapes_that_were_set(tensorrt: FakeTensorRT, bundle: Bundle, tmp_path: Path) -> None:
    """The profiles reach TensorRT under the inputs' names, and each is run with inputs of its own length."""
    build_plans(bundle, tmp_path / "plans", max_batch=4)
    assert tensorrt.named("set_shape") == [
        ["image", (1, 32, 32, 3), (4, 32, 32, 3), (4, 32, 32, 3)],
        ["input_ids", (1, 32), (4, 32), (4, 32)],
        ["input_ids", (1, 77), (4, 77), (4, 77)],
    ]
    runs = [call for call in tensorrt.calls if call[0] in ("profile", "input")]
    pairs = {(runs[at][1], *runs[at + 1][1:]) for at in range(0, len(runs), 2)}
    assert pairs == {(0, "image", (1, 32, 32, 3)), (0, "input_ids", (1, 32)), (1, "input_ids", (1, 77))}


def test_timings_are_kept(tensorrt: FakeTensorRT, bundle: Bundle, tmp_path: Path) -> None:
    """The second tower is built with the first one's timings, and a file of them is read and written."""
    kept = tmp_path / "kept.cache"
    build_plans(bundle, tmp_path / "one", timing_cache=kept)
    assert tensorrt.named("create_timing_cache") == [[b""], [b"timings"]]
    assert kept.read_bytes() == b"timings"
    assert (tmp_path / "one" / "timings.nvidia-h200.trt-11.4.0.106.cache").read_bytes() == b"timings"
    kept.write_bytes(b"earlier")
    tensorrt.calls.clear()
    build_plans(bundle, tmp_path / "two", timing_cache=kept)
    assert tensorrt.named("create_timing_cache")[0] == [b"earlier"]


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        ("parse", "operator"),
        ("timing cache", "cache"),
        ("build", "build"),
        ("shape", "refuses"),
        ("execute", "failed"),
    ],
)
def test_what_tensorrt_refuses(tensorrt: FakeTensorRT, bundle: Bundle, tmp_path: Path, refused: str, said: str) -> None:
    """Whatever TensorRT refuses is an EngineError that says what, and nothing is left."""
    tensorrt.refused = refused
    with pytest.raises(EngineError, match=said):
        build_plans(bundle, tmp_path / "plans")
    assert list(tmp_path.iterdir()) == []


def test_plan_that_computes_something_else(tensorrt: FakeTensorRT, bundle: Bundle, tmp_path: Path) -> None:
    """A plan whose embeddings are not those of torch is refused, and nothing is left."""
    tensorrt.spoiled = True
    with pytest.raises(EngineError, match=r"-1\.0"):
        build_plans(bundle, tmp_path / "plans")
    assert list(tmp_path.iterdir()) == []


def test_arguments(tensorrt: FakeTensorRT, bundle: Bundle, tmp_path: Path) -> None:
    """A precision that TensorRT does not take, one that the bundle lacks and a folder that exists are refused."""
    with pytest.raises(InputError, match="int8-tensorrt"):
        build_plans(bundle, tmp_path / "plans", precision="int8")
    with pytest.raises(BundleError, match="--precision int8-tensorrt"):
        build_plans(bundle, tmp_path / "plans", precision="int8-tensorrt")
    with pytest.raises(InputError, match="max_batch"):
        build_plans(bundle, tmp_path / "plans", max_batch=0)
    with pytest.raises(BundleError, match="exists"):
        build_plans(bundle, tmp_path)
    with pytest.raises(InputError, match="cache"):
        build_plans(bundle, tmp_path / "plans", timing_cache=tmp_path)
    assert tensorrt.named("create_network") == []


def test_without_tensorrt(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where TensorRT is missing, or of another version, the error says where to run instead."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ProviderError, match=r"nvcr\.io"):
        build_plans(bundle, tmp_path / "plans")
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT("8.6.1"))
    with pytest.raises(ProviderError, match=r"8\.6\.1"):
        import_tensorrt()
    assert list(tmp_path.iterdir()) == []


def test_command(
    tensorrt: FakeTensorRT,
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`twinspire tensorrt` writes and lists the plans, without -o beside BUNDLE; without TensorRT it ends with 2."""

    def application() -> typer.Typer:
        app = typer.Typer(pretty_exceptions_enable=False)
        register(app)
        return app

    monkeypatch.setattr(cli, "application", application)

    def twinspire(*arguments: object) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return int(ended.value.code or 0)

    assert twinspire("tensorrt", bundle.path, "-o", tmp_path / "plans", "--max-batch", 4) == 0
    said = capsys.readouterr()
    assert [line.split()[0].rpartition("/")[2] for line in said.out.splitlines()] == sorted(
        path.name for path in (tmp_path / "plans").iterdir()
    )
    assert "image" in said.err
    (tmp_path / "own").symlink_to(bundle.path)
    monkeypatch.chdir(tmp_path)
    assert twinspire("tensorrt", "own", "--max-batch", 4) == 0
    assert len([*(tmp_path / "own.plans").glob("*.plan")]) == 2
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert twinspire("tensorrt", bundle.path, "-o", tmp_path / "more") == 2
    assert "nvcr.io" in capsys.readouterr().err


class FakeDriver:
    """Stands in for libcuda: memory is this process's own."""

    def __init__(self, failing: str | None = None) -> None:
        self.failing = failing
        self.calls: list[str] = []
        self.blocks: dict[int, Any] = {}

    def __getattr__(self, function: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.calls.append(function)
            if function == self.failing:
                return 100
            handler = getattr(type(self), f"_{function}", None)
            if handler is not None:
                handler(self, *arguments)
            return 0

        return call

    def _cuDeviceGetName(self, name: Any, size: int, device: Any) -> None:  # noqa: N802 - CUDA's own name
        name.value = GPU.encode()

    def _cuMemAlloc_v2(self, pointer: Any, size: ctypes.c_size_t) -> None:  # noqa: N802
        block = ctypes.create_string_buffer(size.value)
        address = ctypes.addressof(block)
        self.blocks[address] = block
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_uint64))[0] = address

    def _cuMemcpyHtoD_v2(self, address: Any, source: Any, size: Any) -> None:  # noqa: N802
        ctypes.memmove(address.value, source, size.value)

    def _cuMemcpyDtoH_v2(self, target: Any, address: Any, size: Any) -> None:  # noqa: N802
        ctypes.memmove(target, address.value, size.value)


def test_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays travel to the GPU and back, and everything is given back when the context is left."""
    driver = FakeDriver()
    monkeypatch.setattr(_cuda, "load_driver", lambda: driver)
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T  # not contiguous
    with CudaDevice() as device:
        assert device.name == GPU
        back = np.empty((4, 3), np.float32)
        device.download(device.upload(array), back)
        device.reserve(16)
    np.testing.assert_array_equal(back, array)
    assert driver.calls.count("cuMemAlloc_v2") == driver.calls.count("cuMemFree_v2") == 2
    assert driver.calls[-1] == "cuDevicePrimaryCtxRelease_v2"


def test_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a driver or a GPU that is a ProviderError; a call that fails later is an EngineError with its name."""
    with monkeypatch.context() as without_driver:
        without_driver.setattr(_cuda, "LIBRARY", "libcuda-that-is-not-here.so.1")
        with pytest.raises(ProviderError, match="libcuda-that-is-not-here"):
            CudaDevice()
    monkeypatch.setattr(_cuda, "load_driver", lambda: FakeDriver("cuDeviceGet"))
    with pytest.raises(ProviderError, match="cuDeviceGet"):
        CudaDevice()
    monkeypatch.setattr(_cuda, "load_driver", lambda: FakeDriver("cuMemAlloc_v2"))
    with CudaDevice() as device, pytest.raises(EngineError, match="cuMemAlloc_v2"):
        device.reserve(1)
