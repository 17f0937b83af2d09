"""Engines on the GPU: embeddings close to the processor's, equal from several threads, and every node of fp16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import ProviderError
from twinspire.text import Tokenizer
from twinspire.towers import LocalTowers, Provider
from twinspire.towers.onnxruntime_support import (
    CUDA_PROVIDER,
    ONLY_FATAL,
    cuda_library_error,
    load_cuda_libraries,
    onnxruntime_library,
)
from twinspire.towers.providers import available
from twinspire_bench.gpu_check.steps import Scope, StepResults
from twinspire_bench.scripts import read_captions

PRECISIONS = (Precision.FP32, Precision.FP16)
MIN_COSINE: Mapping[Precision, float] = {Precision.FP32: 0.999999, Precision.FP16: 0.9999}
"""Minimum cosine to fp32 on the processor: fp32 without TF32, and fp16 with random weights (measured 0.9999991)."""
_NODE_COSINE = 0.999
_SAMPLES = 64
_THREADS = 8
_WORST = 10

Encode = Callable[[LocalTowers], NDArray[np.float32]]


def inputs_of(bundle: Bundle) -> tuple[NDArray[np.uint8], list[NDArray[np.int32]]]:
    """Return noise as images (64, S, S, 3) and 64 captions as token ids."""
    size = bundle.image.size
    images = np.random.default_rng(0).integers(0, 256, (_SAMPLES, size, size, 3), np.uint8)
    return images, Tokenizer(bundle.tokenizer_path, bundle.text).encode(read_captions(None, _SAMPLES))


def providers(scope: Scope) -> StepResults:
    """Open each precision on the GPU and compare its embeddings with those of fp32 on the processor."""
    images, texts = inputs_of(scope.bundle)
    failures: list[str] = []
    found: dict[str, Any] = {"available": list(available())}
    with closing(LocalTowers(scope.bundle, precision=Precision.FP32, provider=Provider.CPU)) as reference:
        expected = {Tower.IMAGE: reference.encode_images(images), Tower.TEXT: reference.encode_texts(texts)}
    for precision in PRECISIONS:
        with closing(LocalTowers(scope.bundle, precision=precision, provider=scope.provider)) as towers:
            vectors = {Tower.IMAGE: towers.encode_images(images), Tower.TEXT: towers.encode_texts(texts)}
        for tower, ours in vectors.items():
            cosines = np.einsum("nd,nd->n", ours, expected[tower])
            found[f"{tower}_{precision}"] = {"min_cosine": cosines.min(), "mean_cosine": cosines.mean()}
            if cosines.min() < MIN_COSINE[precision]:
                failures.append(f"{tower} {precision}: cosine {cosines.min():.7f} to fp32 on the processor")
    return {**found, "failures": failures}


def threads(scope: Scope) -> StepResults:
    """Encode the same inputs from eight threads at once: each must get the embeddings of a single thread."""
    images, texts = inputs_of(scope.bundle)
    failures: list[str] = []
    differences: dict[str, float] = {}
    for precision in PRECISIONS:
        with closing(LocalTowers(scope.bundle, precision=precision, provider=scope.provider)) as towers:
            calls: dict[Tower, Encode] = {
                Tower.IMAGE: lambda opened: opened.encode_images(images[:16]),
                Tower.TEXT: lambda opened: opened.encode_texts(texts[:16]),
            }
            for tower, call in calls.items():
                alone = call(towers)
                with ThreadPoolExecutor(_THREADS) as pool:
                    together = list(pool.map(lambda _, call=call: call(towers), range(4 * _THREADS)))
                largest = max(float(np.abs(vectors - alone).max()) for vectors in together)
                differences[f"{tower}_{precision}"] = largest
                if largest > 1e-3:
                    failures.append(f"{tower} {precision}: vectors differ by {largest:.2e} between threads")
    return {"threads": _THREADS, "largest_difference": differences, "failures": failures}


def fp16_nodes(scope: Scope) -> StepResults:
    """Compare each intermediate value of the fp16 engines with that of the same name in the fp32 engines."""
    images, texts = inputs_of(scope.bundle)
    rows = max(map(len, texts[:4]))
    ids = np.full((4, rows), scope.bundle.text.pad_id, np.int32)
    for row, text in zip(ids, texts, strict=False):
        row[: text.size] = text
    failures: list[str] = []
    found: dict[str, Any] = {}
    for tower, array in ((Tower.IMAGE, images[:4]), (Tower.TEXT, ids)):
        exact = _values(scope.bundle.engine(tower, Precision.FP32), array, Provider.CPU)
        fp16 = _values(scope.bundle.engine(tower, Precision.FP16), array, scope.provider)
        compared = {name: _cosine(fp16[name], exact[name]) for name in fp16.keys() & exact.keys()}
        worst = sorted(compared, key=compared.__getitem__)[:_WORST]
        found[str(tower)] = {
            "compared": len(compared),
            "of": len(exact),
            "worst": [{"value": name, "cosine": compared[name]} for name in worst],
        }
        broken = [name for name in worst if not compared[name] >= _NODE_COSINE]
        if broken or not compared:
            failures.append(f"the {tower} tower: {', '.join(broken) or 'no value has a name of the fp32 engine'}")
    return {**found, "failures": failures}


def _values(engine: Path, array: NDArray[Any], provider: Provider) -> dict[str, NDArray[Any]]:
    """Run an engine without graph optimisation and return all floating-point values, intermediate ones too."""
    import onnx
    from onnx import TensorProto, helper

    onnxruntime = onnxruntime_library()
    model = onnx.load(str(engine))
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    own = [output.name for output in model.graph.output]
    names = [
        output
        for node in model.graph.node
        for output in node.output
        if types.get(output) in (TensorProto.FLOAT, TensorProto.FLOAT16) and output not in own
    ]
    model.graph.ClearField("value_info")
    model.graph.output.extend(helper.make_tensor_value_info(name, types[name], None) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ONLY_FATAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    listed = ["CPUExecutionProvider"]
    if provider is Provider.CUDA:
        load_cuda_libraries()
        listed.insert(0, CUDA_PROVIDER)  # shape computations stay on the processor
    session = onnxruntime.InferenceSession(model.SerializeToString(), sess_options=options, providers=listed)
    if listed[0] not in session.get_providers():
        raise ProviderError(f"onnxruntime dropped the provider {provider} for {engine.name}: {cuda_library_error()}")
    wanted = [*own, *names]
    return dict(zip(wanted, session.run(wanted, {model.graph.input[0].name: array}), strict=True))


def _cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the cosine of two flattened values; -1 where shapes differ, one is not finite or only one is zero."""
    if one.shape != other.shape:
        return -1.0
    left, right = (value.astype(np.float64).ravel() for value in (one, other))
    if not np.isfinite(left).all():
        return 1.0 if np.array_equal(left, right) else -1.0
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    if norms == 0:
        return 1.0 if np.abs(left).max(initial=0) == np.abs(right).max(initial=0) else -1.0
    return float(left @ right / norms)
