"""The towers on one or several Triton Inference Servers, over gRPC."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_member, as_whole
from twinspire.bundle import BundleDescription, Tower
from twinspire.errors import EngineError, SpaceMismatchError
from twinspire.towers.batching import InputBatch, pair_batches, row_batches, text_batches
from twinspire.towers.protocol import Towers
from twinspire.towers.triton.counters import ClientCounters
from twinspire.towers.triton.options import OPENING_S, TlsOptions, checked_addresses, checked_deadline
from twinspire.towers.triton.statistics import ModelStatistics
from twinspire.towers.triton.steps import Steps
from twinspire.towers.validation import BundleTowers

if TYPE_CHECKING:  # these load grpc and tritonclient, which importing a name must not
    from twinspire.towers.triton.channel import Channel
    from twinspire.towers.triton.models import ExpectedModel, InspectedModel
    from twinspire.towers.triton.retries import Deadline


class RemoteTowers(BundleTowers):
    """What `TritonTowers` and `AsyncTritonTowers` have in common: options, and calls as steps that they perform."""

    def __init__(
        self,
        url: str | Sequence[str],
        bundle: BundleDescription,
        *,
        open_channel: Callable[..., Channel],
        name: str | None,
        deadline_s: float,
        in_flight: int | None,
        max_retries: int | None,
        tls: TlsOptions | None,
        send_images_singly: bool,
        fallback: Towers | None,
    ) -> None:
        from twinspire.towers.triton.group import ServerGroup
        from twinspire.towers.triton.models import expected_reranker, expected_tower, largest_response_bytes
        from twinspire.towers.triton.server import Server

        super().__init__(bundle)
        self._addresses = checked_addresses(url)
        if fallback is not None and fallback.space != bundle.space:
            raise SpaceMismatchError(
                f"the fallback is of another space than the bundle {bundle.name!r} at {bundle.location}: open "
                "both from the same bundle",
                expected=bundle.space,
                found=fallback.space,
            )
        self._deadline_s = checked_deadline(deadline_s)
        in_flight = None if in_flight is None else as_whole(in_flight, "in_flight", minimum=1)
        max_retries = None if max_retries is None else as_whole(max_retries, "max_retries", minimum=0)
        self._send_images_singly = send_images_singly
        self._fallback = fallback
        self._process = os.getpid()
        name = bundle.name if name is None else name
        self._models = {tower: expected_tower(bundle, tower, name) for tower in bundle.towers}
        self._reranker = expected_reranker(bundle, name)
        models = [*self._models.values(), *([] if self._reranker is None else [self._reranker])]
        largest = largest_response_bytes(bundle.dim * bundle.vectors_per_item)
        self._channels = [open_channel(address, tls, max_response_bytes=largest) for address in self._addresses]
        servers = [Server(channel, bundle, models, in_flight=in_flight) for channel in self._channels]
        self._group = ServerGroup(servers, fallback=fallback, max_retries=max_retries)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self.address}>"

    @property
    def address(self) -> str:
        """The server's host:port; of several servers all, separated by commas."""
        return ", ".join(self._addresses)

    @property
    def server_version(self) -> str:
        """Triton's version, from the last inspection; empty while no server has answered."""
        return next((server.version for server in self._group.servers if server.version), "")

    @property
    def runtime(self) -> str:
        """The server, for people to read."""
        return f"Triton {self.server_version} at {self.address}"

    @property
    def counters(self) -> ClientCounters:
        """Calls, failures, ejections and returns of each server, and changes to the fallback and back."""
        return self._group.counters()

    def _images(self, images: NDArray[np.uint8]) -> Steps[NDArray[np.float32]]:
        self._check_images(images)

        def batches(model: InspectedModel) -> Iterator[InputBatch]:
            return row_batches(images, batch=1 if self._send_images_singly else model.max_batch)

        model = self._models[Tower.IMAGE]
        return self._infer(model, len(images), batches, lambda towers: towers.encode_images(images))

    def _texts(self, sequences: Sequence[NDArray[np.int32]]) -> Steps[NDArray[np.float32]]:
        self._check_sequences(sequences)

        def batches(model: InspectedModel) -> Iterator[InputBatch]:
            return text_batches(sequences, self._bundle.text, batch=model.max_batch, lengths=model.text_lengths)

        model = self._models[Tower.TEXT]
        return self._infer(model, len(sequences), batches, lambda towers: towers.encode_texts(sequences))

    def _audio(self, spectrograms: NDArray[np.float32]) -> Steps[NDArray[np.float32]]:
        self._check_audio(spectrograms)

        def batches(model: InspectedModel) -> Iterator[InputBatch]:
            return row_batches(spectrograms, batch=model.max_batch)

        model = self._models[Tower.AUDIO]
        return self._infer(model, len(spectrograms), batches, lambda towers: towers.encode_audio(spectrograms))

    def _pairs(self, images: NDArray[np.uint8], sequences: Sequence[NDArray[np.int32]]) -> Steps[NDArray[np.float32]]:
        self._check_pairs(images, sequences)
        assert self._reranker is not None  # as checked

        def batches(model: InspectedModel) -> Iterator[InputBatch]:
            return pair_batches(images, sequences, self._bundle.text, batch=model.max_batch)

        scores = yield from self._infer(
            self._reranker, len(images), batches, lambda towers: towers.score_pairs(images, sequences)
        )
        return scores.reshape(len(images))  # (N, 1) of a server, (N,) of the fallback

    def _infer(
        self,
        model: ExpectedModel,
        count: int,
        batches: Callable[[InspectedModel], Iterator[InputBatch]],
        compute: Callable[[Towers], NDArray[np.float32]],
    ) -> Steps[NDArray[np.float32]]:
        from twinspire.towers.triton.server import ModelCall

        deadline = self._begin()
        if count == 0:
            return np.empty((0, *model.output.shape), np.float32)
        return (yield from self._group.infer(ModelCall(model, count, batches, compute), deadline))

    def _statistics(self, tower: Tower | str) -> Steps[ModelStatistics]:
        tower = as_member(tower, Tower, "tower")
        self._bundle.manifest.tower(tower)
        deadline = self._begin()
        total = ModelStatistics(0, 0, 0)
        for server in self._group.servers:
            total += yield from server.statistics(self._models[tower], deadline, self._group.policy(deadline))
        return total

    def _open(self) -> Steps[None]:
        return self._group.open(self._begin(limit_s=OPENING_S))

    def _begin(self, *, limit_s: float = math.inf) -> Deadline:
        """Begin a call, of at most `limit_s`.

        Raises EngineError where these towers are closed or were opened before a fork.
        """
        from twinspire.towers.triton.retries import Deadline

        self._check_open()
        if os.getpid() != self._process:
            raise EngineError(
                f"these towers were opened in process {self._process} and are used in {os.getpid()}, after a fork, "
                "which connections do not survive: open them in the process that uses them"
            )
        return Deadline.after(min(self._deadline_s, limit_s))

    def _check_open(self) -> None:
        """Raise EngineError where the towers cannot be used."""
        raise NotImplementedError


