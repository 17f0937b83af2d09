"""The models of a bundle's towers: specs for Triton from the wheel and for NVIDIA's container."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from twinspire import contract
from twinspire.bundle import Bundle, Padding, Precision, Tower
from twinspire.contract import TensorSpec, text_input
from twinspire.tensorrt_support import PlanFolder
from twinspire.towers.batching import bucket_lengths
from twinspire.towers.local import BATCH, PROCESSOR_BATCH
from twinspire.towers.validation import vocabulary_size
from twinspire_server.repository.code import TOWER_CODE, code_parameters
from twinspire_server.repository.engines import EngineFile, engine_file, gpu_optimization
from twinspire_server.repository.served_engine import text_rows
from twinspire_server.repository.served_probes import ProbesFile
from twinspire_server.repository.settings import Device, ServingOptions
from twinspire_server.repository.spec import (
    BundleCopy,
    CopiedFile,
    InstanceGroup,
    ManifestCopy,
    ModelFile,
    ModelSpec,
    WarmUp,
)

SHORT_LENGTH = 32
"""90% of COCO's captions fit 16 tokens. Runtimes that take few fixed shapes get this length beside the context."""

MODEL_FILE = "model.py"
TUNING_FILE = "tuning.json"
"""The record of `twinspire tune` in a version's folder."""
_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class ServedBundle:
    """A bundle and how it is to be served: the input of the functions that make specs.

    `copy` is the copy of the bundle that its models share. `plans` are its TensorRT plans where those are served.
    """

    bundle: Bundle
    precision: Precision
    options: ServingOptions
    copy: BundleCopy
    plans: PlanFolder | None = None


def wheel_towers(served: ServedBundle) -> list[ModelSpec]:
    """Return a Python model for each tower, whose model.py opens the engine through `LocalTowers`."""
    bundle = served.bundle
    return [
        replace(
            served_from_wheel(served, spec, _probes(served, tower), streams=served.options.streams),
            # Triton counts warm-ups in its metrics like requests of clients. So it runs a single one, and model.py runs
            # the rest where Triton does not see it.
            warm_ups=_warm_ups(bundle, spec.inputs, batches=[1]),
            replaces=[engine_name(bundle)] if spec.tower is Tower.TEXT else [],
        )
        for tower, spec in ((tower, _python_model(served, tower)) for tower in bundle.towers)
    ]


def served_from_wheel(served: ServedBundle, spec: ModelSpec, *files: ModelFile, streams: int | None) -> ModelSpec:
    """Return a spec with model.py, the bundle and `files` in its version, and the options of the wheel's server."""
    options = served.options
    settings = {
        "provider": options.provider,
        "threads": options.threads,
        "streams": streams,
        "queue_batches": options.queue_batches,
        "tuning": None if options.tuning is None else TUNING_FILE,
    }
    evidence = [] if options.tuning is None else [CopiedFile(TUNING_FILE, options.tuning)]
    return replace(
        spec,
        files=[CopiedFile(MODEL_FILE, TOWER_CODE), served.copy, *files, *evidence],
        max_batch=options.max_batch or spec.max_batch,
        instances=InstanceGroup(count=options.instances or 1),
        parameters={
            **spec.parameters,
            **{key: str(value) for key, value in settings.items() if value is not None},
            **code_parameters(TOWER_CODE),
        },
    )


def container_towers(served: ServedBundle) -> list[ModelSpec]:
    """Return an engine of the container's own backends for each tower, and the model that checks texts for its one."""
    bundle = served.bundle
    specs: list[ModelSpec] = []
    for tower in bundle.towers:
        file = engine_file(bundle, tower, served.precision, served.options, served.plans)
        specs.append(_engine(served, tower, file))
        if tower is Tower.TEXT:
            specs.append(_text_checks(served, file))
    return specs


def model_name(bundle: Bundle, tower: Tower) -> str:
    """Return the name under which clients ask for a tower."""
    return f"{bundle.name}_{tower}"


