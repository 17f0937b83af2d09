"""Benchmarks that are followed: the plan's steps, the history, the gate and the report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.commands import run_twinspire
from twinspire import sample_bundle
from twinspire.bundle import Bundle, Tower
from twinspire.errors import InputError
from twinspire_bench.latency.command import local_targets
from twinspire_bench.latency.measure import LatencyTarget
from twinspire_bench.tracking import interleaved, run
from twinspire_bench.tracking.gate import Verdict, judge, judge_rounds
from twinspire_bench.tracking.history import Entry, entries, machine_name
from twinspire_bench.tracking.plan import STEPS, Step, Suite, Target
from twinspire_eval.machine import this_machine
from twinspire_eval.records import Record, series

SPEED_NOISE = 0.08
"""Standard deviation of a run's speed, of its logarithm: what runs of one commit differ by on shared machines."""


def entry(
    kind: str, results: Any, *, commit: str = "a" * 40, visit: int = 1, cores: int = 2, **parameters: Any
) -> Entry:
    """Make an entry of a history, as `entries` reads it."""
    hardware = replace(this_machine(), cores=cores)
    record = Record(kind=kind, git_commit=commit, hardware=hardware, parameters=parameters, results=results)
    file = Path(f"{kind}-smoke-00000000-{visit}.json")
    return Entry(file, record, machine_name(hardware), commit, kind, "smoke", "0" * 8, visit)


def ingests(speeds: Sequence[float], **more: Any) -> list[Entry]:
    """Make entries of runs with these images/s."""
    return [
        entry("ingest", {"images_per_s": series([speed], "median")}, visit=visit, **more)
        for visit, speed in enumerate(speeds, 1)
    ]


def recall(first_ranks: Any, **more: Any) -> Entry:
    """Make a recall entry of one engine whose queries, in two languages and directions, have these ranks."""
    found = {"queries": len(first_ranks), "r1": {"value": float(np.mean(first_ranks == 1))}}
    found |= {"first_ranks": {"samples": first_ranks}}
    both = dict.fromkeys(("text_to_image", "image_to_text"), found)
    count = {"images": len(first_ranks), "captions": {"en": len(first_ranks)}, "data_sha256": "d"}
    return entry("recall", {"engines": {"int8": {"en": both, "zh": both}}, "above": {}}, **count, **more)


# The gate


def test_runs_of_one_commit_are_no_regression() -> None:
    """Ten comparisons of five and five runs with the noise of a shared machine raise nothing."""
    random = np.random.default_rng(1)
    for _ in range(10):
        base, head = (ingests(100 * np.exp(random.normal(0, SPEED_NOISE, 5))) for _ in range(2))
        assert [one.verdict for one in judge(base, head)] == [Verdict.EQUAL]


def test_a_slower_commit_is_a_regression() -> None:
    """Runs at 0.7 of the speed, with less noise than that, are one, and the ratio is in the interval."""
    random = np.random.default_rng(2)
    base, head = (ingests(speed * np.exp(random.normal(0, SPEED_NOISE / 2, 6))) for speed in (100, 70))
    (found,) = judge(base, head)
    assert found.verdict is Verdict.REGRESSED
    assert found.interval is not None
    assert found.interval.low < 0.7 < found.interval.high
    (turned,) = judge(head, base)
    assert turned.verdict is Verdict.IMPROVED


def test_rounds_in_turn_show_a_tenth() -> None:
    """Measured in turn, 10% less speed is a regression under a load that halves whole rounds; none is none."""
    random = np.random.default_rng(3)
    caught, alarms = 0, 0
    for _ in range(10):
        rounds = 100 * random.uniform(0.5, 1, 20)
        base = rounds * np.exp(random.normal(0, 0.02, 20))
        slower, equal = (share * rounds * np.exp(random.normal(0, 0.02, 20)) for share in (0.9, 1.0))
        caught += judge_rounds({"a": (base, slower)}, 0.05)[0].verdict is Verdict.REGRESSED
        alarms += judge_rounds({"a": (base, equal)}, 0.05)[0].verdict is Verdict.REGRESSED
    assert (caught, alarms) == (10, 0)


