"""The training loop of the sample's models: their optimizers, the learning rate, the log."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

import numpy as np
import torch
import typer
from torch import nn

Batch = TypeVar("Batch")
_LAYER = re.compile(r"\.layers?\.\d")  # CLIPModel calls its blocks `layers`, ViTModel `layer`


class Schedule(Protocol):
    """How long and how fast a model is trained."""

    @property
    def steps(self) -> int:
        """Number of batches."""

    @property
    def warmup_steps(self) -> int:
        """Number of steps in which the learning rate rises."""

    @property
    def learning_rate(self) -> float:
        """The full learning rate."""

    @property
    def weight_decay(self) -> float:
        """Weight decay of matrices."""


def build_optimizers(model: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices, and AdamW for embeddings, norms, biases, projections and temperature.

    Parameters that require no gradient are left alone.
    """
    matrices: list[torch.nn.Parameter] = []
    decayed: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if _LAYER.search(name) and parameter.ndim == 2:
            matrices.append(parameter)
        elif parameter.ndim >= 2:
            decayed.append(parameter)
        else:
            rest.append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(
            matrices,
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            groups,
            lr=schedule.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=schedule.weight_decay,
        ),
    ]


def learning_rate(step: int, schedule: Schedule) -> float:
    """Return the share of the full rate at a step: a linear rise, then a linear fall to zero."""
    rise = (step + 1) / schedule.warmup_steps
    fall = (schedule.steps - step) / (schedule.steps - schedule.warmup_steps)
    return max(0.0, min(1.0, rise, fall))


def minimise(
    model: nn.Module,
    loss_of: Callable[[Batch], torch.Tensor],
    batches: Iterable[Batch],
    schedule: Schedule,
    out: Path,
    *,
    save: Callable[[], None],
    header: Mapping[str, Any],
    after_step: Callable[[], None] = lambda: None,
    state: Callable[[], Mapping[str, Any]] = dict,
    report_every: int = 25,
) -> None:
    """Minimise `loss_of` batches over the parameters of `model` that require gradients.

    `save` is called after every 500 steps and at the end, `after_step` after each step. `header` and a line a report,
    with the mean loss and `state()`, are written to training.jsonl in `out`.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    optimizers = build_optimizers(model, schedule)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with (out / "training.jsonl").open("w", encoding="utf-8") as log:
        about = {
            "parameters": sum(parameter.numel() for parameter in trained),
            "device": str(trained[0].device),
            "torch": torch.__version__,
        }
        _report(log, {**header, **about})
        losses: list[float] = []
        for step, batch in zip(range(schedule.steps), batches, strict=False):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = schedule.learning_rate * learning_rate(step, schedule)
            loss = loss_of(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            after_step()
            losses.append(loss.item())
            if (step + 1) % report_every == 0:
                _report(
                    log,
                    {
                        "step": step + 1,
                        "loss": round(float(np.mean(losses[-report_every:])), 4),
                        **state(),
                        "wall_s": round(time.monotonic() - started, 1),
                        "cpu_s": round(time.process_time() - cpu_started, 1),
                    },
                )
            if (step + 1) % 500 == 0:
                save()
    save()


def _report(log: TextIO, record: dict[str, Any]) -> None:
    line = json.dumps(record)
    log.write(line + "\n")
    log.flush()
    typer.echo(line)
