"""config.pbtxt: what Triton is told of a tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twinspire.bundle import Bundle, Padding, Precision, Tower
from twinspire.tensorrt_support import PlanRecord
from twinspire.towers.batching import bucket_lengths
from twinspire.towers.local import BATCH, PROCESSOR_BATCH
from twinspire.towers.validation import vocabulary_size
from twinspire_server.repository.gpu_config import optimization, plan_backend, profiles
from twinspire_server.repository.settings import Device, RepositoryRuntime, ServingOptions

SHORT_LENGTH = 32
"""90% of COCO's captions fit 16 tokens: what a runtime of few fixed shapes is given beside the context."""


@dataclass(frozen=True)
class WarmUp:
    """Requests that run before the model counts as ready: `batch` of one shape.

    `ids` are the token ids of one text; None stands for zeros, which are a black image.
    """

    name: str
    batch: int
    dims: tuple[int, ...]
    ids: tuple[int, ...] | None = None


def model_name(bundle: Bundle, tower: Tower) -> str:
    """Name the model as Triton serves it."""
    return f"{bundle.name}_{tower}"


def engine_name(bundle: Bundle) -> str:
    """Name the model that holds the container's text engine.

    Triton begins to load models in the order of their names: it comes before the one that calls it.
    """
    return f"{bundle.name}_engine_text"


def max_batch(tower: Tower, options: ServingOptions, plan: PlanRecord | None) -> int:
    """Return how many rows a run of the engine takes at most."""
    if plan is not None:
        return plan.max_batch
    in_container = options.runtime is RepositoryRuntime.CONTAINER
    return (PROCESSOR_BATCH if in_container and options.device is Device.CPU else BATCH)[tower]


def engine_lengths(bundle: Bundle, options: ServingOptions, plan: PlanRecord | None) -> tuple[int, ...]:
    """List the lengths that the container's engine has texts padded to; none where each batch is padded to its longest.

    On a GPU TensorRT is told all shapes beforehand, so there are two. onnxruntime on a CPU takes any: with two lengths
    every caption was 32 tokens long, which cost more than half of the texts/s. A plan's are in its profiles.
    """
    if plan is not None:
        return plan.text_lengths
    context = bundle.text.context_length
    if options.device is Device.CPU:
        return (context,) if bundle.text.padding is Padding.MAX_LENGTH else ()
    if bundle.text.padding is Padding.MAX_LENGTH or context <= SHORT_LENGTH:
        return (context,)
    return (SHORT_LENGTH, context)


def warm_ups(bundle: Bundle, tower: Tower, options: ServingOptions, plan: PlanRecord | None = None) -> list[WarmUp]:
    """List what Triton runs in an engine before serving: every shape once alone and as a full batch.

    The first call of a shape pays for planning its memory, the first full batch for having it. Triton counts these
    requests in its metrics as if somebody had sent them. For the wheel it therefore runs a single one, and model.py
    runs the rest where Triton does not see it.
    """
    in_wheel = options.runtime is RepositoryRuntime.WHEEL
    batches = (1,) if in_wheel else (1, max_batch(tower, options, plan))
    if tower is Tower.IMAGE:
        dims = (bundle.image.size, bundle.image.size, 3)
        return [WarmUp(f"{batch}_images", batch, dims) for batch in batches]
    context = bundle.text.context_length
    # Where each batch is padded to its longest, buckets stand for all lengths.
    lengths = (context,) if in_wheel else engine_lengths(bundle, options, plan) or bucket_lengths(bundle.text)
    return [_text(bundle, length, batch) for batch in batches for length in lengths]


def config_pbtxt(
    bundle: Bundle, tower: Tower, precision: Precision, options: ServingOptions, plan: PlanRecord | None = None
) -> str:
    """Write the config.pbtxt of the model that runs a tower's engine, or its TensorRT plan where one is served."""
    in_wheel = options.runtime is RepositoryRuntime.WHEEL
    is_behind = not in_wheel and tower is Tower.TEXT  # container_text.py forms its batches
    backend = f'backend: "{"python" if in_wheel else "onnxruntime"}"'
    parts = [
        *_head(bundle, engine_name(bundle) if is_behind else model_name(bundle, tower)),
        backend if plan is None else plan_backend(plan),
        f"max_batch_size: {max_batch(tower, options, plan)}",
        _tensors(bundle, tower, options.runtime),
        *(() if is_behind else _BATCHING),
        _instances(
            "KIND_GPU" if options.is_container_gpu else "KIND_CPU",
            1 if in_wheel else options.streams or 1,
            "" if plan is None else profiles(plan),
        ),
        _parameters(_facts(bundle, tower, precision, options)),
    ]
    if options.is_container_gpu and plan is None:
        lengths = engine_lengths(bundle, options, plan)
        parts.append(optimization(bundle, tower, precision, options.accelerator, lengths))
    parts += [_warm_up(warm_up, tower) for warm_up in warm_ups(bundle, tower, options, plan)]
    return "\n".join(parts) + "\n"


