"""Building a model repository, the folder that Triton loads, from bundles."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from twinspire._arguments import as_member, as_whole, file_errors, require_list
from twinspire._cores import usable_cores
from twinspire.bundle import MANIFEST_NAME, Bundle, DecodeMode, Precision
from twinspire.errors import InputError, SpaceMismatchError
from twinspire.tensorrt_support import PRECISIONS, PlanFolder, check_precision
from twinspire.towers import Provider
from twinspire.towers.auto_selection import AUTO, candidates, mismatch_reason, parse_precision
from twinspire.towers.providers import unavailable_error, unavailable_reason
from twinspire_server.repository.description import description_model
from twinspire_server.repository.engines import open_plans
from twinspire_server.repository.installation import InstalledModel, install_models, locked, read_installed
from twinspire_server.repository.raw_inputs import raw_models, without_raw_models
from twinspire_server.repository.rerankers import container_reranker, wheel_reranker
from twinspire_server.repository.settings import Accelerator, Device, RepositoryRuntime, ServingOptions
from twinspire_server.repository.spec import BuiltModel, BundleCopy, ModelSpec
from twinspire_server.repository.towers import ServedBundle, container_towers, wheel_towers

SpecFunction: TypeAlias = Callable[[ServedBundle], Sequence[ModelSpec]]

MODEL_SPECS: dict[RepositoryRuntime, list[SpecFunction]] = {
    RepositoryRuntime.WHEEL: [wheel_towers, wheel_reranker, raw_models],
    RepositoryRuntime.CONTAINER: [container_towers, container_reranker, raw_models],
}
"""The functions that make the models of each bundle. To serve a further model, add one."""

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
    instances: int | None = None,
    max_batch: int | None = None,
    queue_batches: int | None = None,
    tuning: Path | None = None,
    raw_inputs: bool = False,
    decode: DecodeMode | str = DecodeMode.EXACT,
    description: bool = False,
) -> list[BuiltModel]:
    """Write the models of each bundle into `destination` and return them; other models there stay.

    They are `{name}_image` and `{name}_text`, one for each tower that the bundle has; for the container also
    `{name}_engine_text`, which `{name}_text` calls. A bundle's reranker is `{name}_` and its own name, at the towers'
    precision or else the first that it has. `raw_inputs` adds `{name}_image_bytes` and `{name}_text_raw`, which
    take encoded images and plain texts, with the models that prepare them; without it such models are removed. `decode`
    is how they decode images.
    `description` adds the model `twinspire`, which tells clients what is served. `twinspire build` adds both.

    `precision` `auto` is what `LocalTowers` would take on this machine; for a GPU, what the bundle was measured to be
    best on one, wherever the repository is built; for plans, theirs. `plans` are folders that `twinspire tensorrt`
    wrote, by default BUNDLE.plans beside each bundle. `tuning` is a record of `twinspire tune`: its choice replaces the
    options that are None, and the file is copied into the models. Engines are copies: changes to the repository never
    reach a bundle. The models of one bundle share theirs where the file system knows hard links. A model that is
    installed already gets a further version; the newest one is replaced where it has the same engine or none. Nothing
    is written where a bundle cannot be served, and a running `twinspire serve` is not disturbed: it serves a copy. One
    process at a time builds into a folder; others wait.

    Raises BundleError where a bundle or its plans are not intact or lack the precision, SpaceMismatchError where a
    model of that name or the plans have another space, EngineError where TensorRT will not take an engine
    or onnxruntime cannot run it on the bundle's probes, which are written beside each tower for `twinspire serve`,
    ProviderError or MissingDependencyError where the wheel's server would compute on a GPU and this machine has none,
    InputError for two bundles of one name, unknown options and a destination that cannot be written.
    """
    runtime, device = as_member(runtime, RepositoryRuntime, "runtime"), as_member(device, Device, "device")
    accelerator = as_member(accelerator, Accelerator, "accelerator")
    opened = [Bundle.open(path) for path in require_list(bundles, "bundles")]
    twice = [name for name, count in Counter(bundle.name for bundle in opened).items() if count > 1]
    if not opened:
        raise InputError("no bundle to build: expected one or more", option="bundles")
    if twice:
        raise InputError(
            f"several bundles named {', '.join(twice)}: models have their bundle's name, so rename one",
            option="bundles",
        )
    if destination.exists() and not destination.is_dir():
        raise InputError(f"{destination} is not a folder: name one, new or with models, with -o", path=destination)
    if (destination / MANIFEST_NAME).exists():
        raise InputError(f"{destination} is a bundle: name another folder with -o", path=destination)
    named = parse_precision(precision)
    tuned: dict[str, int | None] = {
        "threads": threads,
        "streams": streams,
        "instances": instances,
        "max_batch": max_batch,
        "queue_batches": queue_batches,
    }
    if tuning is not None:
        choice = read_choice(tuning)
        tuned = {name: choice.get(name) if value is None else value for name, value in tuned.items()}
    options = ServingOptions(
        runtime=runtime,
        device=device,
        provider=_provider(device),
        accelerator=accelerator,
        raw_inputs=raw_inputs,
        decode=as_member(decode, DecodeMode, "decode"),
        tuning=tuning,
        threads=tuned["threads"],
        streams=tuned["streams"],
        instances=tuned["instances"],
        max_batch=tuned["max_batch"],
        queue_batches=tuned["queue_batches"],
    )
    _check_machine(options)
    if named is not None and options.is_container_gpu and accelerator is not Accelerator.CUDA:
        check_precision(named)
    folders = open_plans(opened, list(require_list(plans, "plans")), accelerator, named)
    served = [_served(bundle, named, options, folders.get(bundle.name)) for bundle in opened]
    specs = [spec for bundle in served for make in MODEL_SPECS[runtime] for spec in make(bundle)]
    if not raw_inputs:
        specs = without_raw_models(specs)
    _placed(specs, destination)  # raises before anything is written
    with file_errors(f"{destination} cannot be written", destination, ". Name another folder with -o"):
        destination.mkdir(parents=True, exist_ok=True)
        with locked(destination):
            if description:  # of other builds too, so it waits for those that write now
                specs.append(description_model(served, specs, destination))
            models = _placed(specs, destination)
            install_models(destination, models)
    return models


def read_choice(tuning: Path) -> dict[str, int]:
    """Return the options that `twinspire tune` chose. Raises InputError where the file is no record of it."""
    with file_errors(f"the record of tuning {tuning} cannot be read", tuning, ". `twinspire tune` writes one"):
        text = tuning.read_text(encoding="utf-8")
    try:
        options = json.loads(text)["results"]["options"]
        return {str(name): as_whole(value, str(name), minimum=1) for name, value in options.items()}
    except (ValueError, TypeError, KeyError, AttributeError, InputError) as error:
        raise InputError(
            f"{tuning} is not a record of `twinspire tune`: {error}. Expected the file tuning.json that it writes",
            path=tuning,
        ) from error


def _check_machine(options: ServingOptions) -> None:
    """Raise where the wheel's server, which runs on this machine, could not do what the options say.

    The container may run elsewhere: of its CPU only `threads` is known.
    """
    is_local = options.runtime is RepositoryRuntime.WHEEL
    if is_local and options.device is Device.GPU and (error := unavailable_error(Provider.CUDA)) is not None:
        raise error
    if options.streams is not None:
        cores = usable_cores()
        limits = {"threads": options.threads or cores, **({"cores of this machine": cores} if is_local else {})}
        limit = min(limits, key=lambda name: limits[name])
        if options.streams > limits[limit]:
            raise InputError(
                f"streams {options.streams}: expected at most {limits[limit]}, the number of {limit}",
                option="streams",
            )


def _provider(device: Device) -> str:
    """Return what `LocalTowers` chooses from: `auto` would prefer CUDA where there is a GPU, also for a CPU's model."""
    if device is Device.GPU:
        return Provider.CUDA
    return Provider.CPU if unavailable_reason(Provider.CUDA) is None else AUTO


