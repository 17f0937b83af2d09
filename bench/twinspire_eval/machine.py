"""Hardware of this machine, and the measured peaks of its matrix multiplications."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinspire._cores import thread_count, usable_cores
from twinspire._machine import cpu_model as cpu_model  # re-exported
from twinspire.errors import MissingDependencyError
from twinspire.towers import InferencePrecision, OpenVinoOptions, Provider
from twinspire.towers.auto_selection import INSTRUCTION_SETS, processor_flags
from twinspire.towers.providers import Session, available, open_session

_CPUINFO = Path("/proc/cpuinfo")
# Kernels reserve different amounts of memory: a smaller difference is the same machine.
_SAME_MEMORY = 0.05


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Properties of a machine that speed depends on.

    `cores` are those that this process may use, `instruction_sets` those of `INSTRUCTION_SETS` that the processor
    supports, `gpu` is the name of its NVIDIA GPU ("2 x NAME" for two equal ones), None without one.
    """

    cpu_model: str
    cores: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    gpu: str | None

    def differences(self, other: Hardware) -> dict[str, tuple[Any, Any]]:
        """Return the fields that differ, with both values. Memory may differ by 5%."""
        ours, theirs = asdict(self), asdict(other)
        if abs(self.memory_bytes - other.memory_bytes) <= _SAME_MEMORY * max(self.memory_bytes, other.memory_bytes):
            del ours["memory_bytes"]
        return {name: (value, theirs[name]) for name, value in ours.items() if value != theirs[name]}


@dataclass(frozen=True, kw_only=True)
class MatrixPeaks:
    """Highest operations/s of matrix multiplications measured on this machine; a multiply-add counts as two.

    `bf16_op_per_s` is None where no provider computes in bf16.
    """

    threads: int
    fp32_op_per_s: float
    int8_op_per_s: float
    bf16_op_per_s: float | None


def this_machine() -> Hardware:
    """Return the hardware of this machine. Runs `nvidia-smi` where it is installed."""
    flags = processor_flags(_CPUINFO)
    names = command_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader", timeout_s=30)
    return Hardware(
        cpu_model=cpu_model(),
        cores=usable_cores(),
        instruction_sets=tuple(name for name in INSTRUCTION_SETS if name in flags),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        gpu=None if names is None else gpu_name(names),
    )


def gpu_name(listing: str) -> str | None:
    """Return the GPUs' name from the output of `nvidia-smi`, one name a line; None where it lists none."""
    names = [line.strip() for line in listing.splitlines() if line.strip()]
    distinct = sorted(set(names))
    return ", ".join(name if names.count(name) == 1 else f"{names.count(name)} x {name}" for name in distinct) or None


def command_output(*command: str, timeout_s: float) -> str | None:
    """Return what a command prints; None where it fails, takes too long or is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


# A chain of matrix multiplications (M, K) @ (K, K): large enough that memory traffic overlaps with arithmetic, and that
# the provider's work on input and output is small. 2 cores with AVX512: 0.20 TFLOP/s at M = K = 1024 as at 2048.
_ROWS, _WIDTH, _DEPTH = 512, 2048, 4
_OPERATIONS = 2 * _DEPTH * _ROWS * _WIDTH * _WIDTH
_BUDGET_S = 0.4
_REPEATS = 3


def matrix_peaks(threads: int | None = None) -> MatrixPeaks:
    """Measure the peaks of matrix multiplications with `threads` threads: the best of onnxruntime's CPU providers.

    None stands for one thread a usable core. Takes about two seconds, up to five with the OpenVINO provider. Raises
    InputError for a number below 1, MissingDependencyError where onnx or onnxruntime is not installed.
    """
    threads = thread_count(threads)
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("onnx", "bench", "Measuring the matrix peaks") from error
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="twinspire-peaks-") as folder:
        path = Path(folder, "multiplications.onnx")
        for name, model, provider, precision in _candidates():
            path.write_bytes(model)
            options = OpenVinoOptions(inference_precision=precision)
            session = open_session(path, provider, threads=threads, openvino=options)
            best[name] = max(best.get(name, 0.0), _OPERATIONS / _seconds(session, _input(name)))
    return MatrixPeaks(
        threads=threads,
        fp32_op_per_s=best["fp32"],
        int8_op_per_s=best["int8"],
        bf16_op_per_s=best.get("bf16"),
    )


def _candidates() -> Iterator[tuple[str, bytes, Provider, InferencePrecision]]:
    fp32, int8 = _multiplications(quantized=False), _multiplications(quantized=True)
    yield "fp32", fp32, Provider.CPU, InferencePrecision.F32
    yield "int8", int8, Provider.CPU, InferencePrecision.F32
    if Provider.OPENVINO not in available():
        return
    yield "fp32", fp32, Provider.OPENVINO, InferencePrecision.F32
    yield "int8", int8, Provider.OPENVINO, InferencePrecision.F32
    if not {"avx512_bf16", "amx_bf16"}.isdisjoint(processor_flags(_CPUINFO)):
        yield "bf16", fp32, Provider.OPENVINO, InferencePrecision.BF16


def _multiplications(*, quantized: bool) -> bytes:
    """Build the chain of multiplications: of float32, or of uint8 with an int8 matrix between Q and DQ nodes."""
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    shape = [_ROWS, _WIDTH]
    # Keeps the variance of its input.
    matrix = generator.standard_normal((_WIDTH, _WIDTH)).astype(np.float32) / np.float32(_WIDTH**0.5)
    constants: dict[str, ArrayLike] = {"matrix": matrix}
    if quantized:
        levels = generator.integers(-127, 128, (_WIDTH, _WIDTH)).astype(np.int8)
        constants = {
            "levels": levels,
            "level": np.float32(1 / (74 * _WIDTH**0.5)),
            "no_shift": np.int8(0),
            "step": np.float32(0.02),
            "shift": np.uint8(128),
        }
    nodes = [] if not quantized else [helper.make_node("DequantizeLinear", ["levels", "level", "no_shift"], ["matrix"])]
    for place in range(_DEPTH):
        source, target = f"x{place}", f"x{place + 1}"
        if quantized:
            nodes.append(helper.make_node("DequantizeLinear", [source, "step", "shift"], [f"{source}_real"]))
            nodes.append(helper.make_node("MatMul", [f"{source}_real", "matrix"], [f"{target}_sum"]))
            nodes.append(helper.make_node("QuantizeLinear", [f"{target}_sum", "step", "shift"], [target]))
        else:
            nodes.append(helper.make_node("MatMul", [source, "matrix"], [target]))
    element_type = TensorProto.UINT8 if quantized else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "multiplications",
        [helper.make_tensor_value_info("x0", element_type, shape)],
        [helper.make_tensor_value_info(f"x{_DEPTH}", element_type, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def _input(name: str) -> NDArray[Any]:
    generator = np.random.default_rng(1)
    if name == "int8":
        return generator.integers(0, 256, (_ROWS, _WIDTH), np.uint8)
    return generator.standard_normal((_ROWS, _WIDTH)).astype(np.float32)


def _seconds(session: Session, values: NDArray[Any]) -> float:
    """Return the seconds of the fastest of several runs, after one to warm up."""
    session.run(None, {"x0": values})
    taken: list[float] = []
    while len(taken) < _REPEATS or sum(taken) < _BUDGET_S:
        start = time.perf_counter()
        session.run(None, {"x0": values})
        taken.append(time.perf_counter() - start)
    return min(taken)
