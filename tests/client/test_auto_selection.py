"""What a bundle was measured to be best with is what `auto` takes, on machines such as the one it was measured on."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinspire.bundle import Bundle, BundleWriter, Manifest, Precision, RecommendedRuntime, Tower
from twinspire.errors import BundleError, EngineError, InputError
from twinspire.towers import InferencePrecision, LocalTowers, OpenVinoOptions, Provider, auto_selection, local

HERE = ("avx2", "avx512_vnni")


def _choice(**changes: Any) -> RecommendedRuntime:
    values: dict[str, Any] = {
        "precision": Precision.INT8,
        "provider": "cpu",
        "inference_precision": "f32",
        "streams": 2,
        "threads": 2,
        "speed": 2.5,
        "cpu_model": "some processor",
        "instruction_sets": HERE,
        "gpu": None,
        "data": "100 pictures",
        "max_recall_drop": 0.005,
        "recall_drop": 0.001,
        "recall_drop_high": 0.002,
        "rejected": (),
        "measured": "2026-11-21T06:00:00+00:00",
    }
    return RecommendedRuntime(**{**values, **changes})


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this an x86 processor of other instruction sets, by default those that the choice was measured with."""

    def become(*flags: str) -> None:
        monkeypatch.setattr(auto_selection, "processor_flags", lambda: frozenset(flags))
        monkeypatch.setattr(auto_selection, "needs_runtime", lambda: False)

    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    become(*HERE, "fpu")
    return become


def _with_choice(tiny: Any, destination: Path, choice: RecommendedRuntime) -> Bundle:
    with BundleWriter(destination, base=tiny.bundle) as writer:
        return writer.commit(tiny.bundle.manifest.draft(), {}, auto=choice)


@pytest.fixture
def chosen(tiny: Any, tmp_path: Path, processor: Any) -> Callable[..., Bundle]:
    """Give the tiny bundle with a choice of these changes."""
    return lambda **changes: _with_choice(tiny, tmp_path / "chosen", _choice(**changes))


# In the manifest


def test_a_choice_is_read_as_it_was_written(chosen: Callable[..., Bundle]) -> None:
    """bundle.json keeps the choice, tuples and enum members included."""
    written = chosen(rejected=(Precision.FP16,))
    read = Bundle.open(written.path)
    assert read.manifest.auto == _choice(rejected=(Precision.FP16,))
    assert Manifest.from_json(read.manifest.to_json()) == read.manifest


def test_a_bundle_without_a_choice_is_written_as_before(tiny: Any) -> None:
    """The keys that came later are not there: what reads such bundles still does."""
    document = json.loads(tiny.bundle.manifest.to_json())
    assert "auto" not in document
    assert all("speed" not in engine["certificate"] for engine in document["engines"]["image"].values())
    assert tiny.bundle.manifest.auto is None


def test_speed_stays_in_a_certificate(tiny: Any) -> None:
    """A certificate's speed is read as it was written."""
    document = json.loads(tiny.bundle.manifest.to_json())
    document["engines"]["image"]["fp32"]["certificate"]["speed"] = {"threads": 2, "runtimes": [{"items_per_s": 1.5}]}
    read = Manifest.from_json(json.dumps(document))
    certificate = read.engines[Tower.IMAGE][Precision.FP32].certificate
    assert certificate is not None
    assert certificate.speed == {"threads": 2, "runtimes": [{"items_per_s": 1.5}]}
    assert json.loads(read.to_json()) == document


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("precision", "fp16", "engine"),
        ("precision", "int4", "int4"),
        ("provider", "a b", "provider"),
        ("streams", 3, "streams"),
        ("streams", 0, "streams"),
        ("speed", 0, "speed"),
        ("instruction_sets", "avx2", "instruction_sets"),
        ("instruction_sets", [1], r"instruction_sets\[0\]"),
        ("max_recall_drop", -0.1, "max_recall_drop"),
        ("recall_drop", 2, r"\brecall_drop\b"),
        ("rejected", ["int8"], "rejected"),
        ("rejected", ["fp32"], "rejected"),
        ("measured", "yesterday", "yesterday"),
    ],
)
def test_a_choice_is_read_strictly(chosen: Callable[..., Bundle], key: str, value: object, message: str) -> None:
    """What is out of range or unknown is a BundleError that names it."""
    document = json.loads(chosen().manifest.to_json())
    document["auto"][key] = value
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(json.dumps(document))


