"""Counters of a served model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelStatistics:
    """A server's counters of one tower since it was started, over all clients.

    `requests` counts answered requests, `inferences` the images or texts in them, `executions` the batches that
    were computed. The repository's warm-up is counted: compare with an earlier reading (`since`). Requests that Triton
    itself refuses are not; errors and refusals of the models of `twinspire serve` are counted as answers.
    """

    requests: int
    inferences: int
    executions: int

    @property
    def mean_batch_size(self) -> float | None:
        """Inferences per execution; None where nothing was executed."""
        return self.inferences / self.executions if self.executions else None

    def __add__(self, other: ModelStatistics) -> ModelStatistics:
        return ModelStatistics(
            self.requests + other.requests, self.inferences + other.inferences, self.executions + other.executions
        )

    def since(self, before: ModelStatistics) -> ModelStatistics:
        """Return what was counted after `before`, on a server that was not restarted in between."""
        return ModelStatistics(
            self.requests - before.requests, self.inferences - before.inferences, self.executions - before.executions
        )
