"""`twinspire reload`: a running server takes a new build without a failed request, and only one that is right."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from tritonclient.grpc import InferenceServerClient, service_pb2_grpc

from twinspire import sample_bundle
from twinspire.bundle import Bundle, BundleWriter, Precision, Tower
from twinspire.contract import padded
from twinspire.towers import LocalTowers, TritonTowers
from twinspire.towers.triton.models import expected_tower, infer_request
from twinspire_server.repository import build_repository
from twinspire_server.repository.config import CONFIG

TWINSPIRE = Path(sys.executable).with_name("twinspire")
_FREE = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--status-port", "0", "--canary-interval", "0"]
_REQUESTS = 10_000
_PAUSE_S = 0.005
"""Between two requests of a client: servers have to start beside the load, on machines with few cores."""


@dataclass
class Server:
    """A running `twinspire serve` of a repository with the sample's bundle."""

    folder: Path
    options: tuple[str, ...] = ("--connection-age", "2")
    process: subprocess.Popen[str] = field(init=False)
    told: dict[str, Any] = field(init=False)

    @property
    def log(self) -> str:
        """What it has reported."""
        return (self.folder / "errors.txt").read_text()

    @property
    def repository(self) -> Path:
        """The folder that is built into."""
        return self.folder / "models"

    @property
    def state(self) -> Path:
        """The folder of the releases."""
        return self.folder / ".models.serving"

    def build(self, precision: str) -> None:
        """Build the sample's bundle."""
        build_repository([sample_bundle()], self.repository, precision=precision, threads=1)

    def start(self, *options: str) -> None:
        """Start it and wait until it is ready."""
        command = [TWINSPIRE, "serve", self.repository, *_FREE, *self.options, *options, "--json"]
        with (self.folder / "errors.txt").open("a") as errors:
            self.process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=errors)
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        self.told = json.loads("".join(lines))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it and wait until its ports are free."""
        self.process.send_signal(number)
        self.process.communicate(timeout=30)
        return self.process.returncode

    def reload(self, *options: str) -> Any:
        """Run `twinspire reload --json`; return its document, which has the exit status too."""
        done = self.run_reload(*options)
        assert "Traceback" not in done.stderr
        return json.loads(done.stdout) | {"status": done.returncode}

    def run_reload(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run `twinspire reload --json`."""
        command = [TWINSPIRE, "reload", self.repository, "--json", *options]
        return subprocess.run(command, text=True, capture_output=True, timeout=600, check=False)

    def precisions(self) -> set[str]:
        """Ask the server which precisions it serves."""
        found = set()
        with closing(InferenceServerClient(self.told["grpc"])) as client:
            for model in ("scenes_image", "scenes_text"):
                parameters = client.get_model_config(model, as_json=True)["config"]["parameters"]
                found.add(parameters["precision"]["string_value"])
        return found


