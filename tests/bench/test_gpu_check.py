"""The check of a machine with a GPU, rehearsed on the processor, and that it can fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from twinspire import _cuda
from twinspire.bundle import Precision
from twinspire.errors import EngineError
from twinspire_bench.gpu_check import towers
from twinspire_bench.gpu_check.__main__ import STEPS, main
from twinspire_bench.gpu_check.steps import CheckStep, Scope, SkippedError, Status, run_steps


def _run(*arguments: str) -> Any:
    application = typer.Typer()
    application.command()(main)
    return CliRunner().invoke(application, [*arguments])


def _options(bundle: Path, folder: Path) -> list[str]:
    return [
        "--bundle", str(bundle), "--work", str(folder), "--json", str(folder / "record.json"),
        "--rehearse", "--vectors", "5000", "--seconds", "0",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_rehearsal_runs_every_step(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    """On the processor all steps pass that need no GPU; the others say why they are skipped; the record holds all."""
    bundle = make_tiny(precisions=(Precision.FP32, Precision.FP16)).bundle.path
    done = _run(*_options(bundle, tmp_path))
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "record.json").read_text())["results"]
    assert list(results) == [step.name for step in STEPS]
    skipped = {name for name, outcome in results.items() if outcome["status"] == "skipped"}
    assert skipped == {"driver", "images/s of torch"}
    assert all(results[name]["reason"] for name in skipped)
    assert results["fp16 nodes"]["results"]["image"]["compared"] > 0
    for dtype in ("float32", "float16"):
        found = results[f"indexes of {dtype}"]["results"]
        assert {"flat", "ivf", "hnsw"} <= set(found)
        assert found["flat"]["recall_at_10"] == 1.0
        assert found["ivf"]["recall_at_10"] > 0.9


def test_wrong_engines_fail(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    """fp16 engines that are not those of the fp32 ones are found, by their vectors and by the values inside."""
    models = {Precision.FP16: make_tiny("other", seed=1).model}
    bundle = make_tiny("wrong", precisions=(Precision.FP32, Precision.FP16), models=models).bundle
    scope = Scope(bundle=bundle, checkpoint=None, work=tmp_path, rehearsal=True, vectors=5000, seconds=0)
    for step in (towers.providers, towers.fp16_nodes):
        failures = step(scope)["failures"]
        assert any("image" in failure for failure in failures)
        assert any("text" in failure for failure in failures)


@pytest.mark.skipif(_cuda.unavailable_reason() is None, reason="here is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    """Where no GPU is, and no rehearsal was asked for, nothing is run; the driver's reason is named."""
    done = _run("--work", str(tmp_path))
    assert done.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_a_failed_step_does_not_end_the_check(tiny: Any, tmp_path: Path) -> None:
    """Errors of ours and of libraries, findings that fail and a lack of time are each told; what follows still runs."""

    def raising(error: Exception) -> Callable[[Scope], Any]:
        def run(_: Scope) -> Any:
            raise error

        return run

    steps = [
        CheckStep("ours", raising(EngineError("broken")), 0),
        CheckStep("theirs", raising(RuntimeError("CUDA error\n at line 3")), 0),
        CheckStep("skipped", raising(SkippedError("no torch")), 0),
        CheckStep("late", lambda _: {}, 1000),
        CheckStep("wrong", lambda _: {"recall": 0.1, "failures": ["recall 0.1"]}, 0),
        CheckStep("right", lambda _: {"recall": 1.0, "failures": []}, 0),
    ]
    scope = Scope(bundle=tiny.bundle, checkpoint=None, work=tmp_path, rehearsal=True, vectors=5000, seconds=0)
    saved: list[int] = []
    outcomes = run_steps(
        steps, scope, limit_s=60, after_each=lambda found: saved.append(len(found)), say=lambda _: None
    )
    assert saved == [1, 2, 3, 4, 5, 6]
    found = {name: (outcome.status, outcome.reason) for name, outcome in outcomes.items()}
    assert found["ours"] == (Status.FAILED, "broken")
    assert found["theirs"][0] is Status.FAILED
    assert "RuntimeError" in str(found["theirs"][1])
    assert found["skipped"] == (Status.SKIPPED, "no torch")
    assert found["late"][0] is Status.SKIPPED
    assert found["wrong"] == (Status.FAILED, "recall 0.1")
    assert found["right"] == (Status.PASSED, None)
