"""Token tables, of which NNCF sees the used rows alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("nncf", reason="quantizing needs nncf")

import onnx
from onnx import TensorProto, helper, numpy_helper

from twinspire_export.quantization import quantizer
from twinspire_export.quantization.recipe import Int8Recipe

ROWS, DIM = 300, 16


def graph(*, tied: bool = False) -> onnx.ModelProto:
    """Return a model of token ids (N, L): rows of a table, some of them zero or tiny, and a multiplication."""
    generator = np.random.default_rng(3)
    table = generator.normal(size=(ROWS, DIM)).astype(np.float32)
    table[7] = 0
    table[11:40] *= 1e-4
    table[250] *= 30
    weight = generator.normal(size=(DIM, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"], "tokens/Gather"),
        helper.make_node("MatMul", ["rows", "weight"], ["product"], "up/MatMul"),
        helper.make_node("ReduceMean", ["product"], ["embedding"], "mean", axes=[1], keepdims=0),
    ]
    if tied:
        nodes.append(helper.make_node("ReduceSum", ["table"], ["total"], "total", keepdims=0))
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 8])]
    outputs += [helper.make_tensor_value_info("total", TensorProto.FLOAT, [])] if tied else []
    made = helper.make_graph(
        nodes,
        "tokens",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["N", "L"])],
        outputs,
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feeds() -> list[Mapping[str, NDArray[Any]]]:
    """Return samples that use few of the rows, the zero and the tiny ones among them."""
    generator = np.random.default_rng(5)
    return [{"input_ids": generator.integers(0, 60, (1, 6)).astype(np.int32)} for _ in range(20)]


@pytest.mark.parametrize("recipe", [Int8Recipe(), Int8Recipe(keep_float=("tokens",))], ids=["int8", "float"])
def test_graphs_are_equal(recipe: Int8Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is the same, bit for bit, whether NNCF sees the whole table or the used rows."""
    seen = []
    run = quantizer._run_nncf

    def run_nncf(model: onnx.ModelProto, *arguments: Any, **options: Any) -> onnx.ModelProto:
        seen.append(next(tuple(tensor.dims) for tensor in model.graph.initializer if tensor.name == "table"))
        return run(model, *arguments, **options)

    monkeypatch.setattr(quantizer, "_run_nncf", run_nncf)
    reduced = quantizer.quantize_graph(graph(), feeds(), recipe)
    monkeypatch.setattr(quantizer, "keep_used_rows", lambda _, samples: ([], samples))
    whole = quantizer.quantize_graph(graph(), feeds(), recipe)
    assert reduced.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
    assert seen[1] == (ROWS, DIM)
    assert seen[0][0] < ROWS / 4
    assert [value.name for value in reduced.graph.input] == ["input_ids"]


def test_a_table_with_other_readers_stays_whole() -> None:
    """A table that something else reads too is left as it is."""
    from twinspire_export.quantization.token_tables import keep_used_rows

    model = graph(tied=True)
    before = model.SerializeToString(deterministic=True)
    tables, fed = keep_used_rows(model, feeds())
    assert tables == []
    assert [list(feed) for feed in fed] == [["input_ids"]] * 20
    assert model.SerializeToString(deterministic=True) == before