def engine_name(bundle: Bundle) -> str:
    """Return the name of the model that holds the container's text engine.

    Triton begins to load models in the order of their names: it comes before the one that calls it.
    """
    return f"{bundle.name}_engine_text"


def _python_model(served: ServedBundle, tower: Tower) -> ModelSpec:
    """Return the part of a tower's spec that clients see, with the Python backend and no files yet."""
    bundle = served.bundle
    if tower is Tower.TEXT:  # padded by model.py, or by the model in front of the container's engine
        context = bundle.text.context_length
        tensor, lengths = text_input(context), {"text_lengths": str(context)}
    else:
        tensor, lengths = bundle.input_spec(tower), {}
    return ModelSpec(
        name=model_name(bundle, tower),
        bundle=bundle.name,
        space=bundle.space,
        tower=tower,
        precision=served.precision,
        backend="python",
        max_batch=BATCH[tower],
        inputs=[tensor],
        outputs=[bundle.output_spec(tower)],
        files=[],
        parameters={"dim": str(bundle.dim), **lengths},
        engine_sha256=bundle.manifest.engines[tower][served.precision].sha256,
    )


def _engine(served: ServedBundle, tower: Tower, file: EngineFile) -> ModelSpec:
    """Return a tower's engine on the onnxruntime backend, or its plan on the tensorrt backend."""
    bundle, options = served.bundle, served.options
    spec = _python_model(served, tower)
    plan = None if served.plans is None else served.plans.manifest.plans[tower]
    max_batch, optimization = _engine_batch(served, tower), None
    inputs = shapes = spec.inputs
    lengths: tuple[int, ...] = ()
    if tower is Tower.TEXT:
        # Triton 2.51 lets shapes through whose size in bytes overflows to 0, [1, 2^62], where an axis is free. The
        # Python backend crashes on them, https://github.com/triton-inference-server/server/pull/8182; these do not.
        inputs, lengths = [text_input()], _engine_lengths(served)
        # Where each batch is padded to its longest text, buckets stand for all lengths.
        shapes = [text_input(length) for length in lengths or bucket_lengths(bundle.text)]
    instances, parameters = container_instances(options)
    if options.is_container_gpu and plan is None:
        assert spec.engine_sha256 is not None
        optimization = gpu_optimization(
            options.accelerator, inputs[0], batch=max_batch, lengths=lengths, engine_sha256=spec.engine_sha256
        )
    spec = replace(
        spec,
        backend="onnxruntime",
        max_batch=max_batch,
        inputs=inputs,
        # Clients send texts to the model in front of their engine, so that the probes are beside that one.
        files=[file] if tower is Tower.TEXT else [file, ManifestCopy(bundle), _probes(served, tower)],
        parameters={**spec.parameters, **parameters},
        engine_sha256=file.sha256,
        instances=instances,
        further_config=optimization,
        warm_ups=_warm_ups(bundle, shapes, batches=[1, max_batch]),
    )
    if plan is not None:
        note = f"# {plan.file} runs on that GPU, in that release of TensorRT alone."
        instances = replace(instances, profiles=len(plan.profiles))
        spec = replace(spec, backend="tensorrt", platform="tensorrt_plan", note=note, instances=instances)
    if tower is Tower.TEXT:
        # Its batches are formed by container_text.py. If Triton joined requests that are sent to the engine directly,
        # one bad text would fail its neighbours.
        spec = replace(spec, name=engine_name(bundle), dynamic_batching=False, called_by=model_name(bundle, tower))
    return spec


