"""What a server counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelStatistics:
    """A server's counters of one tower since it was started, over all clients.

    What Triton refuses itself is left out; errors and refusals of the models of `twinspire serve` count as answers do.

    `requests` are those that came, `inferences` the images or texts in them, `executions` the batches that
    were computed. The repository's warm-up counts too: compare with an earlier reading (`since`).
    """

    requests: int
    inferences: int
    executions: int

    @property
    def mean_batch_size(self) -> float | None:
        """Inferences an execution; None where nothing was executed."""
        return self.inferences / self.executions if self.executions else None

    def since(self, before: ModelStatistics) -> ModelStatistics:
        """Return what came after `before`, on a server that was not restarted in between."""
        return ModelStatistics(
            self.requests - before.requests, self.inferences - before.inferences, self.executions - before.executions
        )