def test_a_choice_goes_on_to_the_next_bundle(chosen: Callable[..., Bundle], tmp_path: Path) -> None:
    """What is made of a bundle with a choice has it too, as long as the compared engines are the same."""
    base = chosen()
    other = _choice(precision=Precision.FP32)
    for name, changed, given, expected in (
        ("same", None, None, _choice()),
        ("other", None, other, other),
        ("int8", Precision.INT8, None, None),
        ("fp32", Precision.FP32, None, None),
    ):
        with BundleWriter(tmp_path / name, base=base) as writer:
            engines: dict[Any, Any] = {}
            if changed is not None:
                writer.put_file("another.onnx", base.engine(Tower.TEXT, Precision.FP32))
                with writer.path("another.onnx").open("ab") as file:
                    file.write(b"\n")
                engines = {(Tower.TEXT, changed): ("another.onnx", None)}
            written = writer.commit(base.manifest.draft(), engines, auto=given)
        assert written.manifest.auto == expected, name


# In the towers


def test_auto_is_the_choice(chosen: Callable[..., Bundle], tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Precision, provider and streams are those that won; it says so once, with the reason."""
    with caplog.at_level(logging.INFO, logger="twinspire"):
        towers = LocalTowers(chosen(), threads=2)
    assert str(towers.runtime) == "onnxruntime cpu int8, threads: 2, streams: 2"
    assert len(caplog.messages) == 1
    assert "some processor" in caplog.text
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    assert np.abs(towers.encode_images(images) - tiny.int8.encode_images(images)).max() <= 1e-5


def test_a_choice_of_fp32_is_kept(chosen: Callable[..., Bundle]) -> None:
    """Where fp32 was chosen `auto` takes it, certified int8 engines or not."""
    assert LocalTowers(chosen(precision=Precision.FP32, rejected=(Precision.INT8,))).runtime.precision == "fp32"


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"streams": 1}, "onnxruntime cpu int8, threads: 2"),
        ({"threads": 1}, "onnxruntime cpu int8, threads: 1"),
        ({"threads": 4}, "onnxruntime cpu int8, threads: 4, streams: 2"),
        ({"precision": "int8"}, "onnxruntime cpu int8, threads: 2, streams: 2"),
        ({"provider": "cpu"}, "onnxruntime cpu int8, threads: 2, streams: 2"),
        ({"precision": "int8", "provider": "cpu"}, "onnxruntime cpu int8, threads: 2, streams: 2"),
        ({"precision": "fp32"}, "onnxruntime cpu fp32, threads: 2"),
        ({"precision": "fp32", "streams": 2}, "onnxruntime cpu fp32, threads: 2, streams: 2"),
    ],
)
def test_what_is_named_is_used_as_named(chosen: Callable[..., Bundle], named: dict[str, Any], expected: str) -> None:
    """What agrees with the choice keeps its streams, never more than threads; for other engines it says nothing."""
    assert str(LocalTowers(chosen(), **{"threads": 2, **named}).runtime) == expected


@pytest.mark.parametrize(
    ("flags", "changes", "expected", "reason"),
    [
        (("avx2", "avx_vnni"), {}, "int8", "avx512_vnni"),
        (("avx2",), {}, "fp32", "no VNNI"),
        ((), {}, "fp32", "avx512_vnni"),
        (("avx_vnni",), {"precision": Precision.FP32}, "int8", "fp32 on cpu"),
        (
            ("avx_vnni",),
            {"precision": Precision.FP32, "rejected": (Precision.INT8,)},
            "fp32",
            "100 pictures",
        ),
        (HERE, {"provider": "cuda"}, "int8", "cuda"),
        (HERE, {"provider": "npu"}, "int8", "npu"),
    ],
)
def test_elsewhere_the_rules_decide(
    chosen: Callable[..., Bundle],
    processor: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    flags: tuple[str, ...],
    changes: dict[str, Any],
    expected: str,
    reason: str,
) -> None:
    """On another processor, or without the provider, the choice is passed over, which is said once with the reason."""
    processor(*flags)
    _no_cuda(monkeypatch)
    with caplog.at_level(logging.INFO, logger="twinspire"):
        towers = LocalTowers(chosen(**changes), threads=2)
    assert str(towers.runtime) == f"onnxruntime cpu {expected}, threads: 2"
    assert len(caplog.messages) == 1
    assert reason in caplog.text


def _no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    there = auto_selection.unavailable_reason
    monkeypatch.setattr(
        auto_selection,
        "unavailable_reason",
        lambda name: "is not in this onnxruntime" if name is Provider.CUDA else there(name),
    )


def test_a_gpu_that_was_not_measured_is_another_machine(
    chosen: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a GPU is here and none was there `auto` tries it first, then what was measured; by name the CPU is that."""
    monkeypatch.setattr(auto_selection, "unavailable_reason", lambda provider: None)
    bundle = chosen()
    tried = list(auto_selection.candidates(bundle, None, None))
    assert [candidate.provider for candidate in tried[:2]] == [Provider.CUDA, Provider.CPU]
    assert "GPU" in tried[0].reason
    assert tried[1].streams == 2
    assert [candidate.is_last for candidate in tried] == [False] * (len(tried) - 1) + [True]
    assert next(auto_selection.candidates(bundle, Provider.CPU, None)).streams == 2


def test_a_choice_that_does_not_open_is_passed_over(
    chosen: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning, and the rules go on; where its provider was named its error is raised."""
    opened = local.open_sessions

    def fail_in_streams(*arguments: Any, streams: int, **options: Any) -> Any:
        if streams > 1:
            raise EngineError("broken")
        return opened(*arguments, streams=streams, **options)

    monkeypatch.setattr(local, "open_sessions", fail_in_streams)
    bundle = chosen()
    assert str(LocalTowers(bundle, threads=2).runtime).endswith("int8, threads: 2")
    assert "broken" in caplog.text
    with pytest.raises(EngineError, match="broken"):
        LocalTowers(bundle, provider="cpu", threads=2)


def test_openvinos_arithmetic_is_the_choices(chosen: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenVINO computes float32 in is what was measured, unless it is named."""
    seen: list[Any] = []

    def watch(engine: Path, provider: Provider, **options: Any) -> Any:
        seen.append((provider, options["openvino"].inference_precision, options["streams"]))
        raise EngineError("only looked at")

    monkeypatch.setattr(
        auto_selection, "unavailable_reason", lambda provider: "is not here" if provider is Provider.CUDA else None
    )
    monkeypatch.setattr(local, "open_sessions", watch)
    bundle = chosen(provider="openvino", precision=Precision.FP32, inference_precision="bf16")
    for options in ({}, {"openvino": OpenVinoOptions()}):
        with pytest.raises(EngineError):
            LocalTowers(bundle, threads=2, provider="openvino", **options)
    assert seen == [
        (Provider.OPENVINO, InferencePrecision.BF16, 2),
        (Provider.OPENVINO, InferencePrecision.F32, 2),
    ]


def test_a_choice_says_what_it_is() -> None:
    """In the words of the runtime; what is not as usual alone is said."""
    assert str(_choice()) == "int8 on cpu, streams: 2"
    assert str(_choice(provider="openvino", inference_precision="bf16")) == "int8 on openvino in bf16, streams: 2"
    with pytest.raises(InputError):
        dataclasses.replace(_choice(), streams=9)