def test_too_few_runs_are_no_verdict() -> None:
    """Of two runs a figure has a ratio and no interval."""
    (found,) = judge(ingests([100, 100]), ingests([50, 50]))
    assert (found.verdict, found.interval, found.change) == (Verdict.UNJUDGED, None, pytest.approx(0.5))


def test_a_point_of_recall_is_a_regression() -> None:
    """One point of R@1 lost over 1,000 images is one, the same ranks are none, and ranks that swap are none."""
    random = np.random.default_rng(4)
    ranks = np.where(random.random(1000) < 0.95, 1, 2)
    lost, swapped = ranks.copy(), ranks.copy()
    lost[np.flatnonzero(ranks == 1)[:10]] = 3
    swapped[np.flatnonzero(ranks == 1)[:3]], swapped[np.flatnonzero(ranks == 2)[:3]] = 2, 1
    for now, verdict in ((lost, Verdict.REGRESSED), (ranks, Verdict.EQUAL), (swapped, Verdict.EQUAL)):
        (found,) = judge([recall(ranks)], [recall(now)])
        assert found.verdict is verdict
    assert judge([recall(ranks)], [recall(lost)])[0].change == pytest.approx(-1)


def test_two_machines_are_refused() -> None:
    """Speed of two machines is refused, recall alone is compared; a side of two machines or commits is refused."""
    ranks = np.ones(20, int)
    here, there = [*ingests([1, 1, 1]), recall(ranks)], [*ingests([1, 1, 1], cores=64), recall(ranks, cores=64)]
    with pytest.raises(InputError, match="--recall-only"):
        judge(here, there)
    assert [one.unit for one in judge(here, there, recall_only=True)] == ["points"]
    with pytest.raises(InputError, match="machines"):
        judge([*here, *there], here)
    with pytest.raises(InputError, match="commits"):
        judge(here, [*here, *ingests([1], commit="b" * 40)])
    with pytest.raises(InputError, match="in common"):
        judge([recall(ranks)], ingests([1]))


class Slowed:
    """Towers that compute each call again for a share of its time."""

    def __init__(self, towers: Any, share: float) -> None:
        self._towers, self._share = towers, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self._towers, name)

    def encode_images(self, images: Any) -> Any:
        """Encode, and a part again."""
        self._towers.encode_images(images[: max(1, round(self._share * len(images)))])
        return self._towers.encode_images(images)

    def encode_texts(self, texts: Any) -> Any:
        """Encode, and a part again."""
        self._towers.encode_texts(texts[: max(1, round(self._share * len(texts)))])
        return self._towers.encode_texts(texts)


