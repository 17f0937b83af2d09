"""Optional packages: whether those of an extra are installed, and keeping their log messages off the terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec

from twinspire._dependencies import package_version
from twinspire.errors import MissingDependencyError


class Extra(StrEnum):
    """The extras of the distribution that bring the packages."""

    CPU = "cpu"
    EXPORT = "export"
    QUANTIZE = "quantize"


# Module to find, package that has it, extra that brings the package. Engines are measured, so both need a runtime.
_REQUIRED: dict[Extra, tuple[tuple[str, str, Extra], ...]] = {
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
    """Check that the packages of `extra` are installed. Raises MissingDependencyError for the first that is not."""
    for module, package, brought_by in _REQUIRED.get(extra, ()):
        try:
            found = find_spec(module)
        except ModuleNotFoundError:  # a parent package is missing
            found = None
        if found is None:
            raise MissingDependencyError(package, brought_by, purpose)


def installed_version(package: str) -> str:
    """Return the version of an installed package; onnxruntime's under whichever of its names it is installed."""
    return package_version(package) or package_version(f"{package}-gpu") or "unknown"


@contextmanager
def silenced(*loggers: str) -> Iterator[None]:
    """Show only errors of the named loggers, and no deprecation warnings of torch and optimum."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Since torch 2.9 its TorchScript exporter, which optimum uses, announces its successor at every call. The
            # successor gives an output named `embedding` the name of a module and writes an invalid graph.
            warnings.filterwarnings(
                "ignore", category=DeprecationWarning, module=r"(torch|optimum|twinspire_export)\..*"
            )
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