class TritonTowers(RemoteTowers):
    """A bundle's models on Triton Inference Servers. Safe to use from several threads.

    `url` is host:port of the server's gRPC service or a list of them, `name` that of the models `{name}_image` and
    `{name}_text`, by default the bundle's. The bundle defines the inputs and the space; its engines are not opened.
    Calls larger than the server's largest batch are split. `in_flight` is the number of requests of a call in flight at
    a time; None is four, or as many as fill two of the server's largest batches. With `send_images_singly` every
    image to encode is a request of its own and the server forms the batches. The model of the bundle's reranker,
    `{name}_` and the reranker's name, may be absent until pairs are scored.

    Every call ends within `deadline_s` seconds, with the whole result or an error. Until then, requests that failed for
    a transient reason are sent again with exponential backoff: the server is unreachable or stopping, a model's process
    died, or the queue was full. Encoding changes nothing on the server, so this is safe; answered requests are not
    repeated. After a reconnect the models are inspected again before results are used; all servers behind one address
    must be equal. `max_retries` bounds the retries without an answer in between; None does not.

    Opening is such a call too, but gives up after 10 seconds: a server that restarts is back by then, otherwise the
    address is probably wrong.

    Several servers must serve the same space. Each call goes to the one with the fewest calls pending, and begins anew
    on another where that one fails for a transient reason, refuses, or does not answer for half of the time left. A
    server that is away or hung gets no calls until a thread in the background has inspected it again. At opening one
    server at least must answer.

    `fallback`, other towers of the same space such as `LocalTowers`, computes calls while no server is available.
    An overloaded or silent server has half of the deadline first. Wrong inputs, refusals and another space are
    errors as ever, never a reason to fall back. `counters` counts all this, and the logger `twinspire` has each change.
    What the fallback computes may take longer than the deadline. It is closed with these towers.

    Open it after a fork, not before: gRPC's threads do not survive in the child, where encoding raises EngineError.

    Raises InputError for an unusable argument, BundleError for a bundle that needs a later version, SpaceMismatchError
    where a model or the fallback is of another space than the bundle, ServerUnavailableError where no server answers,
    ServerOverloadedError where its queue is full until the deadline, ServerRefusedError where it has no such models,
    ServerError where they violate the contract, EngineError where a response is not a message of Triton's protocol.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        bundle: BundleDescription,
        *,
        name: str | None = None,
        deadline_s: float = 30.0,
        in_flight: int | None = None,
        max_retries: int | None = None,
        tls: TlsOptions | None = None,
        send_images_singly: bool = False,
        fallback: Towers | None = None,
    ) -> None:
        from twinspire.towers.triton.channel import ThreadChannel
        from twinspire.towers.triton.runners import ThreadRunner

        self._runner = ThreadRunner()
        super().__init__(
            url,
            bundle,
            open_channel=functools.partial(ThreadChannel, closed=self._runner.closed),
            name=name,
            deadline_s=deadline_s,
            in_flight=in_flight,
            max_retries=max_retries,
            tls=tls,
            send_images_singly=send_images_singly,
            fallback=fallback,
        )
        try:
            self._runner.run(self._open())
        except BaseException:
            self.close()
            raise

    def encode_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode (N, H, W, 3) uint8 RGB to (N, D) float32, L2-normalised, or (N, Q, D) of Q vectors; N may be 0.

        Raises InputError for another dtype or shape, ServerError as opening does, EngineError where the response is not
        N unit vectors.
        """
        return self._runner.run(self._images(images))

    def encode_texts(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Encode N 1-D int32 arrays of token ids to (N, D) float32, L2-normalised; N may be 0.

        Each holds start and end token and no padding. Raises InputError, with its position, for anything else,
        ServerError as opening does, EngineError where the response is not N unit vectors.
        """
        return self._runner.run(self._texts(sequences))

    def encode_audio(self, spectrograms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode (N, F, M) float32 log-mel spectrograms to (N, D) float32, L2-normalised; N may be 0.

        Raises InputError for another dtype or shape and for values that are not finite, ServerError as opening does,
        EngineError where the response is not N unit vectors.
        """
        return self._runner.run(self._audio(spectrograms))

    def score_pairs(self, images: NDArray[np.uint8], sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Return the reranker's probability that text n is true of image n, (N,) float32, 0 to 1; N may be 0.

        Images and token ids are those of `encode_images` and `encode_texts`, equally many; texts are padded to the
        context, so that the server can join the pairs of several calls. Raises InputError for anything else,
        BundleError where the bundle has no reranker, ServerError as opening does, ServerRefusedError where the server
        has no model of it, EngineError where the response is not N probabilities.
        """
        return self._runner.run(self._pairs(images, sequences))

    def statistics(self, tower: Tower | str) -> ModelStatistics:
        """Return the servers' counters of a tower, added up. Raises ServerError as opening does.

        BundleError for an absent tower. A server counts a batch some milliseconds after its responses went out.
        """
        return self._runner.run(self._statistics(tower))

    def close(self) -> None:
        """Close the connections and the fallback. Encoding after it, or meanwhile, raises EngineError.

        Closing twice does nothing.
        """
        self._runner.closed.set()
        for channel in self._channels:
            channel.channel.close()
        self._runner.join()
        if self._fallback is not None:
            self._fallback.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        self._runner.check_open()
