"""The towers on a Triton Inference Server, over gRPC."""

from __future__ import annotations

import itertools
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_member, as_whole
from twinspire._telemetry import detached_span
from twinspire.bundle import Bundle, Tower
from twinspire.errors import EngineError, InputError, ServerError, ServerOverloadedError
from twinspire.towers.batching import InputBatch, row_batches, text_batches
from twinspire.towers.triton.options import LONGEST_DEADLINE_S, TlsOptions, checked_address
from twinspire.towers.triton.statistics import ModelStatistics
from twinspire.towers.validation import BundleTowers, check_embeddings

if TYPE_CHECKING:  # these load grpc and tritonclient, which importing a name must not
    from twinspire.towers.triton.channel import Deadline, TransientServerError
    from twinspire.towers.triton.exchange import RetryPolicy
    from twinspire.towers.triton.models import InspectedModel

# How long after its last response an inspected server is trusted. No server is replaced faster: the smallest bundle's
# takes 0.6 s to start. Replacing it while requests are in flight breaks them, which leads to another inspection.
_TRUSTED_S = 0.25

# The longest wait for a server at opening: one that restarts is back by then, otherwise the address is probably wrong.
_OPENING_S = 10.0


@dataclass
class _ServerState:
    """An inspected server, whose models match the bundle. `heard_at` is the time of its last response."""

    models: Mapping[Tower, InspectedModel]
    server_version: str
    heard_at: float


