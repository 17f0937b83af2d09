"""Kill gateways and Tritons under load, two of each behind one address, and check that no request fails.

    python tests/gateway/kill_several.py --seconds 600 --json record.json

Two `twinspire serve` of the sample bundle stand behind two `twinspire gateway` that know both, and these behind Caddy
with deploy/caddy/Caddyfile. Clients that do not retry send texts, images and searches, and check each answer; meanwhile
`twinspire index add` adds images to the index that both gateways read. In turn one of the four is killed with all its
processes, as when its container is, and started again; where it is a Triton, every other time tritonserver alone, which
`twinspire serve` starts again. A request that fails or has a wrong answer is a failure. Prints a JSON document.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from twinspire import Client, sample_bundle

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PAIRS = ("gateway", "triton")
TEXTS = (
    "a red car",
    "two blue fish at night",
    "一只白色的狗",
    "a big green umbrella on the left",
    "three orange turtles",
)
PICTURES_A_LOT = 12
START_S = 90
MIN_COSINE = 0.999
"""Of an answer to the vector of `Client.local`: batches of other sizes round differently."""


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@dataclass
class Program:
    """A command that is started, killed and started again. It is ready when `url` answers 200."""

    name: str
    command: Sequence[str]
    url: str
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its output is appended to the log."""
        with self.log.open("ab") as log:
            environment = {**os.environ, **self.environment}
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)

    def wait_until_ready(self) -> None:
        """Wait until it answers. Raises TimeoutError with the end of its log."""
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            with suppress(httpx.HTTPError):
                if httpx.get(self.url, timeout=2).status_code == 200:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"{self.name} does not answer at {self.url}: {self.log.read_text('utf-8')[-3000:]}")

    def processes(self) -> list[psutil.Process]:
        """Return its processes, the first one first."""
        assert self.process is not None
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def kill(self) -> None:
        """Kill all its processes at once, as the end of a container does."""
        processes = self.processes()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert self.process is not None
        self.process.wait(30)

    def wait_for_end(self) -> None:
        """Wait until it has ended as it was asked to; kill it where it does not."""
        if self.process is None or self.process.poll() is not None:
            return
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass(frozen=True)
class Answer:
    """A request's end: when it began in seconds of the run, how long it took, and what was wrong."""

    began_s: float
    kind: str
    latency_s: float
    failure: str | None


class Load:
    """Clients that send requests to one address without retrying, and check the answers."""

    def __init__(self, url: str, requests: Sequence[tuple[str, Callable[[httpx.Client], None]]], clients: int) -> None:
        self._url, self._requests = url, requests
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(clients)]
        self.answers: list[Answer] = []

    @property
    def now_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        chance = random.Random(seed)
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._ended.is_set():
                kind, send = chance.choice(self._requests)
                began_s, failure = self.now_s, None
                try:
                    send(client)
                except (httpx.HTTPError, AssertionError) as error:
                    failure = f"{type(error).__name__}: {error}"
                self.answers.append(Answer(began_s, kind, self.now_s - began_s, failure))


def requests_of(folder: Path, *, searches: bool) -> list[tuple[str, Callable[[httpx.Client], None]]]:
    """Return the requests of the load: each sends one and asserts that its answer is right."""
    images = [path.read_bytes() for path in pictures(folder, 0)[: len(TEXTS)]]
    uris = ["data:image/jpeg;base64," + base64.b64encode(image).decode() for image in images]
    with Client.local(sample_bundle()) as client:
        text_vectors, image_vectors = client.encode_texts(TEXTS), client.encode_images(images)

    def embeds(inputs: Sequence[str], vectors: np.ndarray) -> Callable[[httpx.Client], None]:
        def send(client: httpx.Client) -> None:
            some = [next(_turn) % len(inputs) for _ in range(3)]
            body = {"model": "scenes", "input": [inputs[one] for one in some]}
            answer = _checked(client.post("/v1/embeddings", json=body))
            found = np.array([row["embedding"] for row in answer["data"]])
            cosines = (found * vectors[some]).sum(axis=1)
            assert cosines.min() >= MIN_COSINE, f"cosines {cosines} of {some}"

        return send

    def search(client: httpx.Client) -> None:
        text = TEXTS[next(_turn) % len(TEXTS)]
        answer = _checked(client.post("/v1/search", json={"text": text, "k": 5}))
        scores = [hit["score"] for hit in answer["hits"]]
        assert len(scores) == 5, answer
        assert scores == sorted(scores, reverse=True), answer

    _turn = itertools.count()
    found = [("texts", embeds(TEXTS, text_vectors)), ("images", embeds(uris, image_vectors))]
    return [*found, ("search", search)] if searches else found


