"""config.pbtxt: what Triton is told of a tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twinspire.bundle import Bundle, Padding, Precision, Tower
from twinspire.tensorrt_support import PlanRecord
from twinspire.towers.local import BATCH
from twinspire_server.repository.gpu_config import optimization, plan_backend, profiles
from twinspire_server.repository.settings import RepositoryRuntime, ServingOptions

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


def text_lengths(bundle: Bundle, runtime: RepositoryRuntime, plan: PlanRecord | None = None) -> tuple[int, ...]:
    """List the lengths that texts must be padded to. A plan's are in its profiles.

    Triton forms batches of equal shapes only. Mixed lengths would undo batching, so the container is given two. The
    wheel takes the context alone, and model.py cuts the padding off before it computes.
    """
    context = bundle.text.context_length
    if plan is not None:
        return plan.text_lengths
    if runtime is RepositoryRuntime.WHEEL or bundle.text.padding is Padding.MAX_LENGTH or context <= SHORT_LENGTH:
        return (context,)
    return (SHORT_LENGTH, context)


def max_batch(tower: Tower, plan: PlanRecord | None) -> int:
    """Return how many rows a batch of the engine has at most."""
    return BATCH[tower] if plan is None else plan.max_batch


def warm_ups(bundle: Bundle, tower: Tower, runtime: RepositoryRuntime, plan: PlanRecord | None = None) -> list[WarmUp]:
    """List what Triton runs before serving: every shape once alone and as a full batch.

    The first call of a shape pays for planning its memory, the first full batch for having it. Triton counts these
    requests in its metrics as if somebody had sent them. For the wheel it therefore runs a single one, and model.py
    runs the rest where Triton does not see it.
    """
    batches = (1,) if runtime is RepositoryRuntime.WHEEL else (1, max_batch(tower, plan))
    if tower is Tower.IMAGE:
        dims = (bundle.image.size, bundle.image.size, 3)
        return [WarmUp(f"{batch}_images", batch, dims) for batch in batches]
    return [_text(bundle, length, batch) for batch in batches for length in text_lengths(bundle, runtime, plan)]


def config_pbtxt(
    bundle: Bundle, tower: Tower, precision: Precision, options: ServingOptions, plan: PlanRecord | None = None
) -> str:
    """Write a tower's config.pbtxt. `plan` is the tower's TensorRT plan where one is served."""
    in_wheel = options.runtime is RepositoryRuntime.WHEEL
    kind = "KIND_GPU" if options.is_container_gpu else "KIND_CPU"
    parts = [
        f"# Written by `twinspire build` from the bundle {bundle.name}; the next build writes it again.",
        f'name: "{model_name(bundle, tower)}"',
        f'backend: "{"python" if in_wheel else "onnxruntime"}"' if plan is None else plan_backend(plan),
        f"max_batch_size: {max_batch(tower, plan)}",
        _tensors(bundle, tower, options.runtime),
        "# What waits is gathered into a batch; nothing waits for others to come.",
        "dynamic_batching { }",
        f"instance_group [ {{ kind: {kind} count: 1{'' if plan is None else profiles(plan)} }} ]",
        _parameters(_facts(bundle, tower, precision, options, plan)),
    ]
    if options.is_container_gpu and plan is None:
        lengths = text_lengths(bundle, options.runtime)
        parts.append(optimization(bundle, tower, precision, options.accelerator, lengths))
    parts += [_warm_up(warm_up, tower) for warm_up in warm_ups(bundle, tower, options.runtime, plan)]
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


def _facts(
    bundle: Bundle, tower: Tower, precision: Precision, options: ServingOptions, plan: PlanRecord | None
) -> dict[str, str]:
    """Collect what the client reads (the first five) and what the backend does."""
    lengths = text_lengths(bundle, options.runtime, plan if tower is Tower.TEXT else None)
    facts = {
        "tower": str(tower),
        "space": bundle.space,
        "precision": str(precision),
        "dim": str(bundle.dim),
        "text_lengths": ",".join(map(str, lengths)),
    }
    if options.runtime is RepositoryRuntime.WHEEL:
        facts["providers"] = options.providers
        if options.threads is not None:
            facts["threads"] = str(options.threads)
        if options.streams is not None:
            facts["streams"] = str(options.streams)
    elif not options.is_container_gpu and options.threads is not None:
        facts["intra_op_thread_count"] = str(options.threads)
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
