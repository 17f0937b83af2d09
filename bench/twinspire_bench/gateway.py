"""What an HTTP gateway costs: the ways of a JPEG file and of a text to its embedding, in the same rounds.

`python -m twinspire_bench.gateway` makes ViT-B/32 at full size with random weights, quantizes it, serves it with Triton
and a gateway in front of it, and measures

- images/s with 16 single images in flight: tensors that were decoded before, JPEG files that the client decodes, that
  Triton decodes (`NAME_image_bytes`), and that the gateway decodes (OpenAI's dialect, data URI in, base64 out);
- the latency of one JPEG file in flight, by the client and by the gateway;
- the time for 64 texts in one request: the tower on ready token ids, and the gateway.

With `--autocannon PROGRAM` a load generator from npm (https://github.com/mcollina/autocannon) measures the gateway too.
Clients, gateway, server and engine share this machine.
"""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np
import typer
from rich.console import Console

from twinspire import Client
from twinspire._cores import thread_count
from twinspire.bundle import Bundle
from twinspire.errors import EngineError, ServerError
from twinspire_bench.load_generator import Generator, jpeg_files, requests_of
from twinspire_bench.scripts import (
    DEFAULT_WORK,
    CaptionsOption,
    GivenBundleOption,
    JsonFileOption,
    ServedOptions,
    SizeOption,
    ThreadsOption,
    VocabularyOption,
    WorkOption,
    exit_on_error,
    measured_bundle,
    progress_lines,
    read_captions,
    running_gateway,
)
from twinspire_eval.load import closed_loop, interleaved
from twinspire_eval.records import Record, series
from twinspire_eval.smoke import smoke_option
from twinspire_eval.statistics import paired_ratio, percentiles
from twinspire_eval.tables import figure, figures_console, figures_table, ratio_cells

IN_FLIGHT = 16
TEXTS = 64
TENSORS, CLIENT, TRITON, GATEWAY = "tensors", "JPEG, client", "JPEG, Triton", "JPEG, gateway"
TOWER, TEXTS_CLIENT, TEXTS_GATEWAY = "tower", "client", "gateway"
_DEADLINE_S = 30.0
_PATH = "/v1/embeddings"
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """Amount of measurement in each round: seconds of each way, single images, requests of 64 texts."""

    rounds: int = 6
    visit_s: float = 6.0
    lone_images: int = 30
    text_requests: int = 10


class HttpClient:
    """Sends JSON bodies to a gateway, from several threads, over connections that stay open until `close`."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        self._idle: SimpleQueue[HTTPConnection] = SimpleQueue()

    def post(self, body: bytes) -> bytes:
        """Return the body of the answer. Raises ServerError for another status than 200."""
        try:
            status, content = self._exchanged(self._idle.get_nowait(), body)
        except (Empty, ConnectionError):  # none is idle, or the gateway has closed it meanwhile
            status, content = self._exchanged(HTTPConnection(self._address, timeout=_DEADLINE_S), body)
        if status != 200:
            raise ServerError(f"the gateway answered {status}: {content[:200].decode(errors='replace')}")
        return content

    def _exchanged(self, connection: HTTPConnection, body: bytes) -> tuple[int, bytes]:
        try:
            connection.request("POST", _PATH, body, _JSON)
            response = connection.getresponse()
            content = response.read()
        except BaseException:
            connection.close()
            raise
        self._idle.put(connection)
        return response.status, content

    def close(self) -> None:
        """Close the connections. Not while others send."""
        while not self._idle.empty():
            self._idle.get().close()


def bodies(bundle: Bundle, inputs: Sequence[bytes | Sequence[str]]) -> list[bytes]:
    """Return requests of OpenAI's dialect for image files, and for lists of texts."""
    return [
        json.dumps(
            {
                "model": bundle.name,
                "input": [f"data:image/jpeg;base64,{base64.b64encode(one).decode()}"]
                if isinstance(one, bytes)
                else list(one),
                "encoding_format": "base64",
            }
        ).encode()
        for one in inputs
    ]