def _checked(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, f"{answer.status_code} {answer.text[:300]}"
    return answer.json()


@contextmanager
def running(folder: Path, *, caddyfile: Path) -> Iterator[tuple[dict[str, list[Program]], Program]]:
    """Run two Tritons, two gateways of both and an index, and Caddy before them; give them when all are ready."""
    twinspire = str(BIN / "twinspire")
    tritons, addresses = [], []
    for number in range(2):
        http, grpc, metrics, status = (free_port() for _ in range(4))
        addresses.append(f"127.0.0.1:{grpc}")
        ports = {"http-port": http, "grpc-port": grpc, "metrics-port": metrics, "status-port": status}
        options = [f"--{name}={port}" for name, port in ports.items()]
        tritons.append(
            Program(
                f"triton-{number}",
                [twinspire, "serve", str(folder / "models"), f"--state={folder / f'state-{number}'}", *options],
                f"http://127.0.0.1:{status}/readyz",
                folder / f"triton-{number}.log",
            )
        )
    gateways = []
    for number in range(2):
        port, metrics = free_port(), free_port()
        options = ["--wait=90", f"--port={port}", f"--metrics-port={metrics}", f"--index={folder / 'index'}"]
        options += [f"--server={address}" for address in addresses]
        gateways.append(
            Program(
                f"gateway-{number}",
                [twinspire, "gateway", *options],
                f"http://127.0.0.1:{port}/readyz",
                folder / f"gateway-{number}.log",
            )
        )
    port = free_port()
    upstreams = " ".join(gateway.url.split("/")[2] for gateway in gateways)
    proxy = Program(
        "proxy",
        [str(BIN / "caddy"), "run", "--config", str(caddyfile), "--adapter", "caddyfile"],
        f"http://127.0.0.1:{port}/readyz",
        folder / "proxy.log",
        {"ADDRESS": f"http://127.0.0.1:{port}", "GATEWAYS": upstreams, "HOME": str(folder)},
    )
    programs = [proxy, *gateways, *tritons]
    try:
        for program in reversed(programs):
            program.start()
        for program in reversed(programs):
            program.wait_until_ready()
        yield {"triton": tritons, "gateway": gateways}, proxy
    finally:
        for program in programs:
            if program.process is not None:
                program.process.terminate()
        for program in programs:
            program.wait_for_end()


def prepare(folder: Path, lots: int) -> None:
    """Write the models' repository, draw pictures and index the first lot of them."""
    build = [BIN / "twinspire", "build", sample_bundle(), "--output", folder / "models", "--threads=1"]
    subprocess.run([*build, "--no-raw-inputs"], check=True, stdout=subprocess.DEVNULL)
    count = str(lots * PICTURES_A_LOT)
    command = [BIN / "twinspire", "scenes", "draw", "--out", folder / "pictures", "--count", count]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    add(folder, 0)


def pictures(folder: Path, lot: int) -> list[Path]:
    """Return the files of a lot."""
    return sorted((folder / "pictures").rglob("*.jpg"))[lot * PICTURES_A_LOT :][:PICTURES_A_LOT]


def add(folder: Path, lot: int) -> None:
    """Add a lot to the index with the command, which computes in its own process."""
    command = [BIN / "twinspire", "index", "add", folder / "index", *pictures(folder, lot), "--bundle", sample_bundle()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Writer(threading.Thread):
    """Adds one lot of pictures after the other to the index."""

    def __init__(self, folder: Path, lots: int) -> None:
        super().__init__()
        self._folder, self._lots = folder, lots
        self._ended = threading.Event()
        self.added: list[int] = []

    def run(self) -> None:
        """Add until there are no more, or it is stopped."""
        for lot in range(1, self._lots):
            if self._ended.wait(1):
                return
            add(self._folder, lot)
            self.added.append(lot)

    def stop(self) -> None:
        """End after the lot that is being added."""
        self._ended.set()
        self.join()


def kill_in_turn(programs: dict[str, list[Program]], load: Load, *, seconds: float, kills: int) -> list[Any]:
    """Kill one program after the other and start it again; return what was killed when, and was ready again when."""
    events: list[Any] = []
    while len(events) < kills or load.now_s < seconds:
        turn = len(events)
        program = programs[PAIRS[turn % 2]][turn // 2 % 2]
        inner = [process for process in program.processes() if process.name() == "tritonserver"]
        server_only = bool(inner) and turn // 2 % 2 == 1
        time.sleep(1.5)
        event = {"killed": "tritonserver of " * server_only + program.name, "at_s": round(load.now_s, 2)}
        if server_only:
            os.kill(inner[0].pid, signal.SIGKILL)
            _until_not_ready(program)
        else:
            program.kill()
            time.sleep(1)
            program.start()
        program.wait_until_ready()
        events.append({**event, "ready_again_s": round(load.now_s, 2)})
    return events


def _until_not_ready(program: Program) -> None:
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        if httpx.get(program.url, timeout=5).status_code != 200:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{program.name} says that it is ready without tritonserver")


def run(folder: Path, *, seconds: float, kills: int, clients: int, caddyfile: Path, searches: bool) -> dict[str, Any]:
    """Run everything in a folder; return the record."""
    lots = max(3, int(seconds / 5))
    prepare(folder, lots)
    requests = requests_of(folder, searches=searches)
    with running(folder, caddyfile=caddyfile) as (programs, proxy):
        with Load(proxy.url.removesuffix("/readyz"), requests, clients) as load:
            writer = Writer(folder, lots)
            writer.start()
            events = kill_in_turn(programs, load, seconds=seconds, kills=kills)
            writer.stop()
            time.sleep(2)
            duration_s = load.now_s
        items = [_items(gateway) for gateway in programs["gateway"]] if searches else None
    latencies_ms = np.array([answer.latency_s for answer in load.answers]) * 1e3
    failures = [answer for answer in load.answers if answer.failure is not None]
    return {
        "schema_version": 1,
        "duration_s": round(duration_s, 1),
        "clients": clients,
        "requests": dict(Counter(answer.kind for answer in load.answers)),
        "failures": [vars(answer) for answer in failures],
        "latency_ms": {f"p{q}": round(float(np.percentile(latencies_ms, q)), 1) for q in (50, 99, 99.9, 100)},
        "kills": events,
        "lots_added": len(writer.added),
        "items": items,
    }


def _items(gateway: Program) -> int:
    answer = httpx.get(gateway.url.replace("/readyz", "/v1/info"), timeout=20)
    count: int = answer.raise_for_status().json()["index"]["items"]
    return count


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="at least so long")
    parser.add_argument("--kills", type=int, default=4, help="at least so many: gateway, Triton, the other of each")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--caddyfile", type=Path, default=ROOT / "deploy" / "caddy" / "Caddyfile")
    parser.add_argument("--no-searches", action="store_true")
    parser.add_argument("--json", type=Path, help="write the record to this file too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = run(
            Path(folder),
            seconds=given.seconds,
            kills=given.kills,
            clients=given.clients,
            caddyfile=given.caddyfile,
            searches=not given.no_searches,
        )
    text = json.dumps(record, indent=2)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
