"""TensorRT's bindings without its libraries: calls are held against the documented signatures and then recorded.

Run by test_tensorrt_bindings in an interpreter of its own. pybind11 writes a signature into the docstring of every
function: `clear_flag(self: tensorrt_bindings.tensorrt.IBuilderConfig, flag: tensorrt_bindings.tensorrt.BuilderFlag) ->
None`. What a call returns is again an object of the documented class that knows only that class's names.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorrt_bindings as trt  # type: ignore[import-not-found] # on the path of this interpreter alone
from onnx import TensorProto, helper

from twinspire.bundle import Tower
from twinspire.errors import EngineError
from twinspire.tensorrt_support import Profile
from twinspire_export.tensorrt_engine import PlanBuilder, PlanRunner

_SIGNATURE = re.compile(r"^(?:\d+\. )?\w+\((?P<parameters>.*)\) -> (?P<result>.+)$", re.MULTILINE)
_PARAMETER = re.compile(r"(\w+): ([\w.:\[\], |]+?)(?: = .+)?$")
_PYTHON = {
    "bool": (bool,),
    "str": (str,),
    "float": (float, int),
    "typing.SupportsFloat": (float, int),
    "int": (int,),
    "typing.SupportsInt": (int,),
    "typing_extensions.Buffer": (bytes,),
    "buffer": (bytes,),
    "Dims": (tuple,),  # converted by the bindings
    "IHostMemory": (bytes,),  # deserialize_cuda_engine takes any buffer
}
RECORDED: dict[str, None] = {}
REFUSED: set[str] = set()
"""Calls that answer False instead of True."""


class Traced:
    """Stands in for an object of a class of the bindings."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._kind, name)  # AttributeError where the bindings have no such name
        RECORDED[f"{self._kind.__name__}.{name}"] = None
        if isinstance(member, property):
            return 1
        return lambda *arguments: _call(name, member.__doc__, (self, *arguments))

    def __str__(self) -> str:
        assert "__str__" in vars(self._kind), f"{self._kind.__name__} says nothing of itself"
        return self._kind.__name__

    def __bytes__(self) -> bytes:
        return b"bytes"  # IHostMemory has the buffer protocol


class TracedClass:
    """Stands in for a class of the bindings: making an object is a call too."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def __call__(self, *arguments: Any) -> Traced:
        """Make an object."""
        RECORDED[self._kind.__name__] = None
        made = Traced(self._kind)
        _call("__init__", self._kind.__init__.__doc__, (made, *arguments))
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kind, name)


class TracedModule:
    """Stands in for the module `tensorrt`. Enums are the real ones."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(trt, name)
        return TracedClass(value) if isinstance(value, type) and not hasattr(value, "__members__") else value


def traced() -> Any:
    """Return what stands in for the module."""
    return TracedModule()


def build() -> None:
    """Build a plan of an image tower in two profiles, then one that the parser refuses, and print every call."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder) / "image.fp32.onnx"
        onnx.save(_tower(), engine)
        profiles = [Profile((1, 8, 8, 3), (count, 8, 8, 3), (count, 8, 8, 3)) for count in (4, 16)]
        PlanBuilder(traced()).build(engine, "image", profiles)
        REFUSED.add("parse")
        with suppress(EngineError):
            PlanBuilder(traced()).build(engine, "image", profiles)
    print(*RECORDED)


def embed() -> None:
    """Run a plan, and print every call."""

    class Device:
        def upload(self, array: Any) -> int:
            return 1

        def reserve(self, size_bytes: int) -> int:
            return 2

        def download(self, address: int, array: Any) -> None:
            pass

    runner = PlanRunner(traced(), b"plan", Device(), tower=Tower.IMAGE)  # type: ignore[arg-type]
    runner.embed(np.zeros((2, 8, 8, 3), np.uint8), profile=0, output=(4,))
    print(*RECORDED)


def _call(name: str, documentation: str | None, arguments: tuple[Any, ...]) -> Any:
    """Return what a call gives, by the first documented signature that takes the arguments. Raises TypeError."""
    signatures = list(_SIGNATURE.finditer(documentation or ""))
    for signature in signatures:
        parameters = list(_parameters(signature["parameters"]))
        required = [kind for kind, has_default in parameters if not has_default]
        if len(required) <= len(arguments) <= len(parameters) and all(
            _is(argument, kind) for argument, (kind, _) in zip(arguments, parameters, strict=False)
        ):
            return _result(signature["result"]) if name not in REFUSED else False
    raise TypeError(f"{name}{arguments}: expected one of {[each[0] for each in signatures]}")


def _parameters(text: str) -> Iterator[tuple[str, bool]]:
    """List the types of the parameters and whether each has a default."""
    for part in filter(None, re.split(r", (?=\w+: )", text)):
        found = _PARAMETER.match(part)
        assert found, part
        yield found[2], " = " in part


def _is(argument: Any, kind: str) -> bool:
    name = kind.rpartition(".")[2].rpartition(":")[2] if kind not in _PYTHON else kind
    if isinstance(argument, Traced):
        return any(base.__name__ == name for base in argument._kind.__mro__)
    if name in _PYTHON:
        accepted = _PYTHON[name]
        return isinstance(argument, accepted) and (bool in accepted or not isinstance(argument, bool))
    return type(argument).__name__ == name


def _result(kind: str) -> Any:
    name = kind.rpartition(".")[2].rpartition(":")[2]
    if name in ("bool", "int", "None", "str"):
        return {"bool": True, "int": 0, "None": None, "str": ""}[name]
    return Traced(getattr(trt, name, None) or getattr(trt, name.removeprefix("I")))  # IParserError is ParserError


def _tower() -> onnx.ModelProto:
    """Make a graph of (N, 8, 8, 3) uint8 to (N, 192) float32."""
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["image"], ["moved"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["moved"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["pixels"], ["embedding"]),
        ],
        "tower",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 192])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
