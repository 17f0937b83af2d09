"""TensorRT for the export and the server: checks of ONNX graphs, and the folder of plans.

Does not import TensorRT; onnx is imported at first use.
"""

from __future__ import annotations

from twinspire.tensorrt_support.graph import PRECISIONS, check_graph, check_precision, check_symmetric, prepare_engine
from twinspire.tensorrt_support.plans import PLANS_NAME, PlanFolder, PlanManifest, PlanRecord, Profile

__all__ = [
    "PLANS_NAME",
    "PRECISIONS",
    "PlanFolder",
    "PlanManifest",
    "PlanRecord",
    "Profile",
    "check_graph",
    "check_precision",
    "check_symmetric",
    "prepare_engine",
]