class _Ways:
    """The same inputs on each way; methods measure one way once."""

    def __init__(
        self,
        client: Client,
        generator: Generator,
        http: HttpClient,
        captions: Sequence[str],
        settings: GatewaySettings,
    ) -> None:
        bundle = client.bundle
        assert isinstance(bundle, Bundle)
        self._client, self._generator, self._http, self._settings = client, generator, http, settings
        self._files = jpeg_files(IN_FLIGHT)
        self._tensors = client.preprocess(self._files)
        self._bodies = bodies(bundle, self._files)
        self._file_request = requests_of(bundle, 1, deadline_s=_DEADLINE_S, has_bytes=True)["1 JPEG files"]
        self._captions = captions[:TEXTS]
        self._sequences = client.tokenize(self._captions)
        (self._texts_body,) = bodies(bundle, [self._captions])

    def largest_difference(self) -> float:
        """Return the largest difference of a component by the gateway from the client's."""
        ours = np.concatenate([self._client.encode_images(self._files), self._client.encode_texts(self._captions)])
        theirs = [vectors_of(self._http.post(body)) for body in [*self._bodies, self._texts_body]]
        return float(np.abs(ours - np.concatenate(theirs)).max())

    def images_per_s(self, way: str) -> float:
        """Return images/s of single images, 16 in flight."""
        seconds = self._settings.visit_s
        if way == TRITON:
            return self._generator.closed_loop(self._file_request, in_flight=IN_FLIGHT, seconds=seconds)
        calls: Mapping[str, tuple[Callable[[Any], object], Sequence[Any]]] = {
            TENSORS: (self._client.towers.encode_images, [self._tensors[i : i + 1] for i in range(IN_FLIGHT)]),
            CLIENT: (self._client.encode_images, [[file] for file in self._files]),
            GATEWAY: (self._http.post, self._bodies),
        }
        call, payloads = calls[way]
        found = closed_loop(call, payloads, in_flight=IN_FLIGHT, duration_s=seconds)
        if found.failures:
            raise ServerError(f"requests of the way {way!r} failed: {dict(found.failures)}")
        return found.throughput_per_s

    def lone_ms(self, way: str) -> float:
        """Return the median latency in ms of one JPEG file in flight."""
        call: Callable[[Any], object] = self._client.encode_images if way == CLIENT else self._http.post
        payloads: Sequence[Any] = [[file] for file in self._files] if way == CLIENT else self._bodies
        found = closed_loop(call, payloads, in_flight=1, requests=self._settings.lone_images)
        return percentiles(found.latencies_ms).p50

    def texts_ms(self, way: str) -> float:
        """Return the median time in ms of 64 texts in one request."""
        calls: Mapping[str, Callable[[Any], object]] = {
            TOWER: lambda _: self._client.towers.encode_texts(self._sequences),
            TEXTS_CLIENT: lambda _: self._client.encode_texts(self._captions),
            TEXTS_GATEWAY: lambda _: self._http.post(self._texts_body),
        }
        found = closed_loop(calls[way], [None], in_flight=1, requests=self._settings.text_requests)
        return percentiles(found.latencies_ms).p50


