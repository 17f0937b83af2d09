"""config.pbtxt: what Triton is told of a tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twinspire.bundle import Bundle, Padding, Precision, Tower
from twinspire.towers.local import BATCH
from twinspire_server.repository.settings import Accelerator, Device, RepositoryRuntime, ServingOptions

SHORT_LENGTH = 32
"""90% of COCO's captions fit 16 tokens: what a runtime of few fixed shapes is given beside the context."""


@dataclass(frozen=True)
class WarmUp:
    """Requests that run before the model counts as ready: `batch` of one shape.

    `ids` are the token ids of one text; None stands for zeros, which are a black picture.
    """

    name: str
    batch: int
    dims: tuple[int, ...]
    ids: tuple[int, ...] | None = None


def model_name(bundle: Bundle, tower: Tower) -> str:
    """Name the model as Triton serves it."""
    return f"{bundle.name}_{tower}"


def text_lengths(bundle: Bundle, runtime: RepositoryRuntime) -> tuple[int, ...]:
    """List the lengths that texts must be padded to.

    Triton forms batches of equal shapes only. Mixed lengths would undo batching, so the container is given two. The
    wheel takes the context alone, and model.py cuts the padding off before it computes.
    """
    context = bundle.text.context_length
    if runtime is RepositoryRuntime.WHEEL or bundle.text.padding is Padding.MAX_LENGTH or context <= SHORT_LENGTH:
        return (context,)
    return (SHORT_LENGTH, context)


def warm_ups(bundle: Bundle, tower: Tower, runtime: RepositoryRuntime) -> list[WarmUp]:
    """List what Triton runs before serving: every shape once alone and as a full batch.

    The first call of a shape pays for planning its memory, the first full batch for having it. Triton counts these
    requests in its metrics as if somebody had sent them. For the wheel it therefore runs a single one, and model.py
    runs the rest where Triton does not see it.
    """
    batches = (1,) if runtime is RepositoryRuntime.WHEEL else (1, BATCH[tower])
    if tower is Tower.IMAGE:
        dims = (bundle.image.size, bundle.image.size, 3)
        return [WarmUp(f"{batch}_images", batch, dims) for batch in batches]
    return [_text(bundle, length, batch) for batch in batches for length in text_lengths(bundle, runtime)]


def config_pbtxt(bundle: Bundle, tower: Tower, precision: Precision, options: ServingOptions) -> str:
    """Write a tower's config.pbtxt."""
    on_gpu = options.device is Device.GPU
    in_wheel = options.runtime is RepositoryRuntime.WHEEL
    kind = "KIND_GPU" if on_gpu and not in_wheel else "KIND_CPU"
    parts = [
        f"# Written by `twinspire build` from the bundle {bundle.name}; the next build writes it again.",
        f'name: "{model_name(bundle, tower)}"',
        f'backend: "{"python" if in_wheel else "onnxruntime"}"',
        f"max_batch_size: {BATCH[tower]}",
        _tensors(bundle, tower, options.runtime),
        "# What waits is gathered into a batch; nothing waits for others to come.",
        "dynamic_batching { }",
        f"instance_group [ {{ kind: {kind} count: 1 }} ]",
        _parameters(_facts(bundle, tower, precision, options)),
    ]
    if on_gpu and not in_wheel and options.accelerator is Accelerator.TENSORRT:
        parts.append(_tensorrt(bundle, tower, precision))
    parts += [_warm_up(warm_up, tower) for warm_up in warm_ups(bundle, tower, options.runtime)]
    return "\n".join(parts) + "\n"


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


def _facts(bundle: Bundle, tower: Tower, precision: Precision, options: ServingOptions) -> dict[str, str]:
    """Collect what the client reads (the first five) and what the backend does."""
    facts = {
        "tower": str(tower),
        "space": bundle.space,
        "precision": str(precision),
        "dim": str(bundle.dim),
        "text_lengths": ",".join(map(str, text_lengths(bundle, options.runtime))),
    }
    if options.runtime is RepositoryRuntime.WHEEL:
        facts["providers"] = options.providers
        if options.threads is not None:
            facts["threads"] = str(options.threads)
        if options.streams is not None:
            facts["streams"] = str(options.streams)
    elif options.device is Device.CPU and options.threads is not None:
        facts["intra_op_thread_count"] = str(options.threads)
    return facts


def _parameters(facts: Mapping[str, str]) -> str:
    return "\n".join(
        f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}' for name, value in facts.items()
    )


def _tensorrt(bundle: Bundle, tower: Tower, precision: Precision) -> str:
    """Ask for TensorRT, with one optimisation profile over all the shapes and its engines kept on the disk.

    Nothing is said of precisions: TensorRT 11 takes them from the ONNX file alone. onnxruntime names a cached
    engine after the graph, not the weights: the folder therefore names the engine.
    Source: https://github.com/triton-inference-server/onnxruntime_backend#onnx-runtime-with-tensorrt-optimization
    """
    batch = BATCH[tower]
    if tower is Tower.IMAGE:
        size = bundle.image.size
        shortest = longest = f"{size}x{size}x3"
    else:
        lengths = text_lengths(bundle, RepositoryRuntime.CONTAINER)
        shortest, longest = str(lengths[0]), str(lengths[-1])
    name = "image" if tower is Tower.IMAGE else "input_ids"
    engine = bundle.manifest.engines[tower][precision].sha256
    settings = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": f"/tmp/twinspire-{engine[:16]}",  # noqa: S108 - inside the container
        "trt_timing_cache_enable": "1",
        "trt_profile_min_shapes": f"{name}:1x{shortest}",
        "trt_profile_opt_shapes": f"{name}:{batch}x{shortest}",
        "trt_profile_max_shapes": f"{name}:{batch}x{longest}",
    }
    lines = "\n".join(f'      parameters {{ key: "{key}" value: "{value}" }}' for key, value in settings.items())
    return (
        "optimization {\n  execution_accelerators {\n    gpu_execution_accelerator [ {\n"
        f'      name: "{Accelerator.TENSORRT}"\n{lines}\n    }} ]\n  }}\n}}'
    )


def _warm_up(warm_up: WarmUp, tower: Tower) -> str:
    name, kind = ("image", "TYPE_UINT8") if tower is Tower.IMAGE else ("input_ids", "TYPE_INT32")
    data = "zero_data: true" if warm_up.ids is None else f'input_data_file: "{warm_up.name}"'
    dims = ", ".join(map(str, warm_up.dims))
    return (
        f'model_warmup [ {{ name: "{warm_up.name}" batch_size: {warm_up.batch} '
        f'inputs {{ key: "{name}" value {{ data_type: {kind} dims: [ {dims} ] {data} }} }} }} ]'
    )