def container_text_config_pbtxt(
    bundle: Bundle, precision: Precision, options: ServingOptions, plan: PlanRecord | None = None
) -> str:
    """Write the config.pbtxt of the model in front of the container's text engine; to clients it is like the wheel's.

    It has no warm-up: tritonserver 2.51 crashes where a model calls another one during it. The engine has its own.
    """
    facts = {
        **_contract_facts(bundle, Tower.TEXT, precision),
        "engine": engine_name(bundle),
        "engine_batch": str(max_batch(Tower.TEXT, options, plan)),
        "engine_lengths": ",".join(map(str, engine_lengths(bundle, options, plan))),
        "context_length": str(bundle.text.context_length),
        "vocabulary_size": str(vocabulary_size(bundle.tokenizer_path)),
        "pad_id": str(bundle.text.pad_id),
        "eos_id": str(bundle.text.eos_id),
    }
    parts = [
        *_head(bundle, model_name(bundle, Tower.TEXT)),
        'backend: "python"',
        f"max_batch_size: {BATCH[Tower.TEXT]}",
        _tensors(bundle, Tower.TEXT, RepositoryRuntime.WHEEL),
        *_BATCHING,
        # Each runs a full batch after the other: as many as keep the engine's instances busy. One that cuts its batches
        # for two instances: 296 texts/s, two that do not: 335 (ViT-B/32 int8, two cores, 64 captions in flight).
        _instances("KIND_CPU", max(2, options.streams or 1)),
        _parameters(facts),
    ]
    return "\n".join(parts) + "\n"


_BATCHING = ("# What waits is gathered into a batch; nothing waits for others to come.", "dynamic_batching { }")


def _head(bundle: Bundle, name: str) -> list[str]:
    return [
        f"# Written by `twinspire build` from the bundle {bundle.name}; the next build writes it again.",
        f'name: "{name}"',
    ]


def _instances(kind: str, count: int, settings: str = "") -> str:
    return f"instance_group [ {{ kind: {kind} count: {count}{settings} }} ]"


def _text(bundle: Bundle, length: int, batch: int) -> WarmUp:
    ids = (*[0] * (length - 1), bundle.text.eos_id)
    return WarmUp(f"{batch}_of_{length}_tokens", batch, (length,), ids)


def _tensors(bundle: Bundle, tower: Tower, runtime: RepositoryRuntime) -> str:
    size = bundle.image.size
    if tower is Tower.IMAGE:
        given = f'name: "image" data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ]'
    else:
        # Triton 2.51 lets shapes through whose size in bytes overflows to 0, [1, 2^62], where a dimension is free. The
        # Python backend dies of them: https://github.com/triton-inference-server/server/pull/8182
        length = bundle.text.context_length if runtime is RepositoryRuntime.WHEEL else -1
        given = f'name: "input_ids" data_type: TYPE_INT32 dims: [ {length} ]'
    return f'input [ {{ {given} }} ]\noutput [ {{ name: "embedding" data_type: TYPE_FP32 dims: [ {bundle.dim} ] }} ]'


def _contract_facts(bundle: Bundle, tower: Tower, precision: Precision) -> dict[str, str]:
    """Collect what the client reads."""
    return {
        "tower": str(tower),
        "space": bundle.space,
        "precision": str(precision),
        "dim": str(bundle.dim),
        "text_lengths": str(bundle.text.context_length),
    }


def _facts(bundle: Bundle, tower: Tower, precision: Precision, options: ServingOptions) -> dict[str, str]:
    """Collect what the client reads and what the backend does."""
    facts = _contract_facts(bundle, tower, precision)
    if options.runtime is RepositoryRuntime.WHEEL:
        facts["providers"] = options.providers
        if options.threads is not None:
            facts["threads"] = str(options.threads)
        if options.streams is not None:
            facts["streams"] = str(options.streams)
    elif options.device is Device.CPU and options.threads is not None:
        # The backend cannot keep onnxruntime's threads from spinning (onnxruntime.cc reads no session entries), but an
        # instance of one thread has none beside the caller's.
        facts["intra_op_thread_count"] = str(options.threads // (options.streams or 1))
    return facts


def _parameters(facts: Mapping[str, str]) -> str:
    return "\n".join(
        f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}' for name, value in facts.items()
    )


def _warm_up(warm_up: WarmUp, tower: Tower) -> str:
    name, kind = ("image", "TYPE_UINT8") if tower is Tower.IMAGE else ("input_ids", "TYPE_INT32")
    data = "zero_data: true" if warm_up.ids is None else f'input_data_file: "{warm_up.name}"'
    dims = ", ".join(map(str, warm_up.dims))
    return (
        f'model_warmup [ {{ name: "{warm_up.name}" batch_size: {warm_up.batch} '
        f'inputs {{ key: "{name}" value {{ data_type: {kind} dims: [ {dims} ] {data} }} }} }} ]'
    )
