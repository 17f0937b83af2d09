"""The optional packages that this package's work needs."""

from __future__ import annotations

from enum import StrEnum
from importlib.util import find_spec

from twinspire.errors import MissingDependencyError


class Extra(StrEnum):
    """The extras of the distribution that bring them."""

    CPU = "cpu"
    EXPORT = "export"
    QUANTIZE = "quantize"


# Module to find, package it comes in, extra that brings the package. Engines are measured, so both need a
# runtime.
_NEEDS: dict[Extra, tuple[tuple[str, str, Extra], ...]] = {
    Extra.EXPORT: (
        ("torch", "torch", Extra.EXPORT),
        ("transformers", "transformers", Extra.EXPORT),
        ("safetensors", "safetensors", Extra.EXPORT),
        ("onnx", "onnx", Extra.EXPORT),
        ("optimum.exporters.onnx", "optimum-onnx", Extra.EXPORT),
        ("onnxruntime", "onnxruntime", Extra.CPU),
    ),
    Extra.QUANTIZE: (
        ("onnx", "onnx", Extra.QUANTIZE),
        ("nncf", "nncf", Extra.QUANTIZE),
        ("onnxruntime", "onnxruntime", Extra.CPU),
    ),
}


def require(extra: Extra, purpose: str) -> None:
    """Look for what `purpose` needs. Raises MissingDependencyError for the first package that is missing."""
    for module, package, brought_by in _NEEDS.get(extra, ()):
        try:
            found = find_spec(module)
        except ModuleNotFoundError:  # a parent of it is not there either
            found = None
        if found is None:
            raise MissingDependencyError(package, brought_by, purpose)