@pytest.mark.slow
def test_a_slower_bundle_is_found_by_measuring_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head whose towers compute half of each batch twice has regressed; the same bundle again has not."""
    turns: list[bool] = []  # whether the next targets are slow

    @contextmanager
    def targets(bundle: Bundle, **options: Any) -> Iterator[tuple[list[LatencyTarget], list[Any]]]:
        is_slow = turns.pop(0)
        with local_targets(bundle, precisions=["int8"], providers=["cpu"], **options) as (found, skipped):
            yield [replace(one, towers=Slowed(one.towers, 0.5)) if is_slow else one for one in found], skipped

    monkeypatch.setattr(interleaved, "local_targets", targets)
    bundle = Bundle.open(sample_bundle())
    for is_slower in (True, False):
        turns += [False, is_slower]
        speeds = interleaved.measure_in_turn(bundle, bundle, rounds=9, threads=1)
        assert {name.split()[0] for name in speeds} == {str(tower) for tower in (Tower.IMAGE, Tower.TEXT)}
        verdicts = {one.name: one.verdict for one in judge_rounds(speeds, 0.05)}
        assert (Verdict.REGRESSED in verdicts.values()) is is_slower, verdicts


# Runs and the history

WRITES = """
import sys
from twinspire_eval.records import Record, series
Record(kind="ingest", parameters={}, results={"images_per_s": series([7.0], "median")}).save(sys.argv[-1])
"""


def toy(name: str, code: str, *, limit_s: float = 60, **more: Any) -> Step:
    """Make a step that runs Python code, whose last argument is the record to write."""
    return Step(
        name=name,
        command=(sys.executable, "-c", code),
        options={Suite.SMOKE: (), Suite.FULL: ()},
        uses=(),
        modules=more.get("modules", {}),
        limit_s={Suite.SMOKE: limit_s, Suite.FULL: limit_s},
    )


@pytest.fixture
def run_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[tuple[str, int], run.Outcome]]:
    """Run a plan of given steps at a clean commit; the outcomes by step and visit."""

    def run_them(*steps: Step, commit: str = "c" * 40, **options: Any) -> dict[tuple[str, int], run.Outcome]:
        monkeypatch.setattr(run, "STEPS", steps)
        monkeypatch.setattr(run, "git_commit", lambda: commit)
        target = Target(bundle=sample_bundle(), data="scenes:10", work=tmp_path / "work")
        found = run.run_suite(Suite.SMOKE, target, tmp_path / "history", say=lambda _: None, **options)
        return {(one.step, one.visit): one for one in found}

    return run_them


def test_a_step_that_fails_does_not_stop_the_others(run_steps: Callable[..., Any], tmp_path: Path) -> None:
    """A crash, a hang, a step without a record and one without its extra are outcomes with their reason."""
    found = run_steps(
        toy("crashes", "import os; print('before'); os.abort()"),
        toy("hangs", "import time; print('waiting', flush=True); time.sleep(600)", limit_s=1),
        toy("silent", "pass"),
        toy("absent", WRITES, modules={"no_such_module": "server"}),
        toy("works", WRITES),
    )
    states = {name: one.state for (name, _), one in found.items()}
    assert states == {
        "crashes": "failed",
        "hangs": "failed",
        "silent": "failed",
        "absent": "skipped",
        "works": "measured",
    }
    assert "before" in found["crashes", 1].reason
    assert "within 1 s" in found["hangs", 1].reason
    assert "no record" in found["silent", 1].reason
    assert "twinspire[server]" in found["absent", 1].reason
    (one,) = entries(tmp_path / "history")
    assert (one.step, one.machine, one.file) == ("works", machine_name(this_machine()), found["works", 1].file)


def test_a_run_goes_on_where_it_was(run_steps: Callable[..., Any]) -> None:
    """What a clean commit has measured is not measured again; a dirty tree, another step and --again are."""
    step = toy("works", WRITES)
    assert run_steps(step)["works", 1].state == "measured"
    found = run_steps(step, visits=2)
    assert [one.state for one in found.values()] == ["known", "measured"]
    assert run_steps(step, again=True)["works", 1].state == "measured"
    assert run_steps(toy("works", WRITES + "\n"))["works", 1].state == "measured"
    for _ in range(2):
        assert run_steps(step, commit="c" * 40 + "-dirty")["works", 1].state == "measured"
    found["works", 1].file.write_text("half a rec")
    assert run_steps(step)["works", 1].state == "measured"


def test_wrong_runs_are_refused(run_steps: Callable[..., Any], tmp_path: Path) -> None:
    """An unknown step and a history that cannot be written are errors before anything is measured."""
    with pytest.raises(InputError, match="works"):
        run_steps(toy("works", WRITES), only=("nothing",))
    (tmp_path / "history").write_text("a file")
    with pytest.raises(InputError, match="history"):
        run_steps(toy("works", WRITES))


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    """A record that does not fit fails its step, what was there before stays, and the rest goes on."""
    code = """
import resource, sys
from pathlib import Path
from twinspire import sample_bundle
from twinspire_bench.tracking import plan, run
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
step = plan.Step(name="works", command=(sys.executable, "-c", sys.argv[2]), options={plan.Suite.SMOKE: ()}, uses=(),
                 modules={}, limit_s={plan.Suite.SMOKE: 60})
