"""What the export and the server agree on about TensorRT: the graphs that it takes, and the folder of its plans.

Imports neither TensorRT nor, before it is needed, onnx.
"""

from __future__ import annotations

from twinspire.tensorrt_support.graph import PRECISIONS, check_graph, check_precision, prepare_engine
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
    "prepare_engine",
]