def vectors_of(answer: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the vectors (N, D) float32 of an answer in base64."""
    rows = [base64.b64decode(one["embedding"]) for one in json.loads(answer)["data"]]
    return np.stack([np.frombuffer(row, "<f4") for row in rows])


def measure(
    served: ServedOptions,
    captions: Sequence[str],
    *,
    settings: GatewaySettings,
    say: Callable[[str], None],
    autocannon: Path | None = None,
) -> Record:
    """Serve a bundle with a gateway in front and measure each way in turn; `say` receives each stage.

    Raises EngineError and ServerError as `ServedOptions.serve`, and where a request or `autocannon` fails.
    """
    with (
        served.serve() as server,
        running_gateway(server) as url,
        Client.connect(server.address, served.bundle) as client,
        closing(Generator(server.address, deadline_s=_DEADLINE_S)) as generator,
        closing(HttpClient(url)) as http,
    ):
        ways = _Ways(client, generator, http, captions, settings)
        difference = ways.largest_difference()
        in_turn = partial(interleaved, rounds=settings.rounds, on_round=say)
        say(f"single images, {IN_FLIGHT} in flight")
        images = in_turn({way: partial(ways.images_per_s, way) for way in (TENSORS, CLIENT, TRITON, GATEWAY)})
        say("one JPEG file in flight")
        lone = in_turn({way: partial(ways.lone_ms, way) for way in (CLIENT, GATEWAY)})
        say(f"{TEXTS} texts in one request")
        texts = in_turn({way: partial(ways.texts_ms, way) for way in (TOWER, TEXTS_CLIENT, TEXTS_GATEWAY)})
        results = {
            "largest_difference": difference,
            "images_in_flight": {
                "images_per_s": {way: series(found, "median") for way, found in images.items()},
                "of_tensors": {way: paired_ratio(images[way], images[TENSORS]) for way in (CLIENT, TRITON, GATEWAY)},
                "gateway_of_client": paired_ratio(images[GATEWAY], images[CLIENT]),
            },
            "one_image_in_flight": {
                "ms": {way: series(found, "median") for way, found in lone.items()},
                "added_ms": series(lone[GATEWAY] - lone[CLIENT], "median"),
            },
            "texts_in_one_request": {
                "ms": {way: series(found, "median") for way, found in texts.items()},
                "added_ms": series(texts[TEXTS_GATEWAY] - texts[TOWER], "median"),
            },
        }
        if autocannon is not None:
            say("autocannon and the closed loop of this package")
            (body,) = bodies(served.bundle, [jpeg_files(1)[0]])
            both = in_turn(
                {
                    "autocannon": partial(autocannon_per_s, autocannon, url, body, seconds=settings.visit_s),
                    "twinspire": partial(ways.images_per_s, GATEWAY),
                }
            )
            results["autocannon"] = {
                "images_per_s": {by: series(found, "median") for by, found in both.items()},
                "ratio": paired_ratio(both["twinspire"], both["autocannon"]),
            }
    return served.record("gateway", server, asdict(settings), results)


def autocannon_per_s(program: Path, url: str, body: bytes, *, seconds: float) -> float:
    """Return the requests/s that autocannon measures with 16 connections. Raises EngineError where any fails."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(body)
        file.flush()
        command = [program, "-c", IN_FLIGHT, "-d", round(seconds), "-m", "POST", "-i", file.name, "--json"]
        command += ["-H", "content-type=application/json", f"{url}{_PATH}"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise EngineError(f"{program} failed with status {done.returncode}: {done.stderr[-500:]}")
    found = json.loads(done.stdout)
    if found["non2xx"] or found["errors"] or found["timeouts"]:
        raise EngineError(f"requests of {program} failed: {found['non2xx']} by their status, {found['errors']} others")
    return float(found["requests"]["total"] / found["duration"])


def show(record: Record, console: Console) -> None:
    """Print a record of this benchmark."""
    found = record.results
    busy = found["images_in_flight"]
    table = figures_table([f"{IN_FLIGHT} single images in flight"], ["images/s", "of tensors", "95% interval"])
    for way, speed in busy["images_per_s"].items():
        table.add_row(way, figure(speed["median"]), *ratio_cells(busy["of_tensors"].get(way)))
    console.print(table)
    value, interval = ratio_cells(busy["gateway_of_client"])
    console.print(f"gateway / client: {value} ({interval})")
    for title, part in (
        ("one JPEG file in flight", "one_image_in_flight"),
        (f"{TEXTS} texts in one request", "texts_in_one_request"),
    ):
        medians = ", ".join(f"{way} {figure(ms['median'])} ms" for way, ms in found[part]["ms"].items())
        console.print(f"{title}: {medians}; the gateway adds {found[part]['added_ms']['median']:+.2f} ms")
    if "autocannon" in found:
        value, interval = ratio_cells(found["autocannon"]["ratio"])
        console.print(f"twinspire's closed loop / autocannon: {value} ({interval})")


def main(
    size: SizeOption = "vit-b-32",
    bundle: GivenBundleOption = None,
    work: WorkOption = DEFAULT_WORK,
    vocabulary: VocabularyOption = None,
    captions: CaptionsOption = None,
    threads: ThreadsOption = None,
    streams: Annotated[int, typer.Option(help="Streams: parts of a batch computed in parallel.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures every way once.")] = GatewaySettings.rounds,
    visit: Annotated[float, typer.Option(help="Seconds of each way of an image in a round.")] = GatewaySettings.visit_s,
    autocannon: Annotated[Path | None, typer.Option(help="autocannon, to compare with.")] = None,
    json_file: JsonFileOption = None,
    _smoke: Annotated[bool, smoke_option(size="tiny", rounds=1, visit=1.0)] = False,
) -> None:
    """Measure the ways of images and texts to their embeddings. Progress is printed on standard error."""
    console = Console(stderr=True)
    with exit_on_error(console):
        sentences = read_captions(captions, TEXTS)
        measured, folder = measured_bundle(bundle, size, work, vocabulary=vocabulary)
        served = ServedOptions(bundle=measured, threads=thread_count(threads), streams=streams, work=folder)
        settings = GatewaySettings(rounds=rounds, visit_s=visit)
        record = measure(served, sentences, settings=settings, say=progress_lines(console), autocannon=autocannon)
        show(record, figures_console())
        if json_file is not None:
            record.save(json_file)


if __name__ == "__main__":
    typer.run(main)