def container_instances(options: ServingOptions) -> tuple[InstanceGroup, dict[str, str]]:
    """Return the instances of an engine of the container's onnxruntime backend, and the parameters of each."""
    parameters = {}
    if options.device is Device.CPU and options.threads is not None:
        # The backend cannot keep onnxruntime's threads from spinning (onnxruntime.cc reads no session entries), but an
        # instance of one thread has none beside the caller's.
        parameters["intra_op_thread_count"] = str(options.threads // (options.streams or 1))
    kind = "KIND_GPU" if options.is_container_gpu else "KIND_CPU"
    return InstanceGroup(kind, options.streams or 1), parameters


def _text_checks(served: ServedBundle, engine: EngineFile) -> ModelSpec:
    """Return the Python model in front of the container's text engine; clients see the same as of the wheel's.

    It has no warm-up: tritonserver 2.51 crashes where a model calls another one during it. The engine has its own.
    """
    bundle, spec = served.bundle, _python_model(served, Tower.TEXT)
    settings = {
        "engine": engine_name(bundle),
        "engine_batch": _engine_batch(served, Tower.TEXT),
        "engine_lengths": ",".join(map(str, _engine_lengths(served))),
        "context_length": bundle.text.context_length,
        "vocabulary_size": vocabulary_size(bundle.tokenizer_path),
        "pad_id": bundle.text.pad_id,
        "eos_id": bundle.text.eos_id,
    }
    return replace(
        spec,
        files=[
            CopiedFile(MODEL_FILE, _HERE / "container_text.py"),
            CopiedFile("contract.py", Path(contract.__file__)),
            ManifestCopy(bundle),
            _probes(served, Tower.TEXT),
        ],
        # Each instance runs a full batch after the other: as many as keep the engine's instances busy. One that cuts
        # its batches for two instances: 296 texts/s, two that do not: 335 (ViT-B/32 int8, two cores, 64 captions in
        # flight).
        instances=InstanceGroup(count=max(2, served.options.streams or 1)),
        parameters={**spec.parameters, **{key: str(value) for key, value in settings.items()}},
        engine_sha256=engine.sha256,
    )


def _probes(served: ServedBundle, tower: Tower) -> ProbesFile:
    bundle, precision = served.bundle, served.precision
    certificate = bundle.manifest.engines[tower][precision].certificate
    if served.plans is not None:
        certificate = served.plans.manifest.plans[tower].certificate
    decode = served.options.decode
    return ProbesFile(bundle=bundle, tower=tower, precision=precision, certificate=certificate, decode=decode)


def _engine_batch(served: ServedBundle, tower: Tower) -> int:
    """Return how many rows a run of the container's engine takes at most."""
    if served.plans is not None:
        return served.plans.manifest.plans[tower].max_batch
    return (PROCESSOR_BATCH if served.options.device is Device.CPU else BATCH)[tower]


def _engine_lengths(served: ServedBundle) -> tuple[int, ...]:
    """List the lengths that texts are padded to for the container's engine; none: each batch to its longest.

    TensorRT on a GPU must know all shapes beforehand, so there are two. onnxruntime on a CPU takes any: with two
    lengths every caption was 32 tokens long, which cost more than half of the texts/s. A plan's are in its profiles.
    """
    if served.plans is not None:
        return served.plans.manifest.plans[Tower.TEXT].text_lengths
    text = served.bundle.text
    context = text.context_length
    if served.options.device is Device.CPU:
        return (context,) if text.padding is Padding.MAX_LENGTH else ()
    if text.padding is Padding.MAX_LENGTH or context <= SHORT_LENGTH:
        return (context,)
    return (SHORT_LENGTH, context)


def _warm_ups(bundle: Bundle, shapes: Sequence[TensorSpec], *, batches: Iterable[int]) -> list[WarmUp]:
    """Return each shape of an input in each batch size: zeros, or texts that end where the shape does.

    The first call of a shape pays for planning its memory, the first full batch for having it.
    """
    return [_warm_up(bundle, tensor, batch) for batch in batches for tensor in shapes]


def _warm_up(bundle: Bundle, tensor: TensorSpec, batch: int) -> WarmUp:
    if tensor.name != contract.INPUT_IDS:
        return WarmUp(f"{batch}_{'images' if tensor.name == contract.IMAGE else 'sounds'}", batch, (tensor,))
    (length,) = tensor.shape
    ids = text_rows(bundle.text, length, 1)
    return WarmUp(f"{batch}_of_{length}_tokens", batch, (tensor,), {tensor.name: ids.tobytes()})