@pytest.fixture(scope="module")
def server(needs_triton: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve the sample in fp32."""
    made = Server(tmp_path_factory.mktemp("reload"))
    made.build("fp32")
    made.start()
    yield made
    made.stop()


def _encoded(precision: str) -> NDArray[np.float32]:
    """Encode the probes' texts one by one in this process."""
    bundle = Bundle.open(sample_bundle())
    towers = LocalTowers(bundle, precision=precision, provider="cpu", threads=1)
    texts = bundle.probes().towers[Tower.TEXT].inputs
    return np.concatenate([towers.encode_texts([text]) for text in texts])


class Load:
    """Clients in threads that ask for the probes' texts until the block ends: ours, and gRPC's stub without retries."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stopped = threading.Event()
        self._bundle = Bundle.open(sample_bundle())
        self._texts = self._bundle.probes().towers[Tower.TEXT].inputs
        self.answers: list[tuple[int, NDArray[np.float32]]] = []
        self.errors: list[Exception] = []
        self.longest_s = 0.0
        self._threads = [threading.Thread(target=self._run, args=(self._ours,)) for _ in range(6)]
        self._threads += [threading.Thread(target=self._run, args=(self._stub,)) for _ in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def until(self, requests: int) -> None:
        """Wait until so many requests were answered."""
        deadline_s = time.monotonic() + 120
        while len(self.answers) < requests and not self.errors:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)

    def _run(self, clients: Callable[[], Iterator[Callable[[int], NDArray[np.float32]]]]) -> None:
        for ask in clients():
            position = 0
            while not self._stopped.is_set():
                position = (position + 1) % len(self._texts)
                start_s = time.monotonic()
                try:
                    self.answers.append((position, ask(position)))
                except Exception as error:
                    self.errors.append(error)
                self.longest_s = max(self.longest_s, time.monotonic() - start_s)
                time.sleep(_PAUSE_S)

    def _ours(self) -> Iterator[Callable[[int], NDArray[np.float32]]]:
        with TritonTowers(self._address, self._bundle) as towers:
            yield lambda position: towers.encode_texts([self._texts[position]])[0]

    def _stub(self) -> Iterator[Callable[[int], NDArray[np.float32]]]:
        model, text = expected_tower(self._bundle, Tower.TEXT, "scenes"), self._bundle.text
        with grpc.insecure_channel(self._address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

            def ask(position: int) -> NDArray[np.float32]:
                rows = padded([self._texts[position]], text.pad_id, text.context_length)
                request = infer_request(model, [rows], timeout_s=30)
                return np.frombuffer(stub.ModelInfer(request, timeout=30).raw_output_contents[0], np.float32)

            yield ask


def test_no_request_fails_while_versions_change(server: Server) -> None:
    """10,000 requests during a reload and a rollback: none fails, each answer is of one of the two versions."""
    with Load(server.told["grpc"]) as load:
        load.until(100)
        server.build("int8")
        first = server.reload()
        assert (first["status"], first["taken"], first["serving"]["scenes_text"]) == (0, True, 2)
        back = server.reload("--rollback")
        assert (back["status"], back["taken"], back["serving"]["scenes_text"]) == (0, True, 1)
        assert first["notes"] == back["notes"] == []
        load.until(_REQUESTS)
    for outcome in (first, back):
        print(f"served after {outcome['took_s']} s, drained after {outcome['drained_s']} s")
    print(f"{len(load.answers)} requests, the longest {load.longest_s:.2f} s, {load.errors[:3]}")
    assert load.errors == []
    assert len(load.answers) >= _REQUESTS
    versions = np.stack([_encoded("fp32"), _encoded("int8")])  # (2, texts, D)
    positions = np.array([position for position, _ in load.answers])
    found = np.stack([embedding for _, embedding in load.answers])
    differences = np.abs(found - versions[:, positions]).max(axis=2)  # (2, requests)
    apart = np.abs(versions[0] - versions[1]).max(axis=1).min()
    print(f"largest difference {differences.min(axis=0).max():.2g}, the versions differ by {apart:.2g} or more")
    assert differences.min(axis=0).max() < apart / 4
    assert set(differences.argmin(axis=0)) == {0, 1}


def _flipped_byte(server: Server, folder: Path) -> None:
    """Build another engine and flip a byte in it."""
    server.build("int8")
    (engine,) = server.repository.glob("scenes_image/2/bundle/image.int8.onnx")
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.unlink()  # the text model shares it
    engine.write_bytes(content)


def _other_weights(server: Server, folder: Path) -> None:
    """Build a bundle whose int8 image engine has the rows of a weight in another order, with a right manifest."""
    bundle = Bundle.open(sample_bundle())
    model = onnx.load(bundle.engine(Tower.IMAGE, Precision.INT8))
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    tensor.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(tensor), 1, axis=0), tensor.name))
    with BundleWriter(folder / "bundle", base=bundle) as writer:
        onnx.save(model, writer.path("image.int8.onnx"))
        certificate = bundle.manifest.engines[Tower.IMAGE][Precision.INT8].certificate
        writer.commit(bundle.manifest.draft(), {(Tower.IMAGE, Precision.INT8): ("image.int8.onnx", certificate)})
    build_repository([folder / "bundle"], server.repository, precision="int8", threads=1)


def _other_tokenizer(server: Server, folder: Path) -> None:
    """Build a bundle with the same engines in which two tokens have changed places, with a right manifest."""
    bundle = Bundle.open(sample_bundle())
    document = json.loads(bundle.tokenizer_path.read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["w"], vocabulary["Y"] = vocabulary["Y"], vocabulary["w"]
    with BundleWriter(folder / "bundle", base=bundle) as writer:
        writer.path("tokenizer.json").write_text(json.dumps(document))
        writer.commit(bundle.manifest.draft(), {})
    build_repository([folder / "bundle"], server.repository, precision="fp32", threads=1)


@pytest.mark.parametrize(
    ("make", "word"), [(_flipped_byte, "sha256"), (_other_weights, "cosine"), (_other_tokenizer, "tokenizer")]
)
def test_a_build_that_is_wrong_is_refused(
    server: Server, tmp_path: Path, make: Callable[[Server, Path], None], word: str
) -> None:
    """A damaged engine, other weights, another tokenizer: status 1 and the reason, and the old version is served."""
    for model in server.repository.iterdir():
        shutil.rmtree(model)
    server.build("fp32")
    before = sorted(server.state.iterdir())
    make(server, tmp_path)
    outcome = server.reload()
    assert (outcome["status"], outcome["taken"]) == (1, False)
    assert word in outcome["reason"]
    assert outcome["serving"] == {"scenes_image": 1, "scenes_text": 1, "scenes_reranker": 1}
    assert server.precisions() == {"fp32"}
    assert sorted(server.state.iterdir()) == before
    if word == "cosine":
        (image, _) = outcome["probes"]
        assert (image["model"], image["version"]) == ("scenes_image", 2)
        assert image["cosine"] < image["bound"]


def test_triton_starts_again_with_what_was_taken(server: Server) -> None:
    """Triton that dies beside a build which nobody has taken serves the old version again."""
    server.build("int8")
    restarts = server.log.count("serves again")
    (pid,) = _tritons(server.state)
    os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + 60
    while server.log.count("serves again") == restarts:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert server.precisions() == {"fp32"}


def test_one_reload_at_a_time(server: Server) -> None:
    """While a reload runs, another is refused with status 2 at once, and the first goes on."""
    command = [TWINSPIRE, "reload", server.repository, "--json"]
    first = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert first.stderr is not None
    assert "loading" in first.stderr.readline()
    second = server.run_reload()
    assert second.returncode == 2
    assert "under way" in second.stderr
    document, _ = first.communicate(timeout=120)
    assert json.loads(document)["taken"]


def test_a_killed_reload_goes_on_in_the_server(server: Server) -> None:
    """Kill -9 of `twinspire reload` half-way: the server takes the build, and takes further commands."""
    server.build("fp32")
    command = [TWINSPIRE, "reload", server.repository]
    with subprocess.Popen(command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as reload:
        assert reload.stderr is not None
        assert "loading" in reload.stderr.readline()
        reload.kill()
    deadline_s = time.monotonic() + 60
    while server.precisions() != {"fp32"}:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    while (back := server.run_reload("--rollback")).returncode == 2 and "under way" in back.stderr:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert json.loads(back.stdout)["taken"]
    assert server.precisions() == {"int8"}


def test_a_second_server_of_a_repository_is_refused(server: Server) -> None:
    """`twinspire serve` of a repository that is served ends with status 2 and names `twinspire reload`."""
    command = [TWINSPIRE, "serve", server.repository, *_FREE]
    done = subprocess.run(command, text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "twinspire reload" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_server_of_another_user_is_out_of_reach(server: Server) -> None:
    """`twinspire reload` by another user ends with status 2 and names the user who serves."""
    code = """
import os, sys
from pathlib import Path
from twinspire.errors import ServerError
from twinspire_server.triton.control import send_command
os.setuid(65534)
try:
    send_command(Path(sys.argv[1]), {}, progress=print, repository=Path("models"))
except ServerError as error:
    print(error)
"""
    for folder in list(server.folder.parents)[:3]:
        folder.chmod(folder.stat().st_mode | 0o111)
    server.folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code, server.state], text=True, capture_output=True, check=True)
    assert "root" in done.stdout


def test_a_new_build_is_served_by_reload_or_latest_alone(needs_triton: None, tmp_path: Path) -> None:
    """`serve` starts with what it served last, also after kill -9 during reloads; `--latest` starts with the newest."""
    server = Server(tmp_path, ("--connection-age", "1"))
    server.build("fp32")
    server.start()
    server.build("int8")
    server.stop()
    server.start()
    assert server.precisions() == {"fp32"}
    assert "--latest" in server.log
    command = [TWINSPIRE, "reload", server.repository]
    for delay_s in (0.5, 3.0):
        reload = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay_s)
        server.stop(signal.SIGKILL)
        assert reload.wait(30) == 2
        deadline_s = time.monotonic() + 30
        while _tritons(server.state):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        server.start()
        assert server.precisions() in ({"fp32"}, {"int8"})
    server.stop()
    server.start("--latest")
    assert server.precisions() == {"int8"}
    assert server.stop() == 0


def test_a_release_of_another_version_is_not_served(needs_triton: None, tmp_path: Path) -> None:
    """After an upgrade `serve` starts with a build that fits, says so, and refuses where there is none."""
    server = Server(tmp_path)
    server.build("fp32")
    server.start()
    server.stop()
    served = server.state / "1" / "scenes_image" / CONFIG
    _claim_other_code(served)
    server.start()
    assert server.precisions() == {"fp32"}
    assert "another version of twinspire" in server.log
    server.stop()
    for config in (server.state / "2" / "scenes_image" / CONFIG, server.repository / "scenes_image" / CONFIG):
        _claim_other_code(config)
    command = [TWINSPIRE, "serve", server.repository, *_FREE]
    done = subprocess.run(command, text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "scenes_image: run `twinspire build` again" in " ".join(done.stderr.split())


def _claim_other_code(config: Path) -> None:
    text = config.read_text()
    changed = re.sub(r'("code_sha256" value: \{ string_value: ")\w+', r"\g<1>0123456789abcdef", text)
    assert changed != text
    config.write_text(changed)


def _tritons(state: Path) -> list[int]:
    """List the `tritonserver` processes that serve a release in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if arguments[0].endswith("tritonserver") and any(str(state) in argument for argument in arguments):
            found.append(int(entry.name))
    return found
