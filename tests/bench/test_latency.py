"""How fast towers answer: what is sent, what is counted, and what is refused."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twinspire.bundle import Padding, Precision, Tower
from twinspire.errors import BundleError, EngineError, InputError, ProviderError, ServerUnavailableError
from twinspire.towers import ModelStatistics, Provider
from twinspire.towers.providers import available
from twinspire.towers.validation import check_images, check_sequences
from twinspire_bench.latency.command import local_targets, server_target
from twinspire_bench.latency.measure import Case, CaseResult, LatencySettings, LatencyTarget, Load, cases, measure
from twinspire_bench.latency.report import compare_cases, latency_results, limits
from twinspire_eval.machine import MatrixPeaks
from twinspire_eval.payloads import image_payloads, text_payloads
from twinspire_eval.records import Record
from twinspire_eval.statistics import paired_ratio

PEAKS = MatrixPeaks(threads=2, fp32_op_per_s=1e9, int8_op_per_s=4e9, bf16_op_per_s=None)
BRIEF = LatencySettings(lengths=(4, 20), batches=(1, 3), rounds=3, visit_s=0.001)


class FakeTowers:
    """Answer at once and remember what came; raise `error` at every second call after `sound` sound ones."""

    def __init__(self, tiny: Any, *, error: Exception | None = None, sound: int = 0) -> None:
        self.dim, self.space = tiny.bundle.dim, tiny.bundle.space
        self.context_length = tiny.bundle.text.context_length
        self.images: list[NDArray[np.uint8]] = []
        self.texts: list[Sequence[NDArray[np.int32]]] = []
        self._error, self._sound = error, sound
        self._lock = threading.Lock()

    def encode_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Remember images."""
        with self._lock:
            self.images.append(images)
        return self._answer(len(images))

    def encode_texts(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Remember texts."""
        with self._lock:
            self.texts.append(sequences)
        return self._answer(len(sequences))

    def close(self) -> None:
        """Do nothing."""

    def statistics(self, tower: Tower) -> ModelStatistics:
        """Count as a server that computes two calls at a time does, warm-up of 100 included."""
        calls: Sequence[Any] = self.images if tower is Tower.IMAGE else self.texts
        return ModelStatistics(100 + len(calls), 100 + sum(map(len, calls)), 50 + len(calls) // 2)

    def _answer(self, rows: int) -> NDArray[np.float32]:
        count = len(self.images) + len(self.texts)
        if self._error is not None and count > self._sound and count % 2:
            raise self._error
        return np.zeros((rows, self.dim), np.float32)


def test_payloads_are_of_the_contract_and_never_repeat(tiny: Any) -> None:
    """A thousand batches are what towers take, of the size that was asked for, and no two of them are equal."""
    bundle = tiny.bundle
    images, sentences = image_payloads(bundle, batch=3, seed=1), text_payloads(bundle, batch=2, length=20, seed=(1, 2))
    seen = set()
    for index in range(1000):
        check_images(images[index], height=bundle.image.height, width=bundle.image.width)
        check_sequences(sentences[index], context_length=20, vocabulary_size=18, eos_id=bundle.text.eos_id)
        assert [len(ids) for ids in sentences[index]] == [20, 20]
        assert all(np.count_nonzero(ids == bundle.text.eos_id) == 1 for ids in sentences[index])
        assert not any((ids == bundle.text.pad_id).any() for ids in sentences[index])
        seen |= {images[index].tobytes(), b"".join(ids.tobytes() for ids in sentences[index])}
        seen |= {image.tobytes() for image in images[index]}
    assert len(seen) == 1000 * (1 + 1 + 3)
    assert len(images) > 1e9


def test_payloads_are_the_same_for_the_same_seed(tiny: Any) -> None:
    """A seed names a run of payloads; another seed gives others."""
    first, same, other = (image_payloads(tiny.bundle, batch=2, seed=seed)[7] for seed in ((1, 2), (1, 2), (1, 3)))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    first, same, other = (text_payloads(tiny.bundle, batch=2, length=9, seed=seed)[7] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (np.array(first) != np.array(other)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch": 0, "length": 5}, "batch"), ({"batch": 1, "length": 1}, r"\b1\b"), ({"batch": 1, "length": 21}, "21")],
)
def test_payloads_that_cannot_be_made_are_refused(tiny: Any, options: dict[str, int], message: str) -> None:
    """An empty batch and a text shorter than one word or longer than the context raise InputError."""
    with pytest.raises(InputError, match=message):
        text_payloads(tiny.bundle, seed=0, **options)


def test_cases_are_every_combination_with_the_targets_side_by_side(tiny: Any) -> None:
    """Images have no length; a setting names all but tower and target."""
    settings = LatencySettings(
        lengths=(4, 8), batches=(1, 2), loads=(Load(in_flight=1), Load(rate_per_s=2.5)), rounds=1
    )
    targets = [LatencyTarget(name=name, towers=FakeTowers(tiny)) for name in ("a", "b")]
    found = cases(targets, settings)
    assert len(found) == 2 * (2 * 2 + 2 * 2 * 2)
    assert [case.target for case in found] == ["a", "b"] * 12
    assert all((case.length is None) == (case.tower is Tower.IMAGE) for case in found)
    assert found[0].setting == "batch 1, in flight 1"
    assert found[-1].setting == "length 8, batch 2, 2.5 calls a second"


def test_every_case_is_visited_in_every_round(tiny: Any) -> None:
    """Batches and lengths are those asked for, each case has one figure a round and a latency for each answer."""
    towers = FakeTowers(tiny)
    found = measure(tiny.bundle, [LatencyTarget(name="fake", towers=towers)], BRIEF)
    assert len(found) == 2 + 4
    calls = {1: 0, 3: 0}
    for images in towers.images:
        calls[len(images)] += 1
    for result in found:
        assert result.items_per_s.shape == (3,)
        assert (result.items_per_s > 0).all()
        assert len(result.latencies_ms) >= 3
        assert result.failures == {}
        assert result.served is None
        if result.case.tower is Tower.IMAGE:
            assert len(result.latencies_ms) == calls[result.case.batch] - 1  # one to warm up
    assert {(len(batch), len(batch[0])) for batch in towers.texts} == {(1, 4), (1, 20), (3, 4), (3, 20)}


def test_items_are_counted_and_not_calls(tiny: Any) -> None:
    """A round's figure is the batch times its answers over its time: at most what the latencies allow."""
    settings = dataclasses.replace(BRIEF, towers=(Tower.IMAGE,), batches=(7,), rounds=1, visit_s=0.02)
    (result,) = measure(tiny.bundle, [LatencyTarget(name="fake", towers=FakeTowers(tiny))], settings)
    longest_s = result.latencies_ms.sum() / 1000
    assert result.items_per_s[0] <= 7 * len(result.latencies_ms) / longest_s
    assert result.items_per_s[0] >= 7 * len(result.latencies_ms) / (0.02 + longest_s + 10)


def test_an_open_loop_is_a_load_too(tiny: Any) -> None:
    """At a rate the visits send what falls due, whether or not more could be answered."""
    settings = dataclasses.replace(
        BRIEF, towers=(Tower.IMAGE,), batches=(1,), loads=(Load(rate_per_s=1000),), rounds=5, visit_s=0.02
    )
    (result,) = measure(tiny.bundle, [LatencyTarget(name="fake", towers=FakeTowers(tiny))], settings)
    assert 50 <= len(result.latencies_ms) <= 160  # Poisson of 100, six standard deviations


def test_failures_are_counted_and_the_rest_measured(tiny: Any) -> None:
    """A server that fails every second call has half of its answers in the figures."""
    towers = FakeTowers(tiny, error=ServerUnavailableError("gone"), sound=1)
    settings = dataclasses.replace(BRIEF, towers=(Tower.IMAGE,), batches=(1,))
    (result,) = measure(tiny.bundle, [LatencyTarget(name="fake", towers=towers)], settings)
    failed = result.failures["ServerUnavailableError"]
    assert len(result.latencies_ms) + failed == len(towers.images) - 1
    assert abs(len(result.latencies_ms) - failed) <= 1


def test_a_first_call_that_fails_is_raised(tiny: Any) -> None:
    """Where nothing can be measured the error says why, instead of a table of failures."""
    with pytest.raises(EngineError, match="broken"):
        measure(tiny.bundle, [LatencyTarget(name="fake", towers=FakeTowers(tiny, error=EngineError("broken")))], BRIEF)


def test_a_servers_counters_are_of_the_visits_alone(tiny: Any) -> None:
    """What it counted before and while warming up is left out."""
    towers = FakeTowers(tiny)
    settings = dataclasses.replace(BRIEF, towers=(Tower.IMAGE,), batches=(3,))
    (result,) = measure(tiny.bundle, [LatencyTarget(name="s", towers=towers, statistics=towers.statistics)], settings)
    assert result.served is not None
    assert result.served.requests == len(result.latencies_ms) == len(towers.images) - 1
    assert result.served.inferences == 3 * result.served.requests


def test_a_server_gets_no_request_twice(tiny: Any) -> None:
    """A response cache could answer none of them, not in another round or case or run either."""
    towers = FakeTowers(tiny)
    settings = dataclasses.replace(
        BRIEF, towers=(Tower.IMAGE,), batches=(1,), loads=(Load(in_flight=1), Load(in_flight=3))
    )
    for _ in range(2):
        measure(tiny.bundle, [LatencyTarget(name="s", towers=towers, statistics=towers.statistics)], settings)
    assert len({images.tobytes() for images in towers.images}) == len(towers.images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": ()}, "lengths"),
        ({"lengths": (1,)}, "lengths"),
        ({"batches": (1, 1)}, "batches"),
        ({"batches": (0,)}, "batches"),
        ({"loads": (Load(in_flight=1), Load(in_flight=1))}, "loads"),
        ({"towers": ()}, "towers"),
        ({"rounds": 0}, "rounds"),
        ({"visit_s": 0.0}, "visit_s"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(changes: dict[str, Any], message: str) -> None:
    """Empty and repeated lists and numbers that are not positive raise InputError."""
    with pytest.raises(InputError, match=message):
        dataclasses.replace(BRIEF, **changes)


def test_a_load_is_one_of_two_kinds(tiny: Any) -> None:
    """Calls in flight or a rate, positive; and there must be targets, each name once."""
    for wrong in ({}, {"in_flight": 1, "rate_per_s": 1.0}, {"in_flight": 0}, {"rate_per_s": -1.0}):
        with pytest.raises(InputError, match="in_flight"):
            Load(**wrong)  # type: ignore[arg-type]
    twice = LatencyTarget(name="a", towers=FakeTowers(tiny))
    for targets in ([], [twice, twice]):
        with pytest.raises(InputError, match="twice"):
            measure(tiny.bundle, targets, BRIEF)


def test_engines_and_providers_are_opened_by_name(tiny: Any) -> None:
    """Each combination is a target that says its precision and runs it; at the end all are closed."""
    with local_targets(tiny.bundle, providers=["cpu"], streams=[1, 2], threads=2) as (targets, skipped):
        assert [target.name for target in targets] == [
            "fp32 cpu",
            "fp32 cpu, 2 streams",
            "int8 cpu",
            "int8 cpu, 2 streams",
        ]
        assert [target.precision for target in targets] == ["fp32", "fp32", "int8", "int8"]
        assert skipped == []
        images = image_payloads(tiny.bundle, batch=2, seed=0)[0]
        for target in targets:
            model = tiny.int8 if target.precision is Precision.INT8 else tiny.model
            largest = np.abs(target.towers.encode_images(images) - model.encode_images(images)).max()
            print(f"{target.name}: largest difference {largest:.1e}")
            assert largest < 1e-5
    with pytest.raises(EngineError, match="closed"):
        targets[0].towers.encode_images(images)


def test_auto_is_named_after_what_it_chose(tiny: Any) -> None:
    """A target is never called `auto`; one that is measured already is refused."""
    with local_targets(tiny.bundle, precisions=["auto"], providers=["auto"]) as (targets, _):
        (target,) = targets
        assert "auto" not in target.name
    with (
        pytest.raises(InputError, match="already"),
        local_targets(tiny.bundle, precisions=["fp32", "fp32"], providers=["cpu"]),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"precisions": ["fp16"], "providers": ["cpu"]}, BundleError, "fp16"),
        ({"precisions": ["fp64"]}, InputError, "fp64"),
        ({"providers": ["npu"]}, InputError, "npu"),
        ({"providers": ["cuda"]}, ProviderError, "cuda"),
        ({"streams": [99], "threads": 2}, InputError, "99"),
    ],
)
def test_what_cannot_be_opened_is_an_error(
    tiny: Any, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """A combination named in full, an unknown name, and a provider that runs nothing."""
    if kind is ProviderError and Provider.CUDA in available():
        pytest.skip("a GPU is here")
    with pytest.raises(kind, match=message), local_targets(tiny.bundle, **options):
        pass


def test_what_was_not_named_in_full_is_skipped_with_its_reason(make_tiny: Any) -> None:
    """A bundle whose int8 engine does not load is measured at fp32, and says what was left out and why."""
    bundle = make_tiny(precisions=(Precision.FP32, Precision.INT8)).bundle
    engine = bundle.engine(Tower.IMAGE, Precision.INT8)
    engine.write_bytes(b"no model")
    with local_targets(bundle, providers=["cpu"]) as (targets, skipped):
        assert [target.name for target in targets] == ["fp32 cpu"]
    assert [each.name for each in skipped] == ["int8 cpu"]
    assert engine.name in skipped[0].reason


def test_limits_are_work_over_the_peaks(tiny: Any, make_tiny: Any) -> None:
    """The tiny towers' products at 1 GFLOP/s; a family that is always padded works on the whole context."""
    found = limits(tiny.bundle, [Precision.FP32], BRIEF, PEAKS)
    assert [(limit.tower, limit.length) for limit in found] == [("image", None), ("text", 4), ("text", 20)]
    assert found[0].items_per_s == pytest.approx(1e9 / (2 * 16 * 16 * 3 * 12))
    assert found[1].items_per_s == pytest.approx(1e9 / (2 * 8 * 12))
    padded = make_tiny(padding=Padding.MAX_LENGTH).bundle
    assert limits(padded, [Precision.FP32], BRIEF, PEAKS)[1].flops.operations == 2 * 8 * 12


def _result(target: str, figures: Sequence[float], batch: int = 1) -> CaseResult:
    return CaseResult(
        case=Case(tower=Tower.IMAGE, target=target, batch=batch, length=None, load=Load(in_flight=1)),
        items_per_s=np.array(figures, np.float64),
        latencies_ms=np.array([5.0, 1.0, 3.0]),
        failures={"EngineError": 2},
        served=None,
    )


def test_cases_stand_beside_their_limit_and_the_first_target(tiny: Any) -> None:
    """The ratio is of the same rounds and the same setting; a case of another setting is the first of its own."""
    results = [_result("a", [10, 20, 40]), _result("b", [20, 50, 80]), _result("b", [5, 5, 5], batch=8)]
    bounds = limits(tiny.bundle, [Precision.FP32], BRIEF, PEAKS)
    found = compare_cases(results, bounds, {"a": Precision.FP32, "b": None})
    assert found[0].ratio_to_first is None
    assert found[1].ratio_to_first == paired_ratio([20, 50, 80], [10, 20, 40])
    assert found[2].ratio_to_first is None
    assert found[0].limit is bounds[0]
    assert found[1].limit is None


def test_a_record_keeps_the_samples_of_every_case(tiny: Any) -> None:
    """Tower, target, setting: the samples with their statistics, the share of the limit, null where there is none."""
    bounds = limits(tiny.bundle, [Precision.FP32], BRIEF, PEAKS)
    found = compare_cases(
        [_result("a", [10, 20, 40]), _result("b", [0, 0, 0])], bounds, {"a": Precision.FP32, "b": None}
    )
    results = latency_results(found, bounds, PEAKS, {"int8 cpu": "broken"})
    record = Record(kind="latency", parameters={}, results=results)
    case = record.results["image"]["a"]["batch 1, in flight 1"]
    assert case["images_per_s"]["samples"] == [10, 20, 40]
    assert case["images_per_s"]["median"] == 20
    assert case["latency_ms"]["samples"] == [5, 1, 3]
    assert case["latency_ms"]["p50"] == 3
    assert case["share_of_limit"] == pytest.approx(20 / bounds[0].items_per_s)
    assert case["failures"] == {"EngineError": 2}
    assert case["served"] is None
    other = record.results["image"]["b"]["batch 1, in flight 1"]
    assert other["share_of_limit"] is None
    assert other["ratio_to_first"]["value"] == 0
    assert record.results["limits"]["text fp32, length 20"]["operations"] == 2 * 8 * 12
    assert record.results["skipped"] == {"int8 cpu": "broken"}
    assert record.results["matrix_peaks"]["bf16_op_per_s"] is None


def test_a_server_that_is_not_there_is_an_error(tiny: Any) -> None:
    """Connecting raises what the towers raise."""
    with pytest.raises(InputError, match="host:port"), server_target("no address", tiny.bundle):
        pass
