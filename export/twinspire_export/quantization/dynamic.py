"""onnxruntime's dynamic quantization: the baseline that needs no samples.

No bundle is made of it: its activations are scaled by what is in the whole batch, so that an embedding depends on who
shares its run. A server that batches by itself would answer the same image with another vector each time.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from twinspire.errors import EngineError, MissingDependencyError


def quantize_dynamically(engine: Path, destination: Path) -> None:
    """Write the fp32 `engine` to `destination` with int8 weights, and activations quantized as it runs.

    The products with weights become MatMulInteger, which onnxruntime's CPU provider is fast at and OpenVINO is not.
    Raises EngineError where onnxruntime cannot do it.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as exc:
        raise MissingDependencyError("onnxruntime", "cpu", "quantizing an engine") from exc
    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory() as folder:
        model = onnx.load(engine)
        # The quantizer fails on shapes that the exporter wrote down and that no longer hold.
        model.graph.ClearField("value_info")
        clean = Path(folder) / "engine.onnx"
        onnx.save(model, clean)
        del model
        root.setLevel(logging.ERROR)  # it recommends a preparation that is for graphs with sub-graphs
        try:
            quantize_dynamic(
                clean, destination, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8
            )
        except Exception as exc:  # onnxruntime's errors share no base class
            raise EngineError(f"onnxruntime cannot quantize {engine.name}: {exc}") from exc
        finally:
            root.setLevel(level)
