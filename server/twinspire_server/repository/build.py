"""From bundles to the folder that Triton loads."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from twinspire._arguments import as_member, require_list
from twinspire.bundle import MANIFEST_NAME, Bundle, Precision, Tower
from twinspire.errors import InputError, SpaceMismatchError
from twinspire.tensorrt_support import PRECISIONS, PlanFolder, check_precision
from twinspire.towers import Provider
from twinspire.towers.auto_selection import AUTO, candidates, mismatch_reason, parse_precision
from twinspire.towers.providers import unavailable_error, unavailable_reason
from twinspire_server.repository.config import engine_name, model_name
from twinspire_server.repository.engine_files import engine_file, open_plans
from twinspire_server.repository.installed import read_existing
from twinspire_server.repository.model_folders import (
    ModelTask,
    ServedModel,
    install_model,
    staging_folder,
    write_model,
)
from twinspire_server.repository.settings import Accelerator, Device, RepositoryRuntime, ServingOptions

_PROVIDERS = {Device.CPU: Provider.CPU, Device.GPU: Provider.CUDA}


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
    plans: Sequence[Path] = (),
) -> list[ServedModel]:
    """Write `{name}_image` and `{name}_text` for each bundle into `destination`; other models there stay.

    For the container `{name}_engine_text` comes with them, which `{name}_text` calls.

    `precision` `auto` is what `LocalTowers` would take on this machine; for a GPU, what the bundle was measured to be
    best on one, wherever the repository is built; for plans, theirs. `plans` are folders that `twinspire tensorrt`
    wrote, by default BUNDLE.plans beside each bundle. Engines are copies: what is done to the repository never reaches
    a bundle. The two models of one bundle share theirs where the file system knows hard links. A model that is there
    already gets a further version; the newest one is replaced where it has the same engine or none. Nothing is written
    where a bundle cannot be served.

    Raises BundleError where a bundle or its plans are not intact or lack the precision, SpaceMismatchError where a
    model of that name or the plans have another space, EngineError where TensorRT will not take an engine,
    ProviderError or MissingDependencyError where the wheel's server would compute on a GPU that is not here, InputError
    for two bundles of one name, unknown options and a destination that cannot be written.
    """
    runtime, device = as_member(runtime, RepositoryRuntime, "runtime"), as_member(device, Device, "device")
    accelerator = as_member(accelerator, Accelerator, "accelerator")
    opened = [Bundle.open(path) for path in require_list(bundles, "bundles")]
    twice = [name for name, count in Counter(bundle.name for bundle in opened).items() if count > 1]
    if not opened or twice:
        raise InputError(f"bundles named {twice}: expected one or more, each of its own name")
    _check_names(bundle.name for bundle in opened)
    if destination.exists() and not destination.is_dir():
        raise InputError(f"{destination} is no folder: name one with -o, new or with other models in it")
    if (destination / MANIFEST_NAME).exists():
        raise InputError(f"{destination} is a bundle: name another folder with -o")
    named = parse_precision(precision)
    options = ServingOptions(
        runtime=runtime,
        device=device,
        threads=threads,
        streams=streams,
        providers=_providers(device),
        accelerator=accelerator,
    )
    _check_machine(options)
    if named is not None and options.is_container_gpu and accelerator is not Accelerator.CUDA:
        check_precision(named)
    folders = open_plans(opened, list(require_list(plans, "plans")), accelerator, named)
    tasks = []
    for bundle in opened:
        folder = folders.get(bundle.name)
        chosen = named or _best(bundle, options, folder)
        tasks += [_planned(bundle, tower, chosen, destination, options, folder) for tower in Tower]
    try:
        destination.mkdir(parents=True, exist_ok=True)
        with staging_folder(destination) as staging:
            copies: dict[Path, Bundle] = {}
            for task in tasks:
                write_model(staging, task, options, copies)
            for task in tasks:
                install_model(staging, task, destination)
    except OSError as error:
        raise InputError(
            f"{destination} cannot be written: {error.strerror or error}. Name another folder with -o"
        ) from error
    return [task.model for task in tasks]


def _check_names(names: Iterable[str]) -> None:
    """Raise InputError where one bundle's text model would have the name of another's engine."""
    known = set(names)
    for name in sorted(known):
        if f"{name}_engine" in known:
            raise InputError(
                f"bundles named {name!r} and '{name}_engine': both would write the model {name}_engine_text. Build "
                "each into a folder of its own with -o"
            )


def _check_machine(options: ServingOptions) -> None:
    """Raise where the wheel's server, which runs on this machine, could not do what the options say.

    The container may run elsewhere: of its CPU only `threads` is known.
    """
    is_here = options.runtime is RepositoryRuntime.WHEEL
    if is_here and options.device is Device.GPU and (error := unavailable_error(Provider.CUDA)) is not None:
        raise error
    if options.streams is not None:
        cores = len(os.sched_getaffinity(0))
        limits = {"threads": options.threads or cores, **({"cores of this machine": cores} if is_here else {})}
        limit = min(limits, key=lambda name: limits[name])
        if options.streams > limits[limit]:
            raise InputError(
                f"streams {options.streams}: expected at most {limits[limit]}, the {limit} that they divide among them"
            )


def _providers(device: Device) -> str:
    """Say what `LocalTowers` is to choose from: `auto` prefers CUDA where a GPU is, which only a GPU's is to take."""
    if device is Device.GPU:
        return Provider.CUDA
    return Provider.CPU if unavailable_reason(Provider.CUDA) is None else AUTO


