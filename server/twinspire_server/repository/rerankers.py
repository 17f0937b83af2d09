"""The model of a bundle's reranker: specs for Triton from the wheel and for NVIDIA's container."""

from __future__ import annotations

import logging
from dataclasses import replace

from twinspire.bundle import Bundle
from twinspire.contract import INPUT_IDS
from twinspire.errors import BundleError
from twinspire.towers.local_reranker import BATCH
from twinspire_server.repository.engines import ENGINE, EngineFile, gpu_optimization
from twinspire_server.repository.served_engine import text_rows
from twinspire_server.repository.settings import Accelerator
from twinspire_server.repository.spec import RERANKER_PARAMETER, ModelSpec, WarmUp
from twinspire_server.repository.towers import ServedBundle, container_instances, served_from_wheel

_log = logging.getLogger("twinspire")


def wheel_reranker(served: ServedBundle) -> list[ModelSpec]:
    """Return a Python model, whose model.py opens the reranker through `LocalReranker`; none without a reranker."""
    return [
        replace(
            served_from_wheel(served, spec, streams=None),
            warm_ups=[_warm_up(served.bundle, spec, 1)],  # model.py runs the rest, as of the towers
        )
        for spec in _specs(served)
    ]


def container_reranker(served: ServedBundle) -> list[ModelSpec]:
    """Return the engine on the onnxruntime backend; none without a reranker.

    On a GPU CUDA runs it, whatever runs the towers: it has no TensorRT plan.
    """
    bundle, specs = served.bundle, []
    for spec in _specs(served):
        assert spec.engine_sha256 is not None
        assert spec.precision is not None
        _, reranker = bundle.manifest.reranker()
        instances, parameters = container_instances(served.options)
        source = bundle.path / reranker.engine_file(spec.precision)
        specs.append(
            replace(
                spec,
                backend="onnxruntime",
                files=[EngineFile(name=ENGINE, source=source, sha256=spec.engine_sha256)],
                parameters={**spec.parameters, **parameters},
                instances=instances,
                further_config=_on_cuda(spec) if served.options.is_container_gpu else None,
                warm_ups=[_warm_up(bundle, spec, count) for count in (1, spec.max_batch)],
            )
        )
    return specs


def _specs(served: ServedBundle) -> list[ModelSpec]:
    """Return the part of the reranker's spec that clients see, with no files yet; none where the bundle has none."""
    bundle = served.bundle
    if not bundle.manifest.rerankers:
        return []
    try:
        name, reranker = bundle.manifest.reranker()
    except BundleError as error:  # the towers can be served all the same
        _log.warning("no model for the reranker: %s", error)
        return []
    precision = reranker.precision_for(served.precision)
    return [
        ModelSpec(
            name=f"{bundle.name}_{name}",
            bundle=bundle.name,
            space=bundle.space,
            precision=precision,
            backend="python",
            max_batch=BATCH,
            inputs=reranker.inputs,
            outputs=[reranker.output],
            files=[],
            parameters={RERANKER_PARAMETER: name},
            engine_sha256=bundle.manifest.files[reranker.engine_file(precision)].sha256,
        )
    ]


def _on_cuda(spec: ModelSpec) -> str:
    assert spec.engine_sha256 is not None
    return gpu_optimization(
        Accelerator.CUDA, spec.inputs[0], batch=spec.max_batch, lengths=(), engine_sha256=spec.engine_sha256
    )


def _warm_up(bundle: Bundle, spec: ModelSpec, batch: int) -> WarmUp:
    """Return a batch of black images, and texts that fill the context."""
    ids = text_rows(bundle.text, bundle.text.context_length, 1)
    return WarmUp(f"{batch}_pairs", batch, tuple(spec.inputs), {INPUT_IDS: ids.tobytes()})
