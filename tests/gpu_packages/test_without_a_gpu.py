"""The real GPU packages on a machine without a GPU: the most frequent mistake in production. `make test-gpu-packages`.

Everything runs on the processor there, in silence, and what was asked of a GPU by name fails with the driver's word.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinspire import _cuda, sample_bundle
from twinspire.bundle import Bundle
from twinspire.errors import ProviderError
from twinspire.towers import LocalTowers, Provider, providers

pytestmark = pytest.mark.gpu_packages

CHECKOUT = Path(__file__).parents[2]
OLD_PIP = "23.2.1"


@pytest.fixture(autouse=True, scope="module")
def without_a_gpu() -> None:
    """Skip, with the reason, where a GPU is: these tests say what happens without."""
    if _cuda.unavailable_reason() is None:
        pytest.skip("a GPU is here")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an image, labels for it and an index of it."""
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), (200, 0, 0)).save(tmp_path / "pictures" / "red.png")
    (tmp_path / "labels.txt").write_text("a red circle\na blue square\n")
    assert _twinspire(tmp_path, "index", "add", "pictures.index", "pictures").returncode == 0
    return tmp_path


def _twinspire(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "twinspire", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


# The packages


def test_the_set_is_consistent() -> None:
    """No conflicts by pip's word, and what CUDA sessions need beside onnxruntime is there."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert metadata.version("faiss-gpu-cuvs") == "1.15.1"
    for package in ("onnxruntime-gpu", "nvidia-cuda-runtime", "nvidia-cublas", "nvidia-cufft", "nvidia-cudnn-cu13"):
        assert metadata.version(package)
    for package in ("onnxruntime", "faiss-cpu"):
        with pytest.raises(metadata.PackageNotFoundError):
            metadata.version(package)


def test_an_old_pip_refuses_the_extra(tmp_path: Path) -> None:
    """An old pip cannot match the versions of RAPIDS: it says so, and takes no release that does not import."""
    venv = [sys.executable, "-m", "venv", tmp_path / "old"]
    subprocess.run(venv, check=True, timeout=120)
    python = tmp_path / "old" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"pip=={OLD_PIP}"], check=True, timeout=120)
    done = subprocess.run(
        [python, "-m", "pip", "install", "--dry-run", f"{CHECKOUT}[gpu]"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode != 0
    assert "libcuvs-cu13==26.06.*" in done.stderr


def test_both_libraries_import_in_silence() -> None:
    """FAISS and onnxruntime import, know GPUs, and print nothing; FAISS sees none."""
    program = (
        "from twinspire.index.faiss_support import faiss_library\n"
        "from twinspire.towers.onnxruntime_support import onnxruntime_library\n"
        "assert hasattr(faiss_library(), 'StandardGpuResources') and faiss_library().get_num_gpus() == 0\n"
        "assert 'CUDAExecutionProvider' in onnxruntime_library().get_available_providers()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_cudnn_loads_from_its_package() -> None:
    """The library that onnxruntime loads at the first convolution, without which a CUDA session opens and fails."""
    program = (
        "from twinspire.towers.onnxruntime_support import load_cuda_libraries\n"
        "load_cuda_libraries()\n"
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'libcudnn.so' in line})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert "site-packages/nvidia/" in done.stdout, done.stderr


# What the code asks FAISS for


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("GpuIndexCagraConfig", ["use_cuvs", "graph_degree", "intermediate_graph_degree"]),
        ("GpuIndexIVFFlatConfig", ["use_cuvs"]),
        ("GpuClonerOptions", ["use_cuvs"]),
        ("SearchParametersCagra", ["itopk_size"]),
    ],
)
def test_settings_exist(name: str, attributes: list[str]) -> None:
    """What is set is there: SWIG takes any name. cuVS is off unless it is asked for, as the code does."""
    import faiss

    settings = getattr(faiss, name)()
    assert all(hasattr(settings, attribute) for attribute in attributes)
    if "use_cuvs" in attributes:
        assert settings.use_cuvs is False


@pytest.mark.parametrize(
    "name",
    [
        "GpuIndexCagra",
        "GpuIndexIVFFlat",
        "IndexHNSWCagra",
        "index_cpu_to_gpu",
        "index_gpu_to_cpu",
        "StandardGpuResources",
    ],
)
def test_classes_and_functions_exist(name: str) -> None:
    """What builds and searches on a GPU is in FAISS under its name."""
    import faiss

    assert callable(getattr(faiss, name))


# The towers


def test_auto_takes_the_processor(caplog: pytest.LogCaptureFixture) -> None:
    """`auto` runs on the processor without a warning, and says that there is no GPU where it says why."""
    bundle = Bundle.open(sample_bundle())
    with caplog.at_level(logging.INFO, logger="twinspire"):
        towers = LocalTowers(bundle, precision="fp32")
    assert towers.runtime.provider is Provider.CPU
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert "cuda" in caplog.text
    assert Provider.CUDA not in providers.available()
    assert towers.encode_images(np.zeros((2, bundle.image.size, bundle.image.size, 3), np.uint8)).shape == (
        2,
        towers.dim,
    )


def test_cuda_by_name_is_an_error() -> None:
    """`cuda` raises what the driver says."""
    reason = str(_cuda.unavailable_reason())
    with pytest.raises(ProviderError) as caught:
        LocalTowers(Bundle.open(sample_bundle()), provider="cuda")
    assert reason in str(caught.value)


def test_the_cause_of_a_library_that_does_not_load_is_named() -> None:
    """Of a provider that onnxruntime drops, the error names what its library is missing."""
    program = "from twinspire.towers.onnxruntime_support import cuda_library_error\nprint(cuda_library_error())\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert ".so" in done.stdout
    assert "cannot open" in done.stdout


# The commands


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "pictures.index", "a red circle"],
        ["classify", "pictures/red.png", "--labels", "labels.txt"],
        ["classify", "pictures/red.png", "--labels", "labels.txt", "--streams", "2", "--threads", "2"],
        ["index", "build", "pictures.index", "--spec", "auto"],
        ["build", str(sample_bundle()), "-o", "models"],
    ],
)
def test_commands_run_in_silence(place: Path, arguments: list[str]) -> None:
    """What works with the packages of the processor works here, with nothing on stderr."""
    done = _twinspire(place, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_repository_for_the_processor_leaves_the_choice_open(place: Path) -> None:
    """Without a GPU the models choose among all providers, as with the packages of the processor."""
    assert _twinspire(place, "build", str(sample_bundle()), "-o", "models").returncode == 0
    config = (place / "models" / "scenes_image" / "config.pbtxt").read_text()
    assert '"provider"' in config
    assert '"auto"' in config


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "pictures.index", "a red circle", "--provider", "cuda"],
        ["classify", "pictures/red.png", "--labels", "labels.txt", "--provider", "cuda"],
        *(["index", "build", "pictures.index", "--spec", kind] for kind in ("cagra", "gpu-flat", "gpu-ivf")),
    ],
)
def test_a_gpu_by_name_fails_in_one_line(place: Path, arguments: list[str]) -> None:
    """Status 2 and one line that says what the driver says."""
    done = _twinspire(place, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert str(_cuda.unavailable_reason()) in done.stderr


# A driver that the libraries cannot use


def test_a_driver_that_is_too_old(place: Path, fake_cuda_driver: Path) -> None:
    """A driver that reports a GPU, and is too old: `auto` passes over it with one line, `cuda` fails with it."""
    driver = {"LD_LIBRARY_PATH": str(fake_cuda_driver.parent)}
    classify = ["classify", "pictures/red.png", "--labels", "labels.txt"]
    done = _twinspire(place, *classify, **driver)
    assert done.returncode == 0
    assert done.stdout == _twinspire(place, *classify).stdout
    assert done.stderr.count("\n") == 1
    assert "CUDA failure 35" in done.stderr
    done = _twinspire(place, *classify, "--provider", "cuda", **driver)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "CUDA failure 35" in done.stderr
    done = _twinspire(place, "index", "build", "pictures.index", "--spec", "cagra", **driver)
    assert done.returncode == 2
    assert "older" in done.stderr
