"""Every call of `tensorrt_engine` against TensorRT's own Python bindings, version 10 and 11.

The wheels of the bindings install anywhere (`make test-tensorrt-bindings`); the libraries behind them need gigabytes
and a GPU. Stubs of these let the bindings be imported, and each call is then held against the signature that the
bindings document: a name that is gone, an argument too many and one of another type fail. Nothing is computed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BINDINGS = Path(sys.prefix) / "tensorrt-bindings"
VERSIONS = ("10", "11")
# What the bindings import of the three libraries, each a function that returns nothing.
SYMBOLS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": ("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the stubs for both versions and give their folder."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("the stubs of TensorRT's libraries are compiled with gcc, which is not here")
    folder = tmp_path_factory.mktemp("stubs")
    for library, symbols in SYMBOLS.items():
        source = folder / f"{library}.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols))
        for version in VERSIONS:
            name = f"lib{library}.so.{version}"
            command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, source]
            subprocess.run(command, check=True)
    return folder


def bindings(version: str) -> Path:
    """Give the folder that the bindings of a major version were installed to."""
    folder = next(iter(sorted(BINDINGS.glob(f"{version}.*"))), None)
    if folder is None:
        pytest.skip(f"TensorRT {version}'s bindings are not in {BINDINGS}: make test-tensorrt-bindings installs them")
    return folder


def run(stubs: Path, version: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own that can import these bindings: two versions do not fit one process."""
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(stubs),
        "PYTHONPATH": os.pathsep.join([str(bindings(version)), str(Path(__file__).parent), *filter(None, sys.path)]),
    }
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("version", VERSIONS)
def test_calls_of_the_builder(stubs: Path, version: str) -> None:
    """Building a plan makes only calls that the bindings have, also where the parser refuses the engine."""
    done = run(stubs, version, "import trace_tensorrt; trace_tensorrt.build()")
    assert done.returncode == 0, done.stderr
    expected = {
        "Builder.create_network",
        "IBuilderConfig.clear_flag",
        "IBuilderConfig.set_timing_cache",
        "IOptimizationProfile.set_shape",
        "OnnxParser.parse",
        "OnnxParser.get_error",
        "Builder.build_serialized_network",
    }
    assert expected <= set(done.stdout.split())


@pytest.mark.parametrize("version", VERSIONS)
def test_calls_of_the_runner(stubs: Path, version: str) -> None:
    """Running a plan makes only calls that the bindings have."""
    done = run(stubs, version, "import trace_tensorrt; trace_tensorrt.embed()")
    assert done.returncode == 0, done.stderr
    expected = {"Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3"}
    assert expected <= set(done.stdout.split())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("trt.Builder(trt.Logger()).build_engine", "AttributeError"),  # gone since TensorRT 10
        ("trt.BuilderFlag.NO_SUCH_FLAG", "AttributeError"),
        ("trt.Builder(trt.Logger()).create_network(0, 1)", "TypeError"),
        ("trt.Builder(trt.Logger()).create_network('strongly typed')", "TypeError"),
        ("trt.Builder(trt.Logger()).create_builder_config().clear_flag(3)", "TypeError"),
        ("trt.Builder(trt.Runtime(trt.Logger()))", "TypeError"),
    ],
)
def test_wrong_calls_are_noticed(stubs: Path, version: str, call: str, error: str) -> None:
    """The check can fail: names that are gone, too many arguments and arguments of another type are errors."""
    done = run(stubs, version, f"import trace_tensorrt; trt = trace_tensorrt.traced(); {call}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(error), done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_import(stubs: Path, version: str) -> None:
    """The versions of the bindings are among those that `import_tensorrt` accepts."""
    code = "import sys, tensorrt_bindings; sys.modules['tensorrt'] = tensorrt_bindings; "
    code += "from twinspire_export.tensorrt_engine import import_tensorrt; print(import_tensorrt().__version__)"
    done = run(stubs, version, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{version}.")