run.STEPS = (step, step)
target = plan.Target(bundle=sample_bundle(), data="", work=Path(sys.argv[1], "work"))
for one in run.run_suite(plan.Suite.SMOKE, target, Path(sys.argv[1]), again=True, say=lambda _: None):
    print(one.state, one.reason)
"""
    found = subprocess.run(
        [sys.executable, "-c", code, tmp_path, WRITES], capture_output=True, text=True, check=True, timeout=120
    )
    lines = found.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("failed") and "File too large" in line for line in lines), found.stdout
    assert not list(tmp_path.rglob("*.json"))


def test_every_step_is_a_benchmark_that_starts(tmp_path: Path) -> None:
    """Each command of the plan takes its options: it prints help where --help is added."""
    target = Target(bundle=sample_bundle(), data="scenes:10", work=tmp_path)
    for step in STEPS:
        for suite in Suite:
            command = [*step.arguments(suite, target), "--json", "x.json", "--help"]
            found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert found.returncode == 0, found.stderr


# Pages and commands


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """A history of two commits with three runs of ingest and one of recall each."""
    for commit, speed in (("a" * 40, 100.0), ("b" * 40 + "-dirty", 50.0)):
        ranks = np.where(np.arange(200) < (190 if speed > 60 else 150), 1, 2)
        for one in [*ingests([speed, speed * 1.02, speed * 0.98], commit=commit), recall(ranks, commit=commit)]:
            folder = tmp_path / "history" / one.machine / commit
            folder.mkdir(parents=True, exist_ok=True)
            record = replace(one.record, subject={"bundle": "<scenes>", "space": "s", "data": "scenes"})
            record.save(folder / one.file.name)
    return tmp_path / "history"


def test_history_shows_the_range_over_runs(history: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The table has each figure's median and range by commit, dirty ones marked, and the PNG is drawn."""
    ran = run_twinspire(capsys, "bench", "history", history, "--png", tmp_path / "h.png")
    assert ran.status == 0, ran.err
    assert re.search(r"files to index\s+aaaaaaaa\s.*100\s+98 to 102\s+3", ran.out)
    assert "bbbbbbbb-dirty" in ran.out
    with Image.open(tmp_path / "h.png") as drawn:
        assert drawn.width > 1000


def test_a_report_is_one_page_whose_marks_lead_to_records(
    history: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It loads nothing, names are escaped, and each link's target is there."""
    ran = run_twinspire(capsys, "bench", "report", history, "-o", tmp_path / "report.html")
    assert ran.status == 0, ran.err
    page = (tmp_path / "report.html").read_text()
    assert "<scenes>" not in page
    assert not re.search(r"(?:src|href)=[\"']?https?:", page)
    links, targets = set(re.findall(r'href="#([\w-]+)"', page)), set(re.findall(r'id="([\w-]+)"', page))
    assert links
    assert links <= targets
    assert len(targets) == 8


def test_the_gate_ends_with_status_1_for_a_regression(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other way round it ends with 0; the JSON says what was found."""
    a, b = (next(history.glob(f"*/{letter}*")) for letter in "ab")
    ran = run_twinspire(capsys, "bench", "gate", a, b, "--json")
    assert ran.status == 1, ran.err
    verdicts = {one["name"].split()[0]: one["verdict"] for one in json.loads(ran.out)}
    assert verdicts == {"R@1": Verdict.REGRESSED, "files": Verdict.REGRESSED}
    assert run_twinspire(capsys, "bench", "gate", b, a).status == 0
    assert run_twinspire(capsys, "bench", "gate", a, a, "--recall-only").status == 0


def test_wrong_histories_are_errors(history: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A folder without records, and a record of another schema, are named."""
    ran = run_twinspire(capsys, "bench", "history", tmp_path / "none")
    assert (ran.status, "bench run" in ran.err) == (2, True)
    file = next(history.rglob("*.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 99}))
    ran = run_twinspire(capsys, "bench", "report", history, "-o", tmp_path / "r.html")
    assert ran.status == 2
    assert file.name in ran.err.replace("\n", "")
    assert not (tmp_path / "r.html").exists()
