"""Shared parts of the benchmark scripts: options, progress and errors, captions, and the commands that they run.

A benchmark uses the export and server packages through their commands, each in a process of its own.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, TypeAlias

import typer
from rich.console import Console

from twinspire._termination import sigterm_unwinds
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import EngineError, InputError, ServerError, TwinspireError
from twinspire.ingest.caption_files import CaptionForm
from twinspire_eval.datasets.caption_files import list_images
from twinspire_eval.flops import count_flops
from twinspire_eval.machine import matrix_peaks
from twinspire_eval.records import Record
from twinspire_eval.scenes import Language, Split, scene_set

SizeOption: TypeAlias = Annotated[
    str,
    typer.Option(
        help="vit-b-32, vit-b-16, vit-l-14, vit-l-14-336, siglip-b-16, siglip-so400m-14, chinese-clip-b-16, "
        "metaclip-2-b-32, or tiny for a trial."
    ),
]
GivenBundleOption: TypeAlias = Annotated[
    Path | None, typer.Option("--bundle", help="Bundle to measure instead of a model with random weights of --size.")
]
WorkOption: TypeAlias = Annotated[Path, typer.Option(help="Folder in which models are made and kept.")]
VocabularyOption: TypeAlias = Annotated[Path | None, typer.Option(help="Folder with OpenAI's CLIP vocabulary.")]
CaptionsOption: TypeAlias = Annotated[
    Path | None, typer.Option(help="COCO captions file; by default synthetic captions.")
]
ThreadsOption: TypeAlias = Annotated[int | None, typer.Option(help="Threads; by default one for each usable core.")]
JsonFileOption: TypeAlias = Annotated[Path | None, typer.Option("--json", help="Write the record to this file.")]

DEFAULT_WORK = Path("runs/bench")


def progress_lines(console: Console) -> Callable[[str], None]:
    """Return a function that prints a text on `console`, after the minutes and seconds since this call."""
    start = time.monotonic()

    def say(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        console.print(f"{minutes:3d}:{seconds:02d}  {text}", markup=False, highlight=False, soft_wrap=True)

    return say


@contextmanager
def exit_on_error(console: Console) -> Iterator[None]:
    """Print a TwinspireError that the block raises, and exit with status 1. SIGTERM stops what the block started."""
    try:
        with sigterm_unwinds():
            yield
    except TwinspireError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


def read_captions(file: Path | None, count: int) -> list[str]:
    """Read `count` captions from a COCO captions file, or those of synthetic scenes without a file.

    The first captions of all images come before their second ones. Raises InputError where the file is no COCO captions
    file or has fewer captions.
    """
    if file is None:
        return [scene.captions[Language.ENGLISH] for scene in scene_set(count, seed=0, split=Split.HELDOUT)]
    _, listed = list_images(file, CaptionForm.COCO)
    maximum = max(len(image.captions) for image in listed)
    texts = [image.captions[turn].text for turn in range(maximum) for image in listed if turn < len(image.captions)]
    if len(texts) < count:
        raise InputError(f"{file} has {len(texts)} captions: expected at least {count}")
    return texts[:count]


def batches_of(items: Any, size: int) -> list[Any]:  # noqa: ANN401 - an array or a list
    """Split rows or items into batches of `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def openvino_queue(engine: Path, *, threads: int, streams: int, precision: str | None = None) -> Any:  # noqa: ANN401
    """Return OpenVINO's queue of an engine, with a request for each stream, for throughput on the processor.

    `precision` is what float32 is computed in, by default OpenVINO's choice.
    """
    import openvino

    settings = {
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(threads),
        "PERFORMANCE_HINT": "THROUGHPUT",
        **({} if precision is None else {"INFERENCE_PRECISION_HINT": precision}),
    }
    return openvino.AsyncInferQueue(openvino.Core().compile_model(str(engine), "CPU", settings), streams)


def rate(encode: Callable[[Any], object], batches: Sequence[Any]) -> float:
    """Encode the batches one after the other, and return the items a second."""
    start = time.perf_counter()
    for batch in batches:
        encode(batch)
    return sum(map(len, batches)) / (time.perf_counter() - start)


def limit_images_per_s(bundle: Bundle, precision: Precision, threads: int) -> float:
    """Return the images/s at which an engine's multiplications would run at the measured matrix peaks."""
    size = bundle.image.size
    flops = count_flops(bundle.engine(Tower.IMAGE, precision), (1, size, size, 3))
    return 1 / flops.minimum_s(matrix_peaks(threads))


TWINSPIRE = (sys.executable, "-c", "from twinspire.cli import main; main()")
RANDOM_CHECKPOINT = (sys.executable, "-m", "twinspire_export.random_checkpoints")
MERGE_TOKENS = (sys.executable, "-m", "twinspire_export.precision.merging")

RANGES = "asymmetric"
"""Recipe that `twinspire precision` chose for the sample; random weights have no recall to choose by."""

_STOP_S = 30.0
_HEARTBEAT_S = 30.0


@dataclass(frozen=True)
class RunningServer:
    """Triton started by `twinspire serve`: its gRPC address, version and origin (wheel or installation), process."""

    address: str
    version: str
    origin: str
    pid: int


def run(*command: str | Path) -> None:
    """Run a command to its end; print it, its output and a line every half minute on standard error.

    Raises EngineError where it fails.
    """
    words = [str(word) for word in command]
    start = time.monotonic()
    print(f"running {_shown(words)}", file=sys.stderr, flush=True)
    with subprocess.Popen(words, stdout=sys.stderr) as process:  # noqa: S603 - our own commands
        while True:
            try:
                status = process.wait(_HEARTBEAT_S)
                break
            except subprocess.TimeoutExpired:
                print(f"  after {time.monotonic() - start:.0f} s it is still running", file=sys.stderr, flush=True)
    if status != 0:
        raise EngineError(f"`{_shown(words)}` failed with status {status}: see its output above")


@dataclass(frozen=True)
class RandomModel:
    """Model of a published size with random weights: its checkpoint and its fp32 and int8 bundle, in `folder`."""

    folder: Path
    checkpoint: Path
    bundle: Bundle


def random_model(size: str, work: Path, *, vocabulary: Path | None = None) -> RandomModel:
    """Make the checkpoint and the bundle, fp32 and int8, of a published size, or open those that `work` holds.

    `size` is a name that `python -m twinspire_export.random_checkpoints` takes, `vocabulary` the folder of OpenAI's
    vocabulary; models with and without it have folders of their own. Takes minutes the first time. Raises EngineError
    where a command fails.
    """
    folder = work / f"{size}-{'scene-words' if vocabulary is None else 'openai-words'}"
    checkpoint, plain, quantized = (folder / step for step in ("checkpoint", "fp32", "int8"))
    if not (checkpoint / "model.safetensors").exists():
        words = () if vocabulary is None else ("--vocabulary", vocabulary)
        run(*RANDOM_CHECKPOINT, size, "-o", checkpoint, *words)
    if not plain.exists():
        run(*TWINSPIRE, "export", checkpoint, "-o", plain, "--name", size)
    if not quantized.exists():
        run(*TWINSPIRE, "quantize", plain, "-o", quantized, "--ranges", RANGES)
    return RandomModel(folder, checkpoint, Bundle.open(quantized))


def measured_bundle(
    given: Path | None, size: str, work: Path, *, vocabulary: Path | None = None
) -> tuple[Bundle, Path]:
    """Return the bundle that was given, else one of a published size with random weights, and a folder to work in."""
    if given is not None:
        folder = work / "given"
        folder.mkdir(parents=True, exist_ok=True)
        return Bundle.open(given), folder
    model = random_model(size, work, vocabulary=vocabulary)
    return model.bundle, model.folder


@dataclass(frozen=True, kw_only=True)
class ServedOptions:
    """A bundle, how it is served from the wheel, and the folder for its repository."""

    bundle: Bundle
    threads: int
    streams: int
    work: Path
    precision: Precision = Precision.INT8

    @property
    def repository(self) -> Path:
        """The folder of the model repository."""
        return self.work / f"{self.bundle.name}-models-wheel-{self.streams}"

    def parameters(self) -> dict[str, Any]:
        """Return the options as a record holds them."""
        return {"precision": self.precision, "threads": self.threads, "streams": self.streams}

    @contextmanager
    def serve(self) -> Iterator[RunningServer]:
        """Build the repository and serve it until the block ends. Raises as `run` and `running_server` do."""
        words = [f"--{name}={value}" for name, value in self.parameters().items()]
        run(*TWINSPIRE, "build", self.bundle.path, "-o", self.repository, *words)
        with running_server(self.repository) as server:
            yield server

    def record(self, kind: str, server: RunningServer, settings: Mapping[str, Any], results: Any) -> Record:  # noqa: ANN401 - JSON
        """Return the record of a benchmark on `server`."""
        return Record(
            kind=kind,
            parameters={**settings, **self.parameters()},
            subject={
                "bundle": self.bundle.name,
                "space": self.bundle.space,
                "triton": server.version,
                "triton_from": server.origin,
            },
            results=results,
        )


@contextmanager
def running_server(repository: Path, *, backend_directory: Path | None = None) -> Iterator[RunningServer]:
    """Serve a repository with `twinspire serve` on free ports, without its canary, until the block ends.

    `backend_directory` holds Triton backends beside the installed ones. Raises ServerError where the server does not
    start; the command prints the reason on standard error.
    """
    command = [*TWINSPIRE, "serve", str(repository), "--json"]
    command += [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "status")]
    command += ["--canary-interval=0"]  # Triton's statistics would count its inferences as requests
    command += ["--latest"]  # what was built, not what an earlier run served last
    if backend_directory is not None:
        command += ["--backend-directory", str(backend_directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:  # noqa: S603
        try:
            assert process.stdout is not None
            announced = _first_document(process.stdout)
            if announced is None:
                raise ServerError(f"`{_shown(command)}` did not start a server: see its output above")
            version, origin = announced["triton_version"], announced["triton_origin"]
            yield RunningServer(announced["grpc"], version, origin, announced["pid"])
        finally:
            stop(process)


@contextmanager
def running_gateway(server: RunningServer) -> Iterator[str]:
    """Run `twinspire gateway` on a free port in front of a server until the block ends; yield its address.

    Raises ServerError where it does not start; the command prints the reason on standard error.
    """
    command = [*TWINSPIRE, "gateway", "--server", server.address, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:  # noqa: S603
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("gateway at "):
                raise ServerError(f"`{_shown(command)}` did not start a gateway: see its output above")
            yield line.split()[-1]
        finally:
            stop(process)


def _first_document(stream: IO[str]) -> dict[str, Any] | None:
    """Read the first JSON object of a stream, over several lines; None where the stream ends before."""
    text = ""
    for line in stream:
        text += line
        try:
            found: dict[str, Any] = json.loads(text)
        except ValueError:
            continue
        return found
    return None


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process that may still run, with what it has started; after a while by force."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _shown(command: Sequence[str]) -> str:
    """Format a command as a user would type it."""
    words = list(command)
    for prefix, name in ((TWINSPIRE, "twinspire"), (RANDOM_CHECKPOINT, f"python {' '.join(RANDOM_CHECKPOINT[1:])}")):
        if tuple(words[: len(prefix)]) == prefix:
            words[: len(prefix)] = [name]
    return " ".join(words)
