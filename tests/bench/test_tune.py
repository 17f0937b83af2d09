"""`twinspire tune`: which points are tried, which one is chosen, how a run continues, and what is written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.commands import run_twinspire
from twinspire import sample_bundle
from twinspire.bundle import Tower
from twinspire.errors import InputError
from twinspire_bench.tune.journal import JOURNAL, Journal, Visit
from twinspire_bench.tune.knobs import DEFAULTS, Point, layouts, point
from twinspire_bench.tune.measure import Budget, Load, _highest
from twinspire_bench.tune.report import frontier, results
from twinspire_bench.tune.sweep import Swept, sweep
from twinspire_eval.records import Record
from twinspire_server.repository.config import read_config

Measure = Callable[[Point, float | None, Callable[[Load], None]], float]


def load(throughput_per_s: float, p99_ms: float) -> Load:
    """Return a visit of an open loop."""
    return Load(
        rate_per_s=throughput_per_s,
        sent=100,
        failures={},
        duration_s=1.0,
        throughput_per_s=throughput_per_s,
        goodput_per_s=throughput_per_s,
        p50_ms=p99_ms / 2,
        p95_ms=p99_ms,
        p99_ms=p99_ms,
    )


def machine(count: Counter[Point], speed: Callable[[dict[str, int]], float], noise: float = 0.0) -> Measure:
    """Return a measurement whose result is a function of the options, with noise."""
    draw = np.random.default_rng(0)

    def measure(options: Point, near_per_s: float | None, on_load: Callable[[Load], None]) -> float:
        assert (near_per_s is None) == (count[options] == 0)
        count[options] += 1
        found = speed(dict(options)) * (1 + noise * draw.standard_normal())
        on_load(load(found, 40.0))
        return found

    return measure


def speed_of(options: dict[str, int]) -> float:
    """Return a speed that is highest for two streams, batches of 16 and a queue of two."""
    streams = {1: 80.0, 2: 100.0}.get(options.get("streams", 1), 70.0)
    batch = {16: 1.2, 8: 1.1}.get(options.get("max_batch", 32), 1.0)
    return streams * batch * (1.1 if options.get("queue_batches") == 2 else 1.0) / options.get("instances", 1)


def run(folder: Path, measure: Measure, cores: int = 4) -> list[Swept]:
    """Sweep with a journal in a folder."""
    return sweep(Journal(folder, "setup"), measure, cores=cores, rounds=3, say=lambda _: None)


def test_the_best_combination_is_found_from_step_to_step(tmp_path: Path) -> None:
    """Each step starts from the best points of the step before, and the choice is the highest of the last rounds."""
    count = Counter[Point]()
    chosen, *others = run(tmp_path, machine(count, speed_of, noise=0.02))
    options = dict(chosen.options)
    assert (options["streams"], options["max_batch"], options["queue_batches"]) == (2, 16, 2)
    assert options["instances"] == 1
    assert all(swept.goodput_per_s <= 1.05 * chosen.goodput_per_s for swept in others if swept.again_per_s)
    assert DEFAULTS in [swept.options for swept in others if swept.again_per_s]
    assert len(count) < 30


def test_a_lucky_visit_does_not_choose(tmp_path: Path) -> None:
    """A point that was fast once, and is not in the rounds at the end, is not chosen."""
    count = Counter[Point]()

    def speed(options: dict[str, int]) -> float:
        lucky = options.get("max_batch") == 64 and "queue_batches" not in options and count[point(options)] == 1
        return 200.0 if lucky else speed_of(options)

    chosen, *others = run(tmp_path, machine(count, speed))
    assert dict(chosen.options).get("max_batch") != 64
    assert any(swept.sweep_per_s == 200.0 for swept in others)


def test_defaults_are_chosen_where_nothing_is_better(tmp_path: Path) -> None:
    """Of points that are equal within 2% the one with fewest options is chosen."""
    chosen, *_ = run(tmp_path, machine(Counter(), lambda options: 100.0 + 0.1 * len(options)))
    assert chosen.options == DEFAULTS


def test_no_point_within_the_budget_is_an_error(tmp_path: Path) -> None:
    """A budget that no rate meets is refused, with the option to raise."""
    with pytest.raises(InputError, match="p99"):
        run(tmp_path, lambda *_: 0.0)


def test_an_interrupted_sweep_continues_where_it_was(tmp_path: Path) -> None:
    """What the journal holds is not measured again, also behind a line that was cut; another setup starts anew."""
    first, second = Counter[Point](), Counter[Point]()
    whole = run(tmp_path / "whole", machine(Counter(), speed_of))
    measure = machine(first, speed_of)

    def killed(options: Point, near_per_s: float | None, on_load: Callable[[Load], None]) -> float:
        if sum(first.values()) == 9:
            raise KeyboardInterrupt
        return measure(options, near_per_s, on_load)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, killed)
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"setup": "set')
        file.write("\n")
    again = run(tmp_path, lambda options, near, on_load: second.update([options]) or machine_once(options, on_load))
    assert [swept.options for swept in again] == [swept.options for swept in whole]
    assert sum(second.values()) + 9 == len((tmp_path / JOURNAL).read_text().splitlines()) - 1
    assert Journal(tmp_path, "another").scores == {}
    assert Journal(tmp_path, "setup").scores[Visit(DEFAULTS, 0)] == speed_of({})


def machine_once(options: Point, on_load: Callable[[Load], None]) -> float:
    """Measure without noise."""
    on_load(load(speed_of(dict(options)), 40.0))
    return speed_of(dict(options))


@pytest.mark.parametrize("start", [20.0, 90.0, 100.0, 130.0, 400.0])
def test_the_highest_rate_within_the_budget_is_closed_in_on(start: float) -> None:
    """From below and above, the found goodput is within 7% of what the server can do, and never above it."""
    asked: list[float] = []

    def goodput(rate: float) -> float:
        asked.append(rate)
        return rate if rate <= 100.0 else 0.0

    found = _highest(goodput, start, down=0.75)
    assert (0.93 * 100 if start > 50 else start) <= found <= 100
    assert len(asked) <= 9


def test_nothing_within_the_budget_scores_zero() -> None:
    """Where no rate has a goodput the score is 0."""
    assert _highest(lambda _: 0.0, 100.0, down=0.75) == 0.0
    assert _highest(lambda rate: rate, 0.0, down=0.75) == 0.0


def test_refused_calls_are_beyond_the_budget() -> None:
    """A rate at which more than one call in a hundred fails is not served, however fast the others are."""
    budget = Budget(tower=Tower.IMAGE, p99_ms=50, visit_s=1)
    served = load(100, 40)
    assert served.is_within(budget)
    assert not load(100, 51).is_within(budget)
    failing = Load(**{**vars_of(served), "failures": {"ServerOverloadedError": 2}})
    assert not failing.is_within(budget)


def vars_of(found: Load) -> dict[str, object]:
    """Return the fields of a visit."""
    return {name: getattr(found, name) for name in Load.__dataclass_fields__}


def test_layouts_fit_the_cores() -> None:
    """Processes times threads are at most the cores, streams at most the threads of each."""
    for cores in (1, 2, 3, 8):
        for options in map(dict, layouts(cores)):
            assert options["instances"] * options["threads"] <= cores
            assert options["streams"] <= options["threads"]
    assert len(layouts(1)) == 1


def test_the_frontier_has_what_nothing_beats(tmp_path: Path) -> None:
    """Points with more p99 and less throughput than another are not on it; results name the best other point."""
    a, b = Visit(point({"streams": 1}), 0), Visit(point({"streams": 2}), 0)
    loads = {a: [load(50, 10), load(80, 30)], b: [load(60, 12), load(75, 40), load(90, 60)]}
    assert [found.throughput_per_s for _, found in frontier(loads)] == [50, 60, 80, 90]
    points = [Swept(a.options, 80, (80, 81, 82)), Swept(b.options, 60, (60, 60, 61))]
    document = results(points, loads, Budget(tower=Tower.IMAGE, p99_ms=50, visit_s=1))
    assert document["best_other_ratio"] == pytest.approx(60 / 81)
    assert len(document["points"][1]["loads"]) == 3


@pytest.mark.slow
def test_the_choice_is_in_the_repository_with_its_evidence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`tune` serves, loads, writes record and plot, and a repository whose config names the record in it."""
    pytest.importorskip("pytriton")
    out = tmp_path / "models"
    ran = run_twinspire(capfd, "tune", sample_bundle(), "--p99-ms", "2000", "-o", out, "--smoke")
    assert ran.status == 0, ran.err
    record = Record.load(tmp_path / "models.tuning" / "tuning.json")
    assert record.kind == "tuning"
    assert record.results["options"] == {}
    assert record.results["frontier"]
    for tower in ("image", "text"):
        model = out / f"scenes_{tower}"
        assert read_config(model).parameters["tuning"].string_value == "tuning.json"
        kept = json.loads((model / "1" / "tuning.json").read_text())
        assert kept["results"]["goodput_per_s"] == record.results["goodput_per_s"]
    with Image.open(tmp_path / "models.tuning" / "tuning.png") as plot:
        assert plot.size[0] > 600
    again = run_twinspire(capfd, "tune", sample_bundle(), "--p99-ms", "2000", "-o", out, "--smoke")
    assert again.status == 0, again.err
    assert "stopped" not in again.err  # no server was started


@pytest.mark.parametrize("option", ["--p99-ms=0", "--p99-ms=nan", "--visit=-1", "--tower=audio"])
def test_bad_options_are_refused_before_anything_is_served(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str
) -> None:
    """A budget that is no time, and a tower that is not measured, are status 2 and name the option."""
    words = ["tune", sample_bundle(), "-o", tmp_path / "models", "--p99-ms=50", option]
    ran = run_twinspire(capfd, *words)
    assert ran.status == 2
    assert option.partition("=")[0] in ran.err
    assert not (tmp_path / "models.tuning").exists()