def _served(bundle: Bundle, named: Precision | None, options: ServingOptions, plans: PlanFolder | None) -> ServedBundle:
    """Choose the precision, and the streams and threads of the container. Raises BundleError where it has no engine."""
    precision = named or _best(bundle, options, plans)
    for tower in bundle.towers:
        bundle.engine(tower, precision)
    if options.runtime is RepositoryRuntime.CONTAINER and options.device is Device.CPU:
        # The config must give the number of instances and their threads. The wheel's model.py finds both out itself.
        threads = options.threads or usable_cores()
        streams = options.streams or min(next(candidates(bundle, Provider.CPU, precision)).streams, threads)
        options = replace(options, streams=streams, threads=threads)
    return ServedBundle(bundle=bundle, precision=precision, options=options, copy=BundleCopy(bundle), plans=plans)


def _best(bundle: Bundle, options: ServingOptions, plans: PlanFolder | None) -> Precision:
    if plans is not None:
        return plans.manifest.precision
    device, served = options.device, PRECISIONS if options.uses_tensorrt else tuple(Precision)
    choice, provider = bundle.manifest.auto, _PROVIDERS[device]
    if choice is not None and choice.precision in served:
        # The container computes on the CPU by onnxruntime's own provider alone, the wheel by any that is available.
        is_any = device is Device.CPU and options.runtime is RepositoryRuntime.WHEEL
        serves = choice.provider != Provider.CUDA if is_any else choice.provider == provider
        if serves and (device is Device.GPU or mismatch_reason(choice) is None):
            return choice.precision
    return next(found.precision for found in candidates(bundle, provider, None) if found.precision in served)


def _placed(specs: Sequence[ModelSpec], destination: Path) -> list[BuiltModel]:
    """Decide each model's version. Raises InputError where two have one name or a folder is not a model of ours."""
    owners: dict[str, ModelSpec] = {}
    for spec in specs:
        for name in (spec.name, *spec.replaces):
            if name in owners:
                raise InputError(
                    f"two models named {name}, of the bundles {owners[name].bundle!r} and {spec.bundle!r}: build each "
                    "into a folder of its own with -o",
                    option="bundles",
                )
            owners[name] = spec
    installed = {name: read_installed(destination / name) for name in owners}
    for spec in specs:
        for name in (spec.name, *spec.replaces):
            model = installed[name]
            if model is not None and model.space not in (None, spec.space):
                raise SpaceMismatchError(
                    f"{destination / name} serves another space than the bundle {spec.bundle!r}: a model keeps one "
                    "space. Remove that folder or build into another with -o",
                    expected=model.space,
                    found=spec.space,
                )
    return [
        BuiltModel(
            spec=spec,
            folder=destination / spec.name,
            version=_version(owners[spec.called_by] if spec.called_by else spec, installed),
        )
        for spec in specs
    ]


def _version(spec: ModelSpec, installed: Mapping[str, InstalledModel | None]) -> int:
    """Return the newest version's number where it has the same engine or none, else the next one."""
    model = installed[spec.name]
    if model is None:
        return 1
    return max(model.newest, 1) if model.engine_sha256 in (None, spec.engine_sha256) else model.newest + 1