class TritonTowers(BundleTowers):
    """A bundle's models on a Triton Inference Server. Safe to use from several threads.

    `url` is host:port of its gRPC service, `name` that of the models `{name}_image` and `{name}_text`, by default
    the bundle's. The bundle defines the inputs and the space; its engines are not opened. Calls larger than the
    server's largest batch are split. `in_flight` is the number of requests of a call in flight at a
    time; None is four, or as many as fill two of the server's largest batches. With `send_images_singly` every
    image is a request of its own and the server forms the batches.

    Every call ends within `deadline_s` seconds, with the whole result or an error. Until then, requests that failed for
    a transient reason are sent again with exponential backoff: the server is unreachable or stopping, a model's process
    died, or the queue was full. Encoding changes nothing on the server, so this is safe; answered requests are not
    repeated. After a reconnect the models are inspected again before results are used; all servers behind one address
    must be equal. `max_retries` bounds the retries without an answer in between; None does not.

    Opening is such a call too, but gives up after 10 seconds: a server that restarts is back by then, otherwise the
    address is probably wrong.

    Open it after a fork, not before: gRPC's threads do not survive in the child, where encoding raises EngineError.

    Raises InputError for an unusable argument, BundleError for a bundle that needs a later version, SpaceMismatchError
    where a model is of another space than the bundle, ServerUnavailableError where the server does not answer,
    ServerOverloadedError where its queue is full until the deadline, ServerRefusedError where it has no such models,
    ServerError where they violate the contract, EngineError where a response is not a message of Triton's protocol.
    """

    def __init__(
        self,
        url: str,
        bundle: Bundle,
        *,
        name: str | None = None,
        deadline_s: float = 30.0,
        in_flight: int | None = None,
        max_retries: int | None = None,
        tls: TlsOptions | None = None,
        send_images_singly: bool = False,
    ) -> None:
        from twinspire.towers.triton.channel import Channel
        from twinspire.towers.triton.models import largest_response_bytes

        super().__init__(bundle)
        self._address = checked_address(url)
        self._models = {tower: f"{bundle.name if name is None else name}_{tower}" for tower in bundle.towers}
        self._deadline_s = _checked_seconds(deadline_s)
        self._in_flight = None if in_flight is None else as_whole(in_flight, "in_flight", minimum=1)
        self._max_retries = None if max_retries is None else as_whole(max_retries, "max_retries", minimum=0)
        self._send_images_singly = send_images_singly
        self._process = os.getpid()
        self._state: _ServerState | None = None
        largest = largest_response_bytes(bundle.dim * bundle.vectors_per_item)
        self._channel = Channel(self._address, tls, max_response_bytes=largest)
        try:
            deadline = self._begin(limit_s=_OPENING_S)
            policy = self._retry_policy(deadline)
            self._server_version = self._inspect(deadline, policy).server_version
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<TritonTowers at {self._address}>"

    @property
    def address(self) -> str:
        """The server's host:port."""
        return self._address

    @property
    def server_version(self) -> str:
        """Triton's version, from the last inspection."""
        return self._server_version

    @property
    def runtime(self) -> str:
        """The server, for people to read."""
        return f"Triton {self._server_version} at {self._address}"

    def encode_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode (N, H, W, 3) uint8 RGB to (N, D) float32, L2-normalised, or (N, Q, D) of Q vectors; N may be 0.

        Raises InputError for another dtype or shape, ServerError as opening does, EngineError where the response is not
        N unit vectors.
        """
        self._check_images(images)

        def requests(model: InspectedModel) -> Iterator[InputBatch]:
            return row_batches(images, batch=1 if self._send_images_singly else model.max_batch)

        return self._encode(Tower.IMAGE, len(images), requests)

    def encode_texts(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Encode N 1-D int32 arrays of token ids to (N, D) float32, L2-normalised; N may be 0.

        Each holds start and end token and no padding. Raises InputError, with its position, for anything else,
        ServerError as opening does, EngineError where the response is not N unit vectors.
        """
        self._check_sequences(sequences)

        def requests(model: InspectedModel) -> Iterator[InputBatch]:
            return text_batches(sequences, self._bundle.text, batch=model.max_batch, lengths=model.text_lengths)

        return self._encode(Tower.TEXT, len(sequences), requests)

    def encode_audio(self, spectrograms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode (N, F, M) float32 log-mel spectrograms to (N, D) float32, L2-normalised; N may be 0.

        Raises InputError for another dtype or shape and for values that are not finite, ServerError as opening does,
        EngineError where the response is not N unit vectors.
        """
        self._check_audio(spectrograms)

        def requests(model: InspectedModel) -> Iterator[InputBatch]:
            return row_batches(spectrograms, batch=model.max_batch)

        return self._encode(Tower.AUDIO, len(spectrograms), requests)

    def statistics(self, tower: Tower | str) -> ModelStatistics:
        """Return the server's counters of a tower. Raises ServerError as opening does, BundleError for an absent tower.

        The server counts a batch some milliseconds after its responses went out.
        """
        from tritonclient.grpc.service_pb2 import ModelStatisticsRequest

        from twinspire.towers.triton.models import read_statistics

        tower = as_member(tower, Tower, "tower")
        self._bundle.manifest.tower(tower)
        model = self._models[tower]
        deadline = self._begin()
        requests = [("ModelStatistics", ModelStatisticsRequest(name=model))]
        policy = self._retry_policy(deadline)
        (answer,) = policy.run(lambda: self._channel.ask(requests, deadline))
        return read_statistics(answer)

    def close(self) -> None:
        """Close the connection. Encoding after it, or meanwhile, raises EngineError; closing twice does nothing."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _encode(
        self, tower: Tower, count: int, requests: Callable[[InspectedModel], Iterator[InputBatch]]
    ) -> NDArray[np.float32]:
        """Encode `count` rows, split into `requests`, within one deadline."""
        from twinspire.towers.triton.exchange import Window, exchange
        from twinspire.towers.triton.models import infer_request, read_embeddings

        deadline = self._begin()
        output_shape = self._bundle.output_spec(tower).shape
        embeddings = np.empty((count, *output_shape), np.float32)
        if count == 0:
            return embeddings
        policy = self._retry_policy(deadline)
        state = self._current_state(deadline, policy)
        model, spec = state.models[tower], self._bundle.input_spec(tower)
        source = f"the {tower} tower ({model.name} on {self._address})"
        is_trusted = True
        call_id, numbers = uuid.uuid4().hex[:16], itertools.count(1)

        def send(batch: InputBatch) -> Any:  # noqa: ANN401 - grpc.Future
            request_id = f"{call_id}-{next(numbers)}"
            request = infer_request(model.name, spec, batch.array, timeout_s=deadline.left_s, request_id=request_id)
            observed = detached_span("request", tower=tower, model=model.name, rows=len(batch.array), id=request_id)
            future = self._channel.send("ModelInfer", request, deadline, metadata=observed.context())
            future.add_done_callback(lambda ended: observed.end(_exception(ended)))
            return future

        def inspect() -> _ServerState:
            inspected = self._inspect(deadline, policy)
            if inspected.models[tower] != model:
                raise ServerError(
                    f"{source} was replaced during the call by one with other settings: {inspected.models[tower]} "
                    f"instead of {model}. Repeat the call",
                    address=self._address,
                    model=model.name,
                )
            return inspected

        def recover(failure: TransientServerError) -> None:
            nonlocal state, is_trusted
            if failure.is_overload:  # inspecting at each retry would send three more requests
                policy.wait(failure)
                is_trusted = False
                return
            self._state = None
            policy.wait(failure)
            state = inspect()

        answers = exchange(
            self._channel,
            requests(model),
            send=send,
            rows=lambda batch: len(batch.array),
            window=Window(self._in_flight, model.max_batch),
            recover=recover,
            policy=policy,
            deadline=deadline,
        )
        try:
            with closing(answers):
                for batch, response in answers:
                    shape = (len(batch.array), *output_shape)
                    output = read_embeddings(response, shape=shape, source=source)
                    embeddings[batch.positions] = check_embeddings(output, shape=shape, source=source, tower=tower)
            if not is_trusted:  # the server may have been replaced during a wait
                state = inspect()
        except ServerError as error:
            error.request_id = call_id
            if not isinstance(error, ServerOverloadedError):
                self._state = None  # at the next call it may be another server
            raise
        state.heard_at = time.monotonic()
        return embeddings

    def _begin(self, *, limit_s: float = math.inf) -> Deadline:
        """Begin a call, of at most `limit_s`.

        Raises EngineError where these towers are closed or were opened before a fork.
        """
        from twinspire.towers.triton.channel import Deadline

        self._channel.check_open()
        if os.getpid() != self._process:
            raise EngineError(
                f"these towers were opened in process {self._process} and are used in {os.getpid()}, after a fork, "
                "which connections do not survive: open them in the process that uses them"
            )
        return Deadline.after(min(self._deadline_s, limit_s))

    def _retry_policy(self, deadline: Deadline) -> RetryPolicy:
        from twinspire.towers.triton.exchange import RetryPolicy

        return RetryPolicy(self._channel, deadline, max_retries=self._max_retries)

    def _current_state(self, deadline: Deadline, policy: RetryPolicy) -> _ServerState:
        """Return the server's state, after another inspection where it is unknown or its last response is old."""
        state = self._state
        if state is not None and time.monotonic() - state.heard_at < _TRUSTED_S:
            return state
        return self._inspect(deadline, policy)

    def _inspect(self, deadline: Deadline, policy: RetryPolicy) -> _ServerState:
        """Read the server's version and both models' configurations and check them against the bundle."""
        self._state = None
        state = policy.run(lambda: self._read_state(deadline))
        self._server_version = state.server_version
        self._channel.models_seen = True
        self._state = state
        return state

    def _read_state(self, deadline: Deadline) -> _ServerState:
        from tritonclient.grpc.service_pb2 import ModelConfigRequest, ServerMetadataRequest

        from twinspire.towers.triton.models import read_model, read_version

        requests = [("ServerMetadata", ServerMetadataRequest())]
        requests += [("ModelConfig", ModelConfigRequest(name=name)) for name in self._models.values()]
        server, *configs = self._channel.ask(requests, deadline)
        models = {
            tower: read_model(answer.config, name, tower, self._bundle, address=self._address)
            for (tower, name), answer in zip(self._models.items(), configs, strict=True)
        }
        return _ServerState(models, read_version(server), time.monotonic())


def _exception(future: Any) -> BaseException | None:  # noqa: ANN401 - grpc.Future
    """Return what an ended future raised, also where it was cancelled."""
    try:
        error: BaseException | None = future.exception()
    except Exception as cancelled:
        return cancelled
    return error


def _checked_seconds(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LONGEST_DEADLINE_S:
        raise InputError(
            f"deadline_s {value!r}: expected a number of seconds above 0, at most {LONGEST_DEADLINE_S:g}",
            option="deadline_s",
        )
    return float(value)
