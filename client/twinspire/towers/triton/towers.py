"""Both towers on a Triton Inference Server, over gRPC."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_member
from twinspire.bundle import Bundle, Tower
from twinspire.errors import EngineError, InputError, ServerError, ServerOverloadedError
from twinspire.towers.local import vocabulary_size
from twinspire.towers.triton.batches import RequestBatch, Window, image_requests, text_requests
from twinspire.towers.triton.options import LONGEST_DEADLINE_S, TlsOptions, checked_address
from twinspire.towers.triton.statistics import ModelStatistics
from twinspire.towers.validation import check_embeddings, check_images, check_sequences

if TYPE_CHECKING:  # these load grpc and tritonclient, which importing a name must not
    from twinspire.towers.triton.channel import Deadline, TransientServerError
    from twinspire.towers.triton.models import ServedModel
    from twinspire.towers.triton.retries import RetryPolicy

# A server whose models were inspected is trusted so long after its last answer. None is exchanged for another in less:
# the smallest bundle's takes 0.6 s to start. One that is exchanged while requests are in flight breaks these, and
# is inspected again for that.
_TRUSTED_S = 0.25

# How long opening waits for a server at most: one that is restarted is back by then, and an address where nobody
# listens is a mistake.
_OPENING_S = 10.0


@dataclass
class _ServerState:
    """An inspected server: its models fit the bundle. `heard_at` is when it last answered."""

    models: Mapping[Tower, ServedModel]
    server_version: str
    heard_at: float


class TritonTowers:
    """A bundle's two models on a Triton Inference Server. May be used from several threads at once.

    `url` is host:port of its gRPC service, `name` that of the models `{name}_image` and `{name}_text`, by default
    the bundle's. The bundle says what goes in and which space must come out; its engines are not opened. What
    exceeds the server's largest batch is split. `in_flight` is how many requests of a call are in flight at a
    time; None is four, or as many as fill two of the server's largest batches. With `send_images_singly` every
    image is a request of its own and the server does the batching.

    Every call ends `deadline_s` seconds after it began, with the whole answer or an error. Until then, requests that
    failed for the moment are sent again after exponentially growing waits: the server is not there or is being stopped,
    the process of its model died, or it refused because its queue is full. Encoding changes nothing on the server, so
    that this is safe, and what was answered is not asked for again. A server that comes back is inspected again before
    its answers are used; the servers behind one address must be equal. `max_retries` bounds how often a call is
    retried without an answer in between; None does not.

    Opening is such a call too, but gives up after 10 seconds: a server that is restarted is back by then, and where
    nobody listens for longer the address is probably wrong.

    Open it after a fork, not before: gRPC's threads do not live on in the child, where encoding raises EngineError.

    Raises InputError for an unusable argument, SpaceMismatchError where a model is of another space than the bundle,
    ServerUnavailableError where the server does not answer, ServerOverloadedError where it refuses until the deadline
    because it has too many requests, ServerRefusedError where it has no such models, ServerError where they are not of
    the contract, EngineError where it answers with what is no message of Triton's protocol.
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
        from twinspire.towers.triton.models import largest_answer_bytes

        self._address = checked_address(url)
        self._bundle = bundle
        self._models = {tower: f"{bundle.name if name is None else name}_{tower}" for tower in Tower}
        self._deadline_s = _checked_seconds(deadline_s)
        self._in_flight = None if in_flight is None else _checked_count("in_flight", in_flight, minimum=1)
        self._max_retries = None if max_retries is None else _checked_count("max_retries", max_retries, minimum=0)
        self._send_images_singly = send_images_singly
        self._vocabulary_size = vocabulary_size(bundle.tokenizer_path)
        self._process = os.getpid()
        self._state: _ServerState | None = None
        self._channel = Channel(self._address, tls, max_answer_bytes=largest_answer_bytes(bundle.dim))
        try:
            deadline = self._begin(limit_s=_OPENING_S)
            policy = self._retry_policy(deadline, max_retries=max_retries)
            self._server_version = self._inspect(deadline, policy).server_version
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<TritonTowers at {self._address}>"

    @property
    def dim(self) -> int:
        """The embedding's length D."""
        return self._bundle.dim

    @property
    def space(self) -> str:
        """What names the embeddings that may be compared with these."""
        return self._bundle.space

    @property
    def context_length(self) -> int:
        """The most token ids that one text may have, start and end included."""
        return self._bundle.text.context_length

    @property
    def address(self) -> str:
        """The host:port that was given."""
        return self._address

    @property
    def server_version(self) -> str:
        """Triton's version, as the server last reported it."""
        return self._server_version

    @property
    def runtime(self) -> str:
        """What runs the towers, in words."""
        return f"Triton {self._server_version} at {self._address}"

    def encode_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode (N, S, S, 3) uint8 RGB to (N, D) float32, L2-normalised; N may be 0.

        Raises InputError for another dtype or shape, ServerError as the class has it, EngineError where the
        server answers with anything but N unit vectors.
        """
        check_images(images, size=self._bundle.image.size)

        def requests(model: ServedModel) -> Iterator[RequestBatch]:
            return image_requests(images, batch=1 if self._send_images_singly else model.max_batch)

        return self._encode(Tower.IMAGE, len(images), requests)

    def encode_texts(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Encode N 1-D int32 arrays of token ids to (N, D) float32, L2-normalised; N may be 0.

        Each holds start and end token and no padding. Raises InputError, with its position, for anything else,
        ServerError as the class has it, EngineError where the server answers with anything but N unit vectors.
        """
        text = self._bundle.text
        check_sequences(
            sequences,
            context_length=text.context_length,
            vocabulary_size=self._vocabulary_size,
            eos_id=text.eos_id,
        )

        def requests(model: ServedModel) -> Iterator[RequestBatch]:
            return text_requests(sequences, lengths=model.text_lengths, settings=text, batch=model.max_batch)

        return self._encode(Tower.TEXT, len(sequences), requests)

    def statistics(self, tower: Tower | str) -> ModelStatistics:
        """Ask what the server counted of a tower so far. Raises ServerError as the class has it.

        The server counts a batch when it is done with it, some milliseconds after its answers went out.
        """
        from twinspire.towers.triton.models import read_statistics, statistics_request

        model = self._models[as_member(tower, Tower, "tower")]
        deadline = self._begin()
        requests = [("ModelStatistics", statistics_request(model))]
        policy = self._retry_policy(deadline, max_retries=self._max_retries)
        (answer,) = policy.run(lambda: self._channel.ask(requests, deadline))
        return read_statistics(answer)

    def close(self) -> None:
        """Close the connection. Encoding after it, or meanwhile, raises EngineError; closing twice does nothing."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _encode(
        self, tower: Tower, count: int, requests: Callable[[ServedModel], Iterator[RequestBatch]]
    ) -> NDArray[np.float32]:
        """Encode `count` rows, cut into `requests`, within one deadline."""
        from twinspire.towers.triton.exchange import exchange
        from twinspire.towers.triton.models import infer_request, read_embeddings

        deadline = self._begin()
        embeddings = np.empty((count, self.dim), np.float32)
        if count == 0:
            return embeddings
        policy = self._retry_policy(deadline, max_retries=self._max_retries)
        state = self._trusted(deadline, policy)
        model, spec = state.models[tower], self._bundle.input_spec(tower)
        source = f"the {tower} tower ({model.name} on {self._address})"
        is_trusted = True

        def send(batch: RequestBatch) -> Any:  # noqa: ANN401 - grpc.Future
            request = infer_request(model.name, spec, batch.array, timeout_s=deadline.left_s)
            return self._channel.send("ModelInfer", request, deadline)

        def inspect() -> _ServerState:
            inspected = self._inspect(deadline, policy)
            if inspected.models[tower] != model:
                raise ServerError(
                    f"{source} was exchanged for one with other settings during the call: {inspected.models[tower]} "
                    f"instead of {model}. Repeat the call"
                )
            return inspected

        def recover(failure: TransientServerError) -> None:
            nonlocal state, is_trusted
            if failure.is_overload:  # inspecting it at each retry would be three requests more for it
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
                    output = read_embeddings(response, rows=len(batch.array), dim=self.dim, source=source)
                    embeddings[batch.positions] = check_embeddings(
                        output, rows=len(batch.array), dim=self.dim, source=source
                    )
            if not is_trusted:  # nothing was heard during a wait: it may have been exchanged meanwhile
                state = inspect()
        except ServerOverloadedError:
            raise
        except ServerError:
            self._state = None  # it may be another one when the next call comes
            raise
        state.heard_at = time.monotonic()
        return embeddings

    def _begin(self, *, limit_s: float = math.inf) -> Deadline:
        """Begin a call, of at most `limit_s`.

        Raises EngineError where these towers are closed or came through a fork.
        """
        from twinspire.towers.triton.channel import Deadline

        self._channel.check_open()
        if os.getpid() != self._process:
            raise EngineError(
                f"these towers were opened in process {self._process} and are used in {os.getpid()}, after a fork, "
                "which a connection does not outlive: open them in the process that uses them"
            )
        return Deadline.after(min(self._deadline_s, limit_s))

    def _retry_policy(self, deadline: Deadline, *, max_retries: int | None) -> RetryPolicy:
        from twinspire.towers.triton.retries import RetryPolicy

        return RetryPolicy(self._channel, deadline, max_retries=max_retries)

    def _trusted(self, deadline: Deadline, policy: RetryPolicy) -> _ServerState:
        """Return the server's state; inspect it again where it was lost or was silent for a while."""
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
        from twinspire.towers.triton.models import config_request, read_model, read_version, server_request

        requests = [("ServerMetadata", server_request())]
        requests += [("ModelConfig", config_request(name)) for name in self._models.values()]
        server, *configs = self._channel.ask(requests, deadline)
        models = {
            tower: read_model(answer.config, name, tower, self._bundle, address=self._address)
            for (tower, name), answer in zip(self._models.items(), configs, strict=True)
        }
        return _ServerState(models, read_version(server), time.monotonic())


def _checked_seconds(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LONGEST_DEADLINE_S:
        raise InputError(f"deadline_s {value!r}: expected a number of seconds above 0, at most {LONGEST_DEADLINE_S:g}")
    return float(value)


def _checked_count(name: str, value: int, *, minimum: int) -> int:
    if type(value) is not int or value < minimum:
        raise InputError(f"{name} {value!r}: expected a whole number from {minimum} up")
    return value
