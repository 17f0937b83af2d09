"""The folders of models: written beside the repository, then brought to their places."""

from __future__ import annotations

import filecmp
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from twinspire import contract
from twinspire.bundle import Bundle, BundleWriter, Precision, Tower
from twinspire.tensorrt_support import PlanRecord
from twinspire.towers import Provider
from twinspire.towers.auto_selection import candidates
from twinspire_server.repository.config import (
    WarmUp,
    config_pbtxt,
    container_text_config_pbtxt,
    engine_name,
    warm_ups,
)
from twinspire_server.repository.engine_files import EngineFile
from twinspire_server.repository.installed import BUNDLE
from twinspire_server.repository.model_config import CONFIG
from twinspire_server.repository.settings import Device, RepositoryRuntime, ServingOptions

MODEL_FILE = Path(__file__).with_name("model.py")
CONTAINER_TEXT_FILE = Path(__file__).with_name("container_text.py")
CONTRACT_FILE = Path(contract.__file__)


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A tower as the repository holds it. `folder` is the model's; `version` the one that Triton will serve."""

    name: str
    tower: Tower
    version: int
    precision: Precision
    space: str
    folder: Path


@dataclass(frozen=True, kw_only=True)
class ModelTask:
    """One model to write. `engine` is the container's file, None for the wheel, which is given the bundle.

    `plan` describes a TensorRT plan, None where an ONNX engine is served.
    """

    bundle: Bundle
    model: ServedModel
    engine: EngineFile | None
    plan: PlanRecord | None


@contextmanager
def staging_folder(destination: Path) -> Iterator[Path]:
    """Make a folder to write in, beside the destination: Triton would take it for a model if it were inside."""
    # A mounted volume's neighbours are on another file system, to which nothing can be renamed.
    parent = destination if destination.is_mount() else destination.resolve().parent
    folder = parent / f".{destination.name}.{secrets.token_hex(6)}.tmp"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_model(staging: Path, task: ModelTask, options: ServingOptions, copies: dict[Path, Bundle]) -> None:
    """Write a model to `staging`. `copies` are what the bundles were copied to, for the second tower to link to."""
    bundle, model = task.bundle, task.model
    options = _resolved(bundle, model.precision, options)
    config = config_pbtxt(bundle, model.tower, model.precision, options, task.plan)
    own_warm_ups = warm_ups(bundle, model.tower, options, task.plan)
    if task.engine is None:
        version = _write_folder(staging / model.name, model.version, config, own_warm_ups)
        shutil.copyfile(MODEL_FILE, version / MODEL_FILE.name)
        copy = copies.get(bundle.path)
        with BundleWriter(version / BUNDLE, base=copy or bundle, links=copy is not None) as writer:
            copies[bundle.path] = writer.commit(bundle.manifest.draft(), {})
        return
    engine = staging / (model.name if model.tower is Tower.IMAGE else engine_name(bundle))
    task.engine.write(_write_folder(engine, model.version, config, own_warm_ups))
    if model.tower is Tower.TEXT:
        config = container_text_config_pbtxt(bundle, model.precision, options, task.plan)
        version = _write_folder(staging / model.name, model.version, config, ())
        shutil.copyfile(CONTAINER_TEXT_FILE, version / MODEL_FILE.name)
        shutil.copyfile(CONTRACT_FILE, version / CONTRACT_FILE.name)


def install_model(staging: Path, task: ModelTask, destination: Path) -> None:
    """Bring a staged model, and the engine that it calls, to their places; an engine that it calls no more goes."""
    model = task.model
    if model.tower is Tower.TEXT:
        engine = engine_name(task.bundle)
        if task.engine is not None:
            _install(staging / engine, destination / engine, model.version)
        else:
            shutil.rmtree(destination / engine, ignore_errors=True)
    _install(staging / model.name, model.folder, model.version)


def _write_folder(folder: Path, number: int, config: str, own_warm_ups: Sequence[WarmUp]) -> Path:
    """Write a model's folder with its config and warm-up; return the folder of the version, which is empty."""
    version = folder / str(number)
    version.mkdir(parents=True)
    (folder / CONFIG).write_text(config, encoding="utf-8")
    for warm_up in own_warm_ups:
        if warm_up.ids is not None:
            (folder / "warmup").mkdir(exist_ok=True)
            np.array(warm_up.ids, np.int32).tofile(folder / "warmup" / warm_up.name)
    return version


def _resolved(bundle: Bundle, precision: Precision, options: ServingOptions) -> ServingOptions:
    """Fill in what the container's instances on a CPU must be told: how many, and the threads that they divide.

    The wheel's model.py finds both out where it serves.
    """
    if options.runtime is RepositoryRuntime.WHEEL or options.device is Device.GPU:
        return options
    threads = len(os.sched_getaffinity(0)) if options.threads is None else options.threads
    streams = options.streams
    if streams is None:
        streams = min(next(candidates(bundle, Provider.CPU, precision)).streams, threads)
    return replace(options, streams=streams, threads=threads)


def _install(staged: Path, destination: Path, number: int) -> None:
    """Bring a staged folder to its place: whole where it is new, else part by part, the config last."""
    if not destination.exists():
        staged.rename(destination)
        return
    for part in (str(number), "warmup"):
        new, old = staged / part, destination / part
        if new.exists() and not _same(new, old):
            if old.exists():
                old.rename(staged / f"{part}.old")
            new.rename(old)
    (staged / CONFIG).replace(destination / CONFIG)


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same content."""
    if not other.is_dir():
        return False
    files = {path.relative_to(one) for path in one.rglob("*")}
    return files == {path.relative_to(other) for path in other.rglob("*")} and all(
        (one / file).is_dir() == (other / file).is_dir()
        and ((one / file).is_dir() or (one / file).samefile(other / file) or _equal(one / file, other / file))
        for file in files
    )


def _equal(one: Path, other: Path) -> bool:
    return filecmp.cmp(one, other, shallow=False)
