"""The machine that a figure was measured on: what it is, and the most that it could do."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinspire.errors import InputError, MissingDependencyError
from twinspire.towers import InferencePrecision, OpenVinoOptions, Provider
from twinspire.towers.auto_selection import INSTRUCTION_SETS, processor_flags
from twinspire.towers.providers import Session, available, open_session

_CPUINFO = Path("/proc/cpuinfo")
# A kernel keeps some memory for itself, another one a little more: what differs by less is the same machine.
_SAME_MEMORY = 0.05


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A machine, as far as speed depends on it.

    `cores` are those that this process may use, `instruction_sets` those of `INSTRUCTION_SETS` that the processor
    has, `gpu` the name of its NVIDIA GPU ("2 x NAME" of two equal ones), None where there is none.
    """

    cpu_model: str
    cores: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    gpu: str | None

    def differences(self, other: Hardware) -> dict[str, tuple[Any, Any]]:
        """Return what makes these two machines: field to both values. Memory may differ by 5%."""
        ours, theirs = asdict(self), asdict(other)
        if abs(self.memory_bytes - other.memory_bytes) <= _SAME_MEMORY * max(self.memory_bytes, other.memory_bytes):
            del ours["memory_bytes"]
        return {name: (value, theirs[name]) for name, value in ours.items() if value != theirs[name]}


@dataclass(frozen=True, kw_only=True)
class MatrixPeaks:
    """The most operations a second (a multiply-add counts as two) that matrix products reached on this machine.

    `bf16_op_per_s` is None where no provider computes in bf16.
    """

    threads: int
    fp32_op_per_s: float
    int8_op_per_s: float
    bf16_op_per_s: float | None


def this_machine() -> Hardware:
    """Look at this machine. Asks `nvidia-smi` where there is one."""
    flags = processor_flags(_CPUINFO)
    return Hardware(
        cpu_model=cpu_model(),
        cores=usable_cores(),
        instruction_sets=tuple(name for name in INSTRUCTION_SETS if name in flags),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        gpu=_gpu(),
    )


def usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_model(cpuinfo: Path = _CPUINFO) -> str:
    """Return the processor's name; its architecture where Linux does not say the name."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name")
    return next(names, platform.machine())


def gpu_name(listing: str) -> str | None:
    """Return the GPUs' name from what `nvidia-smi` lists, one name a line; None where it lists none."""
    names = [line.strip() for line in listing.splitlines() if line.strip()]
    distinct = sorted(set(names))
    return ", ".join(name if names.count(name) == 1 else f"{names.count(name)} x {name}" for name in distinct) or None


def _gpu() -> str | None:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):  # there is no driver, or no GPU that it drives
        return None
    return gpu_name(done.stdout)


# A chain of products (M, K) @ (K, K): at these sizes the operands' bytes are read while others are multiplied, and what
# a provider does to the input and the output is small beside the products. 2 cores with AVX512: 0.20 TFLOP/s at
# M = K = 1024 as at 2048.
_ROWS, _WIDTH, _DEPTH = 512, 2048, 4
_OPERATIONS = 2 * _DEPTH * _ROWS * _WIDTH * _WIDTH
_BUDGET_S = 0.4
_REPEATS = 3


def matrix_peaks(threads: int | None = None) -> MatrixPeaks:
    """Measure how fast matrix products are with so many threads, at best, by any of onnxruntime's CPU providers.

    None is as many as this process may use. It takes about two seconds, up to five with the OpenVINO provider. Raises
    InputError for a number below 1, MissingDependencyError where onnx or onnxruntime is not installed.
    """
    threads = usable_cores() if threads is None else threads
    if threads < 1:
        raise InputError(f"threads {threads}: expected at least 1")
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("onnx", "bench", "Measuring the matrix peaks") from error
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="twinspire-peaks-") as folder:
        path = Path(folder, "products.onnx")
        for kind, model, provider, precision in _candidates():
            path.write_bytes(model)
            options = OpenVinoOptions(inference_precision=precision)
            session = open_session(path, provider, threads=threads, openvino=options)
            best[kind] = max(best.get(kind, 0.0), _OPERATIONS / _seconds(session, _input(kind)))
    return MatrixPeaks(
        threads=threads,
        fp32_op_per_s=best["fp32"],
        int8_op_per_s=best["int8"],
        bf16_op_per_s=best.get("bf16"),
    )


def _candidates() -> Iterator[tuple[str, bytes, Provider, InferencePrecision]]:
    fp32, int8 = _products(quantized=False), _products(quantized=True)
    yield "fp32", fp32, Provider.CPU, InferencePrecision.F32
    yield "int8", int8, Provider.CPU, InferencePrecision.F32
    if Provider.OPENVINO not in available():
        return
    yield "fp32", fp32, Provider.OPENVINO, InferencePrecision.F32
    yield "int8", int8, Provider.OPENVINO, InferencePrecision.F32
    if not {"avx512_bf16", "amx_bf16"}.isdisjoint(processor_flags(_CPUINFO)):
        yield "bf16", fp32, Provider.OPENVINO, InferencePrecision.BF16


def _products(*, quantized: bool) -> bytes:
    """Build the chain of products: of float32, or of uint8 with an int8 matrix between Q and DQ nodes."""
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    shape = [_ROWS, _WIDTH]
    # Of a variance that keeps the products' own.
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
        given, made = f"x{place}", f"x{place + 1}"
        if quantized:
            nodes.append(helper.make_node("DequantizeLinear", [given, "step", "shift"], [f"{given}_real"]))
            nodes.append(helper.make_node("MatMul", [f"{given}_real", "matrix"], [f"{made}_sum"]))
            nodes.append(helper.make_node("QuantizeLinear", [f"{made}_sum", "step", "shift"], [made]))
        else:
            nodes.append(helper.make_node("MatMul", [given, "matrix"], [made]))
    kind = TensorProto.UINT8 if quantized else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x0", kind, shape)],
        [helper.make_tensor_value_info(f"x{_DEPTH}", kind, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def _input(kind: str) -> NDArray[Any]:
    generator = np.random.default_rng(1)
    if kind == "int8":
        return generator.integers(0, 256, (_ROWS, _WIDTH), np.uint8)
    return generator.standard_normal((_ROWS, _WIDTH)).astype(np.float32)


def _seconds(session: Session, values: NDArray[Any]) -> float:
    """Return the shortest of several runs, after one to warm up."""
    session.run(None, {"x0": values})
    taken: list[float] = []
    while len(taken) < _REPEATS or sum(taken) < _BUDGET_S:
        start = time.perf_counter()
        session.run(None, {"x0": values})
        taken.append(time.perf_counter() - start)
    return min(taken)