def _best(bundle: Bundle, options: ServingOptions, plans: PlanFolder | None) -> Precision:
    if plans is not None:
        return plans.manifest.precision
    device, served = options.device, PRECISIONS if options.uses_tensorrt else tuple(Precision)
    choice, provider = bundle.manifest.auto, _PROVIDERS[device]
    if choice is not None and choice.precision in served:
        # The container computes on the CPU by onnxruntime's own provider alone, the wheel by any that is there.
        is_any = device is Device.CPU and options.runtime is RepositoryRuntime.WHEEL
        serves = choice.provider != Provider.CUDA if is_any else choice.provider == provider
        if serves and (device is Device.GPU or mismatch_reason(choice) is None):
            return choice.precision
    return next(found.precision for found in candidates(bundle, provider, None) if found.precision in served)


def _planned(
    bundle: Bundle,
    tower: Tower,
    precision: Precision,
    destination: Path,
    options: ServingOptions,
    plans: PlanFolder | None,
) -> ModelTask:
    """Decide a model's file and version. Raises where it cannot be built."""
    bundle.engine(tower, precision)
    engine = None
    if options.runtime is RepositoryRuntime.CONTAINER:
        engine = engine_file(bundle, tower, precision, options, plans)
    name = model_name(bundle, tower)
    folder = destination / name
    existing = read_existing(folder, tower)
    if tower is Tower.TEXT:
        behind = read_existing(destination / engine_name(bundle), tower)  # it is written or removed with the model
        if behind is not None and behind.space not in (None, bundle.space):
            raise SpaceMismatchError(
                f"{destination / engine_name(bundle)} is a model of another bundle, and would be the engine of "
                f"{bundle.name!r}: build into another folder with -o"
            )
    version = 1
    if existing is not None:
        if existing.space not in (None, bundle.space):
            raise SpaceMismatchError(
                f"{folder} serves a bundle of another space than {bundle.name!r} at {bundle.path}: a model keeps one "
                "space. Remove that folder or build into another with -o"
            )
        sha256 = bundle.manifest.engines[tower][precision].sha256 if engine is None else engine.sha256
        version = max(existing.newest, 1) if existing.engine_sha256 in (None, sha256) else existing.newest + 1
    served = ServedModel(
        name=name, tower=tower, version=version, precision=precision, space=bundle.space, folder=folder
    )
    plan = None if plans is None else plans.manifest.plans[tower]
    return ModelTask(bundle=bundle, model=served, engine=engine, plan=plan)
