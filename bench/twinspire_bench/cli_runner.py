"""What a benchmark needs of the other rooms, got as a user gets it: through their commands, each its own process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from twinspire.bundle import Bundle
from twinspire.errors import EngineError, ServerError

TWINSPIRE = (sys.executable, "-c", "from twinspire.cli import main; main()")
SEEDED = (sys.executable, "-m", "twinspire_export.random_checkpoints")

RANGES = "asymmetric"
"""The recipe with which `twinspire precision` found the sample's engines fastest without loss; seeded weights have no
recall to choose by."""

_STOP_S = 30.0
_SIGN_OF_LIFE_S = 30.0


@dataclass(frozen=True)
class RunningServer:
    """A Triton that `twinspire serve` started: its gRPC address, its version and where it came from."""

    address: str
    version: str
    origin: str


def run(*command: str | Path) -> None:
    """Run a command to its end; it and what it prints go to standard error, with a line for each half minute.

    Raises EngineError where it fails.
    """
    words = [str(word) for word in command]
    start = time.monotonic()
    print(f"running {_shown(words)}", file=sys.stderr, flush=True)
    with subprocess.Popen(words, stdout=sys.stderr) as process:  # noqa: S603 - our own commands
        while True:
            try:
                status = process.wait(_SIGN_OF_LIFE_S)
                break
            except subprocess.TimeoutExpired:
                print(f"  after {time.monotonic() - start:.0f} s it is still at work", file=sys.stderr, flush=True)
    if status != 0:
        raise EngineError(f"`{_shown(words)}` ended with status {status}: see what it printed above")


@dataclass(frozen=True)
class SeededModel:
    """A model of a published size with seeded weights: its checkpoint and bundle, in a `folder` of its own."""

    folder: Path
    checkpoint: Path
    bundle: Bundle


def seeded_model(size: str, work: Path, *, vocabulary: Path | None = None) -> SeededModel:
    """Make the checkpoint and the bundle, fp32 and int8, of a published size, or open what `work` holds.

    `size` is a name that `python -m twinspire_export.random_checkpoints` knows, `vocabulary` the folder of OpenAI's
    merges; models with and without it are kept apart. Takes minutes the first time. Raises EngineError where a
    command fails.
    """
    folder = work / f"{size}-{'scene-words' if vocabulary is None else 'openai-words'}"
    checkpoint, plain, quantized = (folder / step for step in ("checkpoint", "fp32", "int8"))
    if not (checkpoint / "model.safetensors").exists():
        words = () if vocabulary is None else ("--vocabulary", vocabulary)
        run(*SEEDED, size, "-o", checkpoint, *words)
    if not plain.exists():
        run(*TWINSPIRE, "export", checkpoint, "-o", plain, "--name", size)
    if not quantized.exists():
        run(*TWINSPIRE, "quantize", plain, "-o", quantized, "--ranges", RANGES)
    return SeededModel(folder, checkpoint, Bundle.open(quantized))


@contextmanager
def served(repository: Path, *, backend_directory: Path | None = None) -> Iterator[RunningServer]:
    """Serve a repository with `twinspire serve` on free ports, without its canary; it is stopped at the end.

    `backend_directory` holds backends to use beside Triton's own. Raises ServerError where it does not start; the
    command's own reason is on standard error.
    """
    command = [*TWINSPIRE, "serve", str(repository), "--json"]
    command += [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    command += ["--canary-interval=0"]  # Triton's statistics would count its inferences as requests
    if backend_directory is not None:
        command += ["--backend-directory", str(backend_directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:  # noqa: S603
        try:
            assert process.stdout is not None
            announced = _first_document(process.stdout)
            if announced is None:
                raise ServerError(f"`{_shown(command)}` did not start a server: see what it printed above")
            yield RunningServer(announced["grpc"], announced["triton_version"], announced["triton_origin"])
        finally:
            _stop(process)


def _first_document(stream: IO[str]) -> dict[str, str] | None:
    """Read the first JSON object that a command prints over several lines; None where the stream ends before."""
    text = ""
    for line in stream:
        text += line
        try:
            found: dict[str, str] = json.loads(text)
        except ValueError:
            continue
        return found
    return None


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _shown(command: Sequence[str]) -> str:
    """Write a command as a user would."""
    words = list(command)
    for prefix, name in ((TWINSPIRE, "twinspire"), (SEEDED, f"python {' '.join(SEEDED[1:])}")):
        if tuple(words[: len(prefix)]) == prefix:
            words[: len(prefix)] = [name]
    return " ".join(words)
