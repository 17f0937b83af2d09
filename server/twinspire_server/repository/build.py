"""From bundles to the folder that Triton loads."""

from __future__ import annotations

import filecmp
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from twinspire._arguments import as_member, require_list
from twinspire.bundle import Bundle, BundleWriter, Precision, Tower
from twinspire.bundle.copying import copy_file
from twinspire.errors import InputError, SpaceMismatchError
from twinspire.towers import Provider, ragged
from twinspire.towers.selection import AUTO, candidates, parse_precision, unfit
from twinspire_server.repository.config import (
    WarmUp,
    config_pbtxt,
    container_text_config_pbtxt,
    engine_name,
    model_name,
    warm_ups,
)
from twinspire_server.repository.existing import BUNDLE, CONFIG, ENGINE, read_existing
from twinspire_server.repository.settings import Accelerator, Device, RepositoryRuntime, ServingOptions

MODEL_FILE = Path(__file__).with_name("model.py")
CONTAINER_TEXT_FILE = Path(__file__).with_name("container_text.py")
RAGGED_FILE = Path(ragged.__file__)
_PROVIDERS = {Device.CPU: Provider.CPU, Device.GPU: Provider.CUDA}


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A tower as the repository holds it. `folder` is the model's; `version` the one that Triton will serve."""

    name: str
    tower: Tower
    version: int
    precision: Precision
    space: str
    folder: Path


def build_repository(
    bundles: Sequence[Path],
    destination: Path,
    *,
    precision: Precision | str = AUTO,
    runtime: RepositoryRuntime | str = RepositoryRuntime.WHEEL,
    device: Device | str = Device.CPU,
    threads: int | None = None,
    streams: int | None = None,
    accelerator: Accelerator | str = Accelerator.TENSORRT,
) -> list[ServedModel]:
    """Write `{name}_image` and `{name}_text` for each bundle into `destination`; other models there stay.

    For the container `{name}_engine_text` comes with them, which `{name}_text` calls.

    `precision` `auto` is what `LocalTowers` would take on this machine; for a GPU, what the bundle was measured to be
    best on one, wherever the repository is built. Engines are copies: what is done to the repository never reaches a
    bundle. The two models of one bundle share theirs where the file system knows hard links. A model that is there
    already gets a further version; the newest one is replaced where it has the same engine or none. Nothing is written
    where a bundle cannot be served.

    Raises BundleError where a bundle is not intact or lacks the precision, SpaceMismatchError where a model
    of that name has another space, InputError for two bundles of one name, unknown options and a destination
    that cannot be written.
    """
    runtime, device = as_member(runtime, RepositoryRuntime, "runtime"), as_member(device, Device, "device")
    accelerator = as_member(accelerator, Accelerator, "accelerator")
    opened = [Bundle.open(path) for path in require_list(bundles, "bundles")]
    twice = [name for name, count in Counter(bundle.name for bundle in opened).items() if count > 1]
    if not opened or twice:
        raise InputError(f"bundles named {twice}: expected one or more, each of its own name")
    if destination.exists() and not destination.is_dir():
        raise InputError(f"{destination} is no folder: name one with -o, new or with other models in it")
    named = parse_precision(precision)
    options = ServingOptions(
        runtime=runtime,
        device=device,
        threads=threads,
        streams=streams,
        providers=_providers(device),
        accelerator=accelerator,
    )
    plan = [
        _planned(bundle, tower, named or _best(bundle, device, runtime), destination)
        for bundle in opened
        for tower in Tower
    ]
    try:
        destination.mkdir(parents=True, exist_ok=True)
        with _staging(destination) as staging:
            copies: dict[Path, Bundle] = {}
            for bundle, model in plan:
                _write(staging, bundle, model, options, copies)
            for bundle, model in plan:
                if model.tower is Tower.TEXT:
                    engine = engine_name(bundle)
                    if runtime is RepositoryRuntime.CONTAINER:
                        _install(staging / engine, destination / engine, model.version)
                    else:
                        shutil.rmtree(destination / engine, ignore_errors=True)
                _install(staging / model.name, model.folder, model.version)
    except OSError as error:
        raise InputError(
            f"{destination} cannot be written: {error.strerror or error}. Name another folder with -o"
        ) from error
    return [model for _, model in plan]


def _providers(device: Device) -> str:
    """Say what `LocalTowers` is to choose from; `auto` prefers CUDA where it is, which only a GPU's is to take."""
    if device is Device.GPU:
        return Provider.CUDA
    try:
        import onnxruntime
    except ImportError:
        return AUTO
    return Provider.CPU if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else AUTO


