"""Description of the machine."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import psutil
import pytest

from twinspire.errors import InputError, MissingDependencyError
from twinspire_eval.machine import Hardware, cpu_model, gpu_name, matrix_peaks, this_machine

XEON = Hardware(
    cpu_model="Intel(R) Xeon(R) Platinum 8481C",
    cores=2,
    instruction_sets=("avx2", "avx512f", "amx_int8"),
    memory_bytes=16 << 30,
    gpu=None,
)


def test_this_machine_is_the_one_psutil_sees() -> None:
    """Cores and memory are those that another library reports, the instruction sets are among Linux's flags."""
    found = this_machine()
    assert found.cores == len(psutil.Process().cpu_affinity())
    assert found.memory_bytes == psutil.virtual_memory().total
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    assert found.cpu_model in text
    assert all(f" {name} " in text.replace("\n", " ") for name in found.instruction_sets)


def test_cores_are_those_that_the_process_may_use() -> None:
    """A process bound to one core has one."""
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert this_machine().cores == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_processor_without_a_name_is_its_architecture(tmp_path: Path) -> None:
    """ARM's cpuinfo names no model; a system without the file has none either."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n", encoding="utf-8")
    assert cpu_model(cpuinfo) == cpu_model(tmp_path / "missing") == os.uname().machine
    cpuinfo.write_text("processor\t: 0\nmodel name\t: AMD EPYC 9004\nflags\t: avx2\n", encoding="utf-8")
    assert cpu_model(cpuinfo) == "AMD EPYC 9004"


def test_gpus_are_named_and_counted() -> None:
    """One line a GPU: one name, a count of equal ones, None without any."""
    assert gpu_name("NVIDIA H200\n") == "NVIDIA H200"
    assert gpu_name("NVIDIA H200\nNVIDIA L4\nNVIDIA H200\n") == "2 x NVIDIA H200, NVIDIA L4"
    assert gpu_name("\n") is None


def test_the_gpu_is_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an `nvidia-smi` that answers there is a GPU; with one that fails, or none, there is none."""
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert this_machine().gpu is None
    program.write_text("#!/bin/sh\necho 'NVIDIA H200'\n", encoding="utf-8")
    program.chmod(0o755)
    assert this_machine().gpu == "NVIDIA H200"
    program.write_text("#!/bin/sh\necho 'no driver'; exit 9\n", encoding="utf-8")
    assert this_machine().gpu is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cpu_model", "AMD EPYC"),
        ("cores", 4),
        ("instruction_sets", ("avx2",)),
        ("memory_bytes", 32 << 30),
        ("gpu", "NVIDIA L4"),
    ],
)
def test_machines_differ_in_any_field(field: str, value: object) -> None:
    """The field that differs is named, with both values."""
    other = dataclasses.replace(XEON, **{field: value})
    assert XEON.differences(other) == {field: (getattr(XEON, field), value)}


def test_a_little_less_memory_is_the_same_machine() -> None:
    """What another kernel keeps for itself does not make another machine."""
    assert XEON.differences(dataclasses.replace(XEON, memory_bytes=XEON.memory_bytes - (200 << 20))) == {}


@pytest.mark.slow
def test_peaks_are_measured() -> None:
    """A peak is positive and of the threads that were asked for; bf16, where no provider has it, is None."""
    found = matrix_peaks(1)
    assert found.threads == 1
    assert found.fp32_op_per_s > 1e8
    assert found.int8_op_per_s > 1e8
    assert found.bf16_op_per_s is None or found.bf16_op_per_s > 1e8


def test_peaks_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """No threads raise InputError; without onnx the error names the extra."""
    with pytest.raises(InputError, match="threads"):
        matrix_peaks(0)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match="onnx") as caught:
        matrix_peaks(1)
    assert (caught.value.package, caught.value.extra) == ("onnx", "bench")
