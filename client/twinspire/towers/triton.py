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
from twinspire.errors import EngineError, InputError, ServerError
from twinspire.towers.checks import check_embeddings, check_images, check_sequences
from twinspire.towers.local import vocabulary_size
from twinspire.towers.triton_batches import RequestBatch, Window, image_requests, text_requests
from twinspire.towers.triton_options import TlsOptions, checked_address

if TYPE_CHECKING:  # these load grpc and tritonclient, which importing a name must not
    from twinspire.towers.triton_channel import Deadline, LostError, Patience
    from twinspire.towers.triton_models import ServedModel

# A server whose models were seen is trusted so long after its last answer. None is exchanged for another in less:
# the smallest bundle's takes 0.6 s to start. One that is exchanged while requests are under way breaks these, and
# is looked at again for that.
_TRUSTED_S = 0.25


@dataclass(frozen=True)
class ModelStatistics:
    """What a server counted of one tower since it was started, over all clients, failures left out.

    `requests` are those that came, `inferences` the pictures or texts in them, `executions` the batches that
    were computed. The repository's warm-up counts too: compare with what stood there before (`since`).
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


@dataclass
class _Seen:
    """A server that was looked at: its models fit the bundle. `heard_at` is when it last answered."""

    models: Mapping[Tower, ServedModel]
    server_version: str
    heard_at: float


class TritonTowers:
    """A bundle's two models on a Triton Inference Server. May be used from several threads at once.

    `url` is host:port of its gRPC service, `name` that of the models `{name}_image` and `{name}_text`, by default
    the bundle's. The bundle says what goes in and which space must come out; its engines are not opened. What
    exceeds the server's largest batch is split. `in_flight` is how many requests of a call are under way at a
    time; None is four, or as many as fill two of the server's largest batches. With `send_images_singly` every
    picture is a request of its own and the server does the batching.

    Every call, opening too, ends `deadline_s` seconds after it began, with the whole answer or an error. Only
    what the server did not answer because it was not there or is being stopped (gRPC's UNAVAILABLE, a model that was
    there and is not) is repeated: at most `max_retries` times in a row, after exponentially growing waits, within the
    deadline. Encoding changes nothing on the server, so that a repetition is safe. A server that comes back is looked
    at again before its answers are used; the servers behind one address must be equal.

    Open it after a fork, not before: gRPC's threads do not live on in the child, where encoding raises EngineError.

    Raises InputError for an unusable argument, SpaceMismatchError where a model is of another space than the bundle,
    ServerUnavailableError where the server does not answer, ServerRefusedError where it has no such models, ServerError
    where they are not of the contract.
    """

    def __init__(
        self,
        url: str,
        bundle: Bundle,
        *,
        name: str | None = None,
        deadline_s: float = 30.0,
        in_flight: int | None = None,
        max_retries: int = 4,
        tls: TlsOptions | None = None,
        send_images_singly: bool = False,
    ) -> None:
        from twinspire.towers.triton_channel import Channel

        self._address = checked_address(url)
        self._bundle = bundle
        self._models = {tower: f"{bundle.name if name is None else name}_{tower}" for tower in Tower}
        self._deadline_s = _checked_seconds(deadline_s)
        self._in_flight = None if in_flight is None else _checked_count("in_flight", in_flight, least=1)
        self._max_retries = _checked_count("max_retries", max_retries, least=0)
        self._send_images_singly = send_images_singly
        self._vocabulary_size = vocabulary_size(bundle.tokenizer_path)
        self._process = os.getpid()
        self._seen: _Seen | None = None
        self._channel = Channel(self._address, tls)
        try:
            deadline = self._begin()
            self._server_version = self._look(deadline, self._patience(deadline)).server_version
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
        """Triton's version, as the server last said it."""
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
        from twinspire.towers.triton_models import read_statistics, statistics_request

        model = self._models[as_member(tower, Tower, "tower")]
        deadline = self._begin()
        ask = [("ModelStatistics", statistics_request(model))]
        (answer,) = self._patience(deadline).insist(lambda: self._channel.ask(ask, deadline))
        return ModelStatistics(*read_statistics(answer))

    def close(self) -> None:
        """Close the connection. Encoding after it, or under way, raises EngineError; closing twice does nothing."""
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
        from twinspire.towers.triton_channel import exchange
        from twinspire.towers.triton_models import infer_request, read_embeddings

        deadline = self._begin()
        embeddings = np.empty((count, self.dim), np.float32)
        if count == 0:
            return embeddings
        patience = self._patience(deadline)
        seen = self._trusted(deadline, patience)
        model = seen.models[tower]
        source = f"the {tower} tower ({model.name} on {self._address})"

        def send(batch: RequestBatch) -> Any:  # noqa: ANN401 - grpc.Future
            return self._channel.send("ModelInfer", infer_request(model.name, tower, batch.array), deadline)

        def recover(lost: LostError) -> None:
            nonlocal seen
            self._seen = None
            patience.wait(lost)
            seen = self._look(deadline, patience)
            if seen.models[tower] != model:
                raise ServerError(
                    f"{source} was exchanged for one with other settings during the call: {seen.models[tower]} instead "
                    f"of {model}. Repeat the call"
                )

        answers = exchange(
            self._channel,
            requests(model),
            send=send,
            has_room=Window(self._in_flight, model.max_batch).has_room,
            rows=lambda batch: len(batch.array),
            recover=recover,
            deadline=deadline,
        )
        try:
            with closing(answers):
                for batch, response in answers:
                    patience.progress()
                    output = read_embeddings(response, source=source)
                    embeddings[batch.positions] = check_embeddings(
                        output, rows=len(batch.array), dim=self.dim, source=source
                    )
        except ServerError:
            self._seen = None  # it may be another one when the next call comes
            raise
        seen.heard_at = time.monotonic()
        return embeddings

    def _begin(self) -> Deadline:
        """Begin a call. Raises EngineError where these towers are closed or came through a fork."""
        from twinspire.towers.triton_channel import Deadline

        self._channel.check_open()
        if os.getpid() != self._process:
            raise EngineError(
                f"these towers were opened in process {self._process} and are used in {os.getpid()}, after a fork, "
                "which a connection does not outlive: open them in the process that uses them"
            )
        return Deadline.after(self._deadline_s)

    def _patience(self, deadline: Deadline) -> Patience:
        from twinspire.towers.triton_channel import Patience

        return Patience(self._channel, self._max_retries, deadline)

    def _trusted(self, deadline: Deadline, patience: Patience) -> _Seen:
        """Return what was seen of the server; look again where it was lost or was not heard of for a while."""
        seen = self._seen
        if seen is not None and time.monotonic() - seen.heard_at < _TRUSTED_S:
            return seen
        return self._look(deadline, patience)

    def _look(self, deadline: Deadline, patience: Patience) -> _Seen:
        """Read the server's version and both models' configurations and hold them against the bundle."""
        self._seen = None
        seen = patience.insist(lambda: self._read(deadline))
        self._server_version = seen.server_version
        self._channel.models_seen = True
        self._seen = seen
        return seen

    def _read(self, deadline: Deadline) -> _Seen:
        from twinspire.towers.triton_models import config_request, read_model, server_request

        asked = [("ServerMetadata", server_request())]
        asked += [("ModelConfig", config_request(name)) for name in self._models.values()]
        server, *configs = self._channel.ask(asked, deadline)
        models = {
            tower: read_model(answer.config, tower, self._bundle, address=self._address)
            for tower, answer in zip(self._models, configs, strict=True)
        }
        return _Seen(models, server.version, time.monotonic())


def _checked_seconds(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"deadline_s {value!r}: expected a positive number of seconds")
    return float(value)


def _checked_count(name: str, value: int, *, least: int) -> int:
    if type(value) is not int or value < least:
        raise InputError(f"{name} {value!r}: expected a whole number from {least} up")
    return value