def _best(bundle: Bundle, device: Device, runtime: RepositoryRuntime) -> Precision:
    choice, provider = bundle.manifest.auto, _PROVIDERS[device]
    if choice is not None:
        # The container computes on the CPU by onnxruntime's own provider alone, the wheel by any that is there.
        is_any = device is Device.CPU and runtime is RepositoryRuntime.WHEEL
        serves = choice.provider != Provider.CUDA if is_any else choice.provider == provider
        if serves and (device is Device.GPU or unfit(choice, is_named=True) is None):
            return choice.precision
    return next(candidates(bundle, provider, None)).precision


def _planned(bundle: Bundle, tower: Tower, precision: Precision, destination: Path) -> tuple[Bundle, ServedModel]:
    """Decide a model's version. Raises where it cannot be built."""
    bundle.engine(tower, precision)
    name = model_name(bundle, tower)
    folder = destination / name
    existing = read_existing(folder, tower)
    if tower is Tower.TEXT:
        read_existing(destination / engine_name(bundle), tower)  # it is written or removed with the model
    version = 1
    if existing is not None:
        if existing.space not in (None, bundle.space):
            raise SpaceMismatchError(
                f"{folder} serves a bundle of another space than {bundle.name!r} at {bundle.path}: a model keeps one "
                "space. Remove that folder or build into another with -o"
            )
        engine = bundle.manifest.engines[tower][precision].sha256
        version = max(existing.newest, 1) if existing.engine_sha256 in (None, engine) else existing.newest + 1
    served = ServedModel(
        name=name, tower=tower, version=version, precision=precision, space=bundle.space, folder=folder
    )
    return bundle, served


@contextmanager
def _staging(destination: Path) -> Iterator[Path]:
    """Make a folder to write in, beside the destination: Triton would take it for a model if it were inside."""
    # A mounted volume's neighbours are on another file system, to which nothing can be renamed.
    parent = destination if destination.is_mount() else destination.resolve().parent
    folder = parent / f".{destination.name}.{secrets.token_hex(6)}.tmp"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(
    staging: Path, bundle: Bundle, model: ServedModel, options: ServingOptions, copies: dict[Path, Bundle]
) -> None:
    """Write a model to `staging`. `copies` are what the bundles were copied to, for the second tower to link to."""
    options = _resolved(bundle, model.precision, options)
    config = config_pbtxt(bundle, model.tower, model.precision, options)
    own_warm_ups = warm_ups(bundle, model.tower, options)
    if options.runtime is RepositoryRuntime.WHEEL:
        version = _write_model(staging / model.name, model.version, config, own_warm_ups)
        shutil.copyfile(MODEL_FILE, version / MODEL_FILE.name)
        copy = copies.get(bundle.path)
        with BundleWriter(version / BUNDLE, base=copy or bundle, links=copy is not None) as writer:
            copies[bundle.path] = writer.commit(bundle.manifest.draft(), {})
        return
    engine = staging / (model.name if model.tower is Tower.IMAGE else engine_name(bundle))
    version = _write_model(engine, model.version, config, own_warm_ups)
    copy_file(bundle.engine(model.tower, model.precision), version / ENGINE)
    if model.tower is Tower.TEXT:
        config = container_text_config_pbtxt(bundle, model.precision, options)
        version = _write_model(staging / model.name, model.version, config, ())
        shutil.copyfile(CONTAINER_TEXT_FILE, version / MODEL_FILE.name)
        shutil.copyfile(RAGGED_FILE, version / RAGGED_FILE.name)


def _write_model(folder: Path, number: int, config: str, own_warm_ups: Sequence[WarmUp]) -> Path:
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

    The wheel's model.py finds both out where it serves. Raises InputError for more streams than threads.
    """
    if options.runtime is RepositoryRuntime.WHEEL or options.device is Device.GPU:
        return options
    threads = len(os.sched_getaffinity(0)) if options.threads is None else options.threads
    streams = options.streams
    if streams is None:
        streams = min(next(candidates(bundle, Provider.CPU, precision)).streams, threads)
    if streams > threads:
        raise InputError(
            f"streams {streams}: expected 1 to {threads}, the threads that the instances divide among them"
        )
    return replace(options, streams=streams, threads=threads)


def _install(staged: Path, destination: Path, number: int) -> None:
    """Bring a staged model to its place: whole where it is new, else part by part, the config last."""
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
