"""Checks of an engine: whether it keeps the tensor contract, and how near its embeddings come to a reference.

Needs no torch: exported and quantized engines are checked alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Certificate, Tower, TowerSpec
from twinspire.contract import EMBEDDING, FREE, TensorSpec, text_input
from twinspire.errors import EngineError, MissingDependencyError
from twinspire_eval.statistics import row_cosines
from twinspire_export.dependencies import installed_version

if TYPE_CHECKING:
    import onnx
    import onnxruntime

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})


def check_engine(path: Path, tower: Tower, spec: TowerSpec) -> None:
    """Check the ONNX file `path` against the tensors of a tower.

    Raises EngineError as `check_graph` does.
    """
    # Engines take texts of any length, also of families that always pad them to the context.
    check_graph(path, [text_input() if tower is Tower.TEXT else spec.input], spec.output, of=f"the {tower} tower")


def check_graph(path: Path, inputs: Sequence[TensorSpec], output: TensorSpec, *, of: str) -> None:
    """Check the ONNX file `path` against `inputs` and `output`; `of` says in errors what has them.

    Does not run it. Raises EngineError where the file is invalid, has operators beyond the ONNX standard, or other
    inputs, outputs, types or axes.
    """
    import onnx

    try:
        # The full check infers all shapes strictly, so a stale one inside the graph fails here and not in a runtime.
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load(path, load_external_data=False)
    except Exception as exc:  # onnx's checker, shape inference and protobuf share no base class
        raise EngineError(f"{path.name} is not a valid ONNX file: {exc}") from exc
    foreign = {f"{node.domain}::{node.op_type}" for node in _nodes(model.graph) if node.domain not in STANDARD_DOMAINS}
    if foreign:
        raise EngineError(f"{path.name} has operators beyond the ONNX standard: {', '.join(sorted(foreign))}")
    expected = [_expected(spec) for spec in (*inputs, output)]
    found = [_found(value) for value in (*model.graph.input, *model.graph.output)]
    if found != expected:
        raise EngineError(
            f"{path.name} has the inputs and outputs {', '.join(found)}; expected of {of}: {' and '.join(expected)}"
        )


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
            for subgraph in attribute.graphs:
                yield from _nodes(subgraph)


def _expected(spec: TensorSpec) -> str:
    axes = ["N", *("L" if length == FREE else str(length) for length in spec.shape)]
    return f"{spec.name} {spec.onnx_type} ({', '.join(axes)})"


def _found(value: onnx.ValueInfoProto) -> str:
    import onnx

    tensor = value.type.tensor_type
    axes = [str(axis.dim_param or axis.dim_value) for axis in tensor.shape.dim]
    return f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type)} ({', '.join(axes)})"


def open_engine(engine: Path | bytes, name: str) -> onnxruntime.InferenceSession:
    """Open an ONNX file, or the bytes of one, on onnxruntime's CPU provider; `name` is for the error.

    Raises EngineError where onnxruntime cannot load it.
    """
    try:
        import onnxruntime as ort
    except ImportError as exc:
        raise MissingDependencyError("onnxruntime", "cpu", "measuring an engine") from exc
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        return ort.InferenceSession(engine, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime's errors share no base class
        raise EngineError(f"onnxruntime cannot load {name}: {exc}") from exc


def run_engine(
    session: onnxruntime.InferenceSession, outputs: Sequence[str], feed: dict[str, NDArray[Any]], name: str
) -> list[NDArray[Any]]:
    """Run a session once. Raises EngineError, with `name`, where onnxruntime cannot."""
    try:
        values: list[NDArray[Any]] = session.run(list(outputs), feed)
    except Exception as exc:  # onnxruntime's errors share no base class
        raise EngineError(f"onnxruntime cannot run {name}: {exc}") from exc
    return values


class EngineRunner:
    """An engine on onnxruntime's CPU provider, in which certificates are measured; not the way to serve.

    Raises EngineError where the engine cannot be loaded or run.
    """

    def __init__(self, engine: Path | bytes) -> None:
        self._name = engine.name if isinstance(engine, Path) else "the engine"
        self._session = open_engine(engine, self._name)
        self._input = self._session.get_inputs()[0].name

    def embed(self, batches: Iterable[NDArray[np.uint8] | NDArray[np.int32]]) -> NDArray[np.float32]:
        """Encode `batches`, each an input of the engine, to (N, D) or (N, Q, D) float32, L2-normalised."""
        return np.concatenate(
            [run_engine(self._session, [EMBEDDING], {self._input: batch}, self._name)[0] for batch in batches]
        )


def certify(
    measured: NDArray[np.float32],
    expected: NDArray[np.float32],
    *,
    reference: str,
    data: str,
    packages: Sequence[str],
) -> Certificate:
    """Compare `measured` (N, D) or (N, Q, D) with `expected` vector by vector; the versions of `packages` are noted.

    Applies no bound: the caller knows it. Raises EngineError where an embedding is not finite.
    """
    cosines = row_cosines(measured, expected)
    if not np.isfinite(cosines).all():
        raise EngineError(
            f"{int((~np.isfinite(cosines)).sum())} of {len(cosines)} embeddings are not finite; the weights hold NaN, "
            "infinities or zeros, or the precision is too small for them"
        )
    return Certificate(
        reference=reference,
        data=data,
        samples=len(expected),
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        recall=None,
        versions={package: installed_version(package) for package in packages},
    )
