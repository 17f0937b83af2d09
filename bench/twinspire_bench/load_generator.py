"""A load generator that costs little beside the server: it sends the same bytes again and again.

It does none of protobuf's and twinspire's own work for a request, and keeps only codes and times.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from queue import SimpleQueue
from typing import Any

import numpy as np
from PIL import Image

from twinspire.bundle import Bundle, Tower
from twinspire.errors import ServerError
from twinspire_eval.scenes import Split, scene_set

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
LONGEST_S = 60.0
"""How long a response is waited for."""


@dataclass(frozen=True)
class Request:
    """A request as bytes of the protocol, for `rows` images."""

    content: bytes
    rows: int


class Generator:
    """One gRPC connection. Requests fail after `deadline_s`."""

    def __init__(self, address: str, *, deadline_s: float) -> None:
        import grpc  # type: ignore[import-untyped, unused-ignore]

        options = [("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)]
        self._channel = grpc.insecure_channel(address, options=options)
        self._infer = self._channel.unary_unary(_METHOD)
        self._deadline_s = deadline_s

    def send(self, request: Request) -> Any:  # noqa: ANN401 - grpc.Future
        """Send a request; return its future."""
        return self._infer.future(request.content, timeout=self._deadline_s)

    def closed_loop(self, request: Request, *, in_flight: int, seconds: float) -> float:
        """Return the images/s that are answered with `in_flight` requests in flight, without the first tenth.

        Raises ServerError where a request fails.
        """
        done: SimpleQueue[Any] = SimpleQueue()

        def send() -> None:
            self.send(request).add_done_callback(done.put)

        for _ in range(in_flight):
            send()
        start_s = time.perf_counter()
        counted, counted_from_s, ended_s = 0, start_s, start_s
        while ended_s - start_s < seconds:
            future = done.get(timeout=LONGEST_S)
            if future.exception() is not None:
                raise ServerError(f"a request of the closed loop failed with {future.code().name}: {future.details()}")
            send()
            ended_s = time.perf_counter()
            if ended_s - start_s < seconds / 10:
                counted, counted_from_s = 0, ended_s
            else:
                counted += 1
        for _ in range(in_flight):
            done.get(timeout=LONGEST_S)
        return counted * request.rows / (ended_s - counted_from_s)

    def close(self) -> None:
        """Close the connection; requests in flight are cancelled."""
        self._channel.close()


def requests_of(bundle: Bundle, rows: int, *, deadline_s: float, has_bytes: bool) -> Mapping[str, Request]:
    """Return a request for one image, one for `rows` of them and, with `has_bytes`, one for `rows` JPEG files."""
    from tritonclient.grpc import service_pb2

    spec, size = bundle.input_spec(Tower.IMAGE), bundle.image.size
    noise = np.random.default_rng(0).integers(0, 256, (rows, size, size, 3), np.uint8)

    def request(model: str, name: str, datatype: str, shape: Sequence[int], content: bytes) -> Request:
        message = service_pb2.ModelInferRequest(model_name=f"{bundle.name}_{model}")
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(content)
        message.parameters["timeout"].int64_param = int(1e6 * deadline_s)
        return Request(message.SerializeToString(), shape[0])

    found = {
        f"{count} tensors": request("image", spec.name, spec.triton_type, images.shape, images.tobytes())
        for count, images in ((1, noise[:1]), (rows, noise))
    }
    if has_bytes:
        files = jpeg_files(rows)
        content = b"".join(len(file).to_bytes(4, "little") + file for file in files)
        found[f"{rows} JPEG files"] = request("image_bytes", "image_bytes", "BYTES", (rows, 1), content)
    return found


def jpeg_files(count: int) -> list[bytes]:
    """Return scenes as JPEG files of 640 x 480 pixels."""
    return [_jpeg(scene.draw()) for scene in scene_set(count, seed=0, split=Split.HELDOUT)]


def _jpeg(image: Image.Image) -> bytes:
    file = BytesIO()
    image.resize((640, 480)).save(file, "JPEG", quality=90)
    return file.getvalue()
