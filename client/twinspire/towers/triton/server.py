"""One inference server of a bundle's models: inspected, trusted for a while, and asked for their outputs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.service_pb2 import ModelConfigRequest, ModelStatisticsRequest, ServerMetadataRequest

from twinspire._request_id import new_call_id
from twinspire._telemetry import detached_span
from twinspire.bundle import BundleDescription
from twinspire.errors import ServerError, ServerOverloadedError
from twinspire.towers.batching import InputBatch
from twinspire.towers.protocol import Towers
from twinspire.towers.triton.channel import Channel
from twinspire.towers.triton.exchange import Question, Window, ask, exchange
from twinspire.towers.triton.models import (
    ExpectedModel,
    InspectedModel,
    infer_request,
    missing_model,
    read_model,
    read_output,
    read_statistics,
    read_version,
)
from twinspire.towers.triton.retries import Deadline, RetryPolicy, TransientServerError
from twinspire.towers.triton.statistics import ModelStatistics
from twinspire.towers.triton.steps import Shared, Steps

# How long after its last response an inspected server is trusted. No server is replaced faster: the smallest bundle's
# takes 0.6 s to start. Replacing it while requests are in flight breaks them, which leads to another inspection;
# `twinspire reload` breaks none, and lets no other space or preprocessing take its place.
_TRUSTED_S = 0.25


@dataclass(frozen=True)
class ModelCall:
    """A call of `count` rows for one model.

    `batches` cuts it into requests for a server's model, `compute` computes it in this process.
    """

    model: ExpectedModel
    count: int
    batches: Callable[[InspectedModel], Iterator[InputBatch]]
    compute: Callable[[Towers], NDArray[np.float32]]


@dataclass
class _ServerState:
    """An inspected server, whose models, by name, match the bundle. `heard_at` is the time of its last response."""

    models: Mapping[str, InspectedModel]
    heard_at: float

    @property
    def is_trusted(self) -> bool:
        """Whether it answered just now: it is still the server that was inspected."""
        return time.monotonic() - self.heard_at < _TRUSTED_S


class Server:
    """The models of a bundle on one server. Its methods return steps and may be used by several calls at once.

    `models` are those that it must or may have; `in_flight` is the number of requests of a call in flight at a time.
    """

    def __init__(
        self, channel: Channel, bundle: BundleDescription, models: Sequence[ExpectedModel], *, in_flight: int | None
    ) -> None:
        self.address = channel.address
        self.version = ""
        self._channel, self._bundle, self._models, self._in_flight = channel, bundle, models, in_flight
        self._state: _ServerState | None = None

    def infer(
        self,
        call: ModelCall,
        deadline: Deadline,
        policy: RetryPolicy,
        *,
        inspection: Deadline | None = None,
        patience_s: float = math.inf,
    ) -> Steps[NDArray[np.float32]]:
        """Return the model's outputs for a call's rows, split into requests, within its deadline.

        The server is given up at the deadline of its `inspection`, and after `patience_s` without any answer.
        """
        expected = call.model
        results = np.empty((call.count, *expected.output.shape), np.float32)
        state = yield from self._current_state(inspection or deadline, policy)
        model = self._model_of(state, expected)
        source = f"the {expected.title} ({model.name} on {self.address})"
        is_trusted = True

        call_id, numbers = new_call_id(), itertools.count(1)

        def send(batch: InputBatch) -> Any:  # noqa: ANN401 - grpc.Future or asyncio.Task
            nonlocal is_trusted
            is_trusted &= state.is_trusted  # not where it waited for its turn
            request_id = f"{call_id}-{next(numbers)}"
            request = infer_request(expected, batch.arrays, timeout_s=deadline.left_s, request_id=request_id)
            observed = detached_span("request", tower=expected.role, model=model.name, rows=len(batch), id=request_id)
            future = self._channel.send("ModelInfer", request, deadline, tuple(observed.context()))
            future.add_done_callback(lambda ended: observed.end(_exception(ended)))
            return future

        def receive(batch: InputBatch, response: Any) -> None:  # noqa: ANN401 - the generated messages have no types
            results[batch.positions] = read_output(response, expected, count=len(batch), source=source)
            state.heard_at = time.monotonic()

        def inspect() -> Steps[_ServerState]:
            inspected = yield from self._inspect(deadline, policy)
            found = self._model_of(inspected, expected)
            if found != model:
                raise ServerError(
                    f"{source} was replaced during the call by one with other settings: {found} instead of {model}. "
                    "Repeat the call",
                    address=self.address,
                    model=model.name,
                )
            return inspected

        def recover(failure: TransientServerError) -> Steps[None]:
            nonlocal state, is_trusted
            if failure.is_overload:  # inspecting at each retry would send three more requests
                yield from policy.wait(failure)
                is_trusted = False
                return
            self._state = None
            yield from policy.wait(failure)
            state = yield from inspect()

        try:
            yield from exchange(
                self._channel,
                call.batches(model),
                send=send,
                rows=len,
                receive=receive,
                window=Window(self._in_flight, model.max_batch),
                recover=recover,
                policy=policy,
                deadline=deadline,
                patience_s=patience_s,
            )
            if not is_trusted:  # the server may have been replaced during a wait
                state = yield from inspect()
        except (ServerError, TransientServerError) as error:
            failure = error.error if isinstance(error, TransientServerError) else error
            failure.request_id = call_id
            if not isinstance(failure, ServerOverloadedError):
                self._state = None  # at the next call it may be another server
            raise
        return results

    @property
    def is_closed(self) -> bool:
        """Whether the towers were closed."""
        return self._channel.is_closed

    def inspect(self, deadline: Deadline, policy: RetryPolicy) -> Steps[None]:
        """Read the server's version and all models' configurations and check them against the bundle."""
        yield from self._inspect(deadline, policy)

    def statistics(self, model: ExpectedModel, deadline: Deadline, policy: RetryPolicy) -> Steps[ModelStatistics]:
        """Return the server's counters of a model."""
        question = Question("ModelStatistics", ModelStatisticsRequest(name=model.name))
        (answer,) = yield from policy.run(lambda: ask(self._channel, [question], deadline))
        return read_statistics(answer)

    def _current_state(self, deadline: Deadline, policy: RetryPolicy) -> Steps[_ServerState]:
        """Return the server's state, after another inspection where it is unknown or its last response is old."""
        state = self._state
        if state is not None and state.is_trusted:
            return state
        return (yield from self._inspect(deadline, policy))

    def _inspect(self, deadline: Deadline, policy: RetryPolicy) -> Steps[_ServerState]:
        def read() -> Steps[_ServerState]:
            state: _ServerState = yield Shared(self, self._read_state(deadline))
            return state

        self._state = None
        state = yield from policy.run(read)
        self._channel.models_seen = True
        self._state = state
        return state

    def _read_state(self, deadline: Deadline) -> Steps[_ServerState]:
        questions = [Question("ServerMetadata", ServerMetadataRequest())]
        for model in self._models:
            message = ModelConfigRequest(name=model.name)
            questions.append(Question("ModelConfig", message, optional=not model.is_required))
        server, *configs = yield from ask(self._channel, questions, deadline)
        models = {
            model.name: read_model(answer.config, model, self._bundle, address=self.address)
            for model, answer in zip(self._models, configs, strict=True)
            if answer is not None
        }
        self.version = read_version(server)
        return _ServerState(models, time.monotonic())

    def _model_of(self, state: _ServerState, expected: ExpectedModel) -> InspectedModel:
        """Return a model of the inspected server. Raises ServerRefusedError where it has none of that name."""
        if expected.name not in state.models:
            raise missing_model(expected, self._bundle, address=self.address)
        return state.models[expected.name]


def _exception(future: Any) -> BaseException | None:  # noqa: ANN401 - grpc.Future or asyncio.Task
    """Return what an ended future raised, also where it was cancelled."""
    try:
        error: BaseException | None = future.exception()
    except BaseException as cancelled:  # asyncio's CancelledError is no Exception
        return cancelled
    return error
