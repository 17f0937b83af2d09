"""Repositories for a GPU and for streams: engines prepared for TensorRT, and what is refused where it cannot run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from twinspire import sample_bundle
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import InputError, ProviderError
from twinspire.towers.providers import Provider, unavailable_reason
from twinspire_server.repository import Device, RepositoryRuntime, build_repository

CONTAINER_GPU: dict[str, Any] = {"runtime": RepositoryRuntime.CONTAINER, "device": Device.GPU}


# Engines for TensorRT


def test_engines_for_tensorrt_cast_first(tmp_path: Path) -> None:
    """For TensorRT the image engine is written with its cast first and computes the same; others stay as they are."""
    bundle = Bundle.open(sample_bundle())
    image, _, text, _ = build_repository([bundle.path], tmp_path / "tensorrt", precision="fp32", **CONTAINER_GPU)
    written = (image.folder / "1" / "model.onnx").read_bytes()
    graph = onnx.load_from_string(written).graph
    assert [node.op_type for node in graph.node if "image" in node.input] == ["Cast"]
    probes = bundle.probes().towers[Tower.IMAGE].inputs
    before, after = (
        ort.InferenceSession(engine, providers=["CPUExecutionProvider"]).run(None, {"image": probes})[0]
        for engine in (bundle.engine(Tower.IMAGE, Precision.FP32).read_bytes(), written)
    )
    np.testing.assert_array_equal(before, after)
    engine = bundle.engine(Tower.TEXT, Precision.FP32)
    assert onnx.load(text.folder.with_name("scenes_engine_text") / "1" / "model.onnx") == onnx.load(engine)
    for name, options in (("cuda", {**CONTAINER_GPU, "accelerator": "cuda"}), ("cpu", {"runtime": "container"})):
        image, *_ = build_repository([bundle.path], tmp_path / name, precision="fp32", **options)
        engine = bundle.engine(Tower.IMAGE, Precision.FP32)
        assert (image.folder / "1" / "model.onnx").read_bytes() == engine.read_bytes()


def test_building_for_tensorrt_again_keeps_the_version(tmp_path: Path) -> None:
    """The same engine prepared again is the same version, byte by byte."""
    build_repository([sample_bundle()], tmp_path, precision="fp32", **CONTAINER_GPU)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = build_repository([sample_bundle()], tmp_path, precision="fp32", **CONTAINER_GPU)
    assert [model.version for model in again] == [1, 1, 1, 1]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_int8_of_processors_is_not_for_tensorrt(tiny: Any, tmp_path: Path) -> None:
    """The precision int8 is refused where TensorRT would run it, and taken where CUDA does; nothing is written."""
    with pytest.raises(InputError, match="int8-tensorrt"):
        build_repository([tiny.bundle.path], tmp_path / "models", precision="int8", **CONTAINER_GPU)
    assert list(tmp_path.iterdir()) == []
    build_repository([tiny.bundle.path], tmp_path / "cuda", precision="int8", accelerator="cuda", **CONTAINER_GPU)


# What cannot run on this machine


@pytest.mark.skipif(unavailable_reason(Provider.CUDA) is None, reason="there is a GPU here")
def test_the_wheels_gpu_must_be_here(tiny: Any, tmp_path: Path) -> None:
    """Without a GPU here, a repository of the wheel for one is refused and nothing written; the container's is not."""
    with pytest.raises(ProviderError, match="cuda"):
        build_repository([tiny.bundle.path], tmp_path / "models", device="gpu")
    assert list(tmp_path.iterdir()) == []
    build_repository([tiny.bundle.path], tmp_path / "models", precision="fp32", **CONTAINER_GPU)


def test_streams_must_have_threads_and_cores(tiny: Any, tmp_path: Path) -> None:
    """Streams above the threads are refused, for the wheel also above the cores; the container may have more."""
    cores = len(os.sched_getaffinity(0))
    for options in (
        {"streams": 99},
        {"streams": cores + 1, "threads": cores + 1},
        {"streams": 2, "threads": 1},
        {"streams": 9, "threads": 8, "runtime": "container"},
        {"streams": cores + 1, "runtime": "container"},
    ):
        with pytest.raises(InputError, match="streams"):
            build_repository([tiny.bundle.path], tmp_path / "models", **options)
    assert list(tmp_path.iterdir()) == []
    build_repository([tiny.bundle.path], tmp_path / "cpu", streams=cores)
    build_repository([tiny.bundle.path], tmp_path / "container", streams=8, threads=64, runtime="container")
