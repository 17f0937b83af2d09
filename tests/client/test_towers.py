"""Both towers in this process, on the provider that every installation has."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state

from support.arrays import noise_images
from twinspire import Client
from twinspire.bundle import Bundle, OutputForm, Padding, Precision, Resize, Tower
from twinspire.contract import TensorSpec, image_input
from twinspire.errors import BundleError, EngineError, InputError, TwinspireError
from twinspire.towers import LocalTowers, Provider, Towers, TritonTowers, auto_selection, validation
from twinspire.towers.providers import Sessions
from twinspire.towers.validation import check_embeddings

TOLERANCE = 1e-6  # float32 against float64 over 768 products


def _text(*words: int) -> np.ndarray:
    return np.array([1, *words, 2], np.int32)


def _open_towers(tiny: Any, **options: Any) -> LocalTowers:
    return LocalTowers(tiny.bundle, **{"precision": "fp32", "provider": "cpu", "threads": 1, **options})


def _assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    difference = np.abs(found - expected).max()
    assert difference <= TOLERANCE, f"largest difference {difference:.2e}"


@pytest.mark.parametrize("count", [1, 32, 33, 70])
def test_images_in_batches_agree_with_numpy(tiny: Any, count: int) -> None:
    """Any number of images gives what NumPy computes of the same weights, in the order given."""
    images = noise_images(count)
    embeddings = _open_towers(tiny).encode_images(images)
    assert embeddings.dtype == np.float32
    _assert_close(embeddings, tiny.model.encode_images(images))


def test_texts_agree_with_numpy(tiny: Any) -> None:
    """Texts of mixed lengths give what NumPy computes one by one, in the order given."""
    texts = [_text(4, 6, 11), _text(), _text(*[7] * 18), _text(5), _text(6, 4, 11)]
    _assert_close(_open_towers(tiny).encode_texts(texts), tiny.model.encode_texts(texts))


def test_nothing_gives_no_rows(tiny: Any) -> None:
    """No images and no texts give (0, D) float32."""
    towers = _open_towers(tiny)
    for embeddings in (towers.encode_images(noise_images(0)), towers.encode_texts([])):
        assert embeddings.shape == (0, towers.dim)
        assert embeddings.dtype == np.float32


def test_a_view_is_encoded_as_what_it_shows(tiny: Any) -> None:
    """An array that is not contiguous gives the same as its copy."""
    images = noise_images(6)[::-2]
    _assert_close(_open_towers(tiny).encode_images(images), tiny.model.encode_images(images.copy()))


def test_max_length_pads_to_the_context(make_tiny: Callable[..., Any]) -> None:
    """A `max_length` bundle's engine is fed the full context, also for the shortest text."""
    tiny = make_tiny(padding=Padding.MAX_LENGTH)
    towers = _open_towers(tiny)
    fed: list[tuple[int, ...]] = []
    session = towers._sessions[Tower.TEXT].whole

    class Spy:
        def run(self, names: Any, feed: dict[str, np.ndarray]) -> Any:
            fed.append(feed["input_ids"].shape)
            return session.run(names, feed)

    towers._sessions = {Tower.TEXT: Sessions(Spy(), (Spy(),))}  # type: ignore[arg-type]
    texts = [_text(), _text(5, 6)]
    _assert_close(towers.encode_texts(texts), tiny.model.encode_texts(texts))
    assert fed == [(2, tiny.bundle.text.context_length)]


def test_local_towers_are_towers(tiny: Any) -> None:
    """LocalTowers has what the protocol asks for, with the bundle's values."""
    towers: Towers = _open_towers(tiny)
    assert (towers.dim, towers.space) == (tiny.bundle.dim, tiny.bundle.space)
    assert towers.context_length == tiny.bundle.text.context_length


@pytest.mark.parametrize(("threads", "streams"), [(2, 2), (4, 2), (3, 2)])
def test_streams_give_the_same(tiny: Any, threads: int, streams: int) -> None:
    """Any number of images and texts, cut into streams, comes back in order and as NumPy computes it."""
    towers = _open_towers(tiny, threads=threads, streams=streams)
    generator = np.random.default_rng(3)
    for count in (1, 2, 3, 33, 64, 65, 130):
        images = generator.integers(0, 256, (count, 16, 16, 3), np.uint8)
        texts = [np.array([1, *generator.integers(3, 12, n % 15), 2], np.int32) for n in range(count)]
        for found, expected in (
            (towers.encode_images(images), tiny.model.encode_images(images)),
            (towers.encode_texts(texts), tiny.model.encode_texts(texts)),
        ):
            assert found.shape == expected.shape
            difference = np.abs(found - expected).max()
            assert difference <= TOLERANCE, f"largest difference {difference:.2e}"
    assert str(towers.runtime) == f"onnxruntime cpu fp32, threads: {threads}, streams: {streams}"


def test_an_error_in_a_stream_is_raised(tiny: Any) -> None:
    """What goes wrong in a stream reaches the caller as it would without streams."""
    towers = _open_towers(tiny, threads=2, streams=2)
    towers.close()
    with pytest.raises(EngineError, match="closed"):
        towers.encode_images(np.zeros((4, 16, 16, 3), np.uint8))


@pytest.mark.parametrize("streams", [1, 2])
def test_threads_share_the_towers(tiny: Any, streams: int) -> None:
    """Calls from several threads at once give what each gives alone."""
    towers = _open_towers(tiny, threads=2, streams=streams)
    jobs = [(noise_images(3 + job % 5), [_text(*[4 + job % 9] * (job % 17))] * 3) for job in range(40)]

    def encode(job: tuple[np.ndarray, list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        return towers.encode_images(job[0]), towers.encode_texts(job[1])

    with ThreadPoolExecutor(4) as pool:
        for (images, texts), found in zip(jobs, pool.map(encode, jobs), strict=True):
            _assert_close(found[0], tiny.model.encode_images(images))
            _assert_close(found[1], tiny.model.encode_texts(texts))


def test_closed_towers_say_so(tiny: Any) -> None:
    """After `close`, which may come twice, encoding raises EngineError."""
    towers = _open_towers(tiny)
    towers.close()
    towers.close()
    with pytest.raises(EngineError, match="closed"):
        towers.encode_images(noise_images(1))


def test_one_tower_alone(tiny: Any) -> None:
    """With one tower named the other's engine is not opened, and encoding with it says so."""
    towers = _open_towers(tiny, towers=[Tower.IMAGE])
    images = noise_images(2)
    _assert_close(towers.encode_images(images), tiny.model.encode_images(images))
    assert set(towers._sessions) == {Tower.IMAGE}
    with pytest.raises(EngineError, match="text"):
        towers.encode_texts([_text(4)])


# What to run


def test_a_named_precision_is_used(tiny: Any) -> None:
    """`fp32` and `int8` open different engines, and `runtime` says which."""
    images = noise_images(4)
    _assert_close(_open_towers(tiny).encode_images(images), tiny.model.encode_images(images))
    quantized = _open_towers(tiny, precision="int8")
    _assert_close(quantized.encode_images(images), tiny.int8.encode_images(images))
    assert quantized.runtime.precision is Precision.INT8
    assert str(quantized.runtime) == "onnxruntime cpu int8, threads: 1"


def test_a_named_precision_that_is_missing_is_an_error(make_tiny: Callable[..., Any]) -> None:
    """A bundle without int8 engines, asked for int8, names what it has."""
    tiny = make_tiny(precisions=[Precision.FP32])
    with pytest.raises(BundleError, match="fp32"):
        _open_towers(tiny, precision="int8")


@pytest.mark.parametrize(
    ("options", "flags", "expected", "reason"),
    [
        ({}, {"avx512_vnni"}, Precision.INT8, "certified"),
        ({}, {"avx2"}, Precision.FP32, "VNNI"),
        ({"certified": False}, {"avx_vnni"}, Precision.FP32, "certificate"),
        ({"precisions": [Precision.FP32]}, {"avx_vnni"}, Precision.FP32, "image"),
    ],
)
def test_auto_precision(
    make_tiny: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    flags: set[str],
    expected: Precision,
    reason: str,
) -> None:
    """`auto` takes int8 where both engines are certified and the processor sums exactly; it says why."""
    monkeypatch.setattr(auto_selection, "processor_flags", lambda: frozenset(flags))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with caplog.at_level(logging.INFO, logger="twinspire"):
        towers = _open_towers(make_tiny(**options), precision="auto")
    assert towers.runtime.precision is expected
    assert len(caplog.messages) == 1
    assert reason in caplog.text


def test_int8_by_name_is_warned_of_where_sums_may_overflow(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """int8 asked for by name on an x86 processor without VNNI is used, with a warning."""
    monkeypatch.setattr(auto_selection, "processor_flags", frozenset)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert _open_towers(tiny, precision="int8").runtime.precision is Precision.INT8
    assert "overflow" in caplog.text


@pytest.mark.parametrize(
    ("model", "size"),
    [({"vocab": {"a": 0, "b": 6}}, 8), ({"vocab": [["a", 0.0], ["b", -1.0]]}, 8), ({"vocab": {}}, 8)],
)
def test_the_vocabulary_is_known_from_the_tokenizer(tmp_path: Path, model: dict[str, Any], size: int) -> None:
    """The highest id counts, of the model's vocabulary, by name or in order, and of the added tokens."""
    document = {"model": model, "added_tokens": [{"id": 7, "content": "<end>"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert validation.vocabulary_size(tmp_path / "tokenizer.json") == size


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"vocab": {}}}', '{"model": {"vocab": {"a": null}}}'])
def test_a_tokenizer_without_a_vocabulary_is_an_error(tmp_path: Path, content: str) -> None:
    """A tokenizer.json of another form is a BundleError that names the file."""
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        validation.vocabulary_size(tmp_path / "tokenizer.json")


def test_what_was_named_is_not_logged(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Where provider and precision are named, nothing is chosen and nothing is said."""
    with caplog.at_level(logging.DEBUG, logger="twinspire"):
        _open_towers(tiny)
    assert caplog.messages == []


def test_auto_finds_something_that_runs(tiny: Any) -> None:
    """With nothing named, the towers run on this machine, whatever is installed."""
    towers = LocalTowers(tiny.bundle)
    model = tiny.int8 if towers.runtime.precision is Precision.INT8 else tiny.model
    images = noise_images(3)
    assert towers.runtime.provider in Provider
    difference = np.abs(towers.encode_images(images) - model.encode_images(images)).max()
    assert difference <= 1e-5, f"largest difference {difference:.2e}"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"precision": "int4"}, "fp16"),
        ({"provider": "tpu"}, "openvino"),
        ({"threads": 0}, "threads"),
        ({"threads": True}, "threads"),
        ({"threads": 1.5}, "threads"),
        ({"streams": 0}, "streams"),
        ({"streams": True}, "streams"),
        ({"threads": 2, "streams": 3}, "streams"),
        ({"towers": []}, "image"),
        ({"towers": ["both"]}, "image"),
    ],
)
def test_unknown_options_are_named(tiny: Any, options: dict[str, Any], word: str) -> None:
    """A wrong option is an InputError that says what there is."""
    with pytest.raises(InputError, match=word):
        _open_towers(tiny, **options)


# What goes in


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 16, 16, 3), np.float32),
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((1, 3, 16, 16), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((0,), np.uint8),
        [np.zeros((16, 16, 3), np.uint8)],
    ],
)
def test_other_images_are_refused(tiny: Any, images: Any) -> None:
    """Anything but (N, S, S, 3) uint8 is an InputError that says so."""
    with pytest.raises(InputError, match=r"\(N, 16, 16, 3\)"):
        _open_towers(tiny).encode_images(images)


@pytest.mark.parametrize(
    ("ids", "word"),
    [
        (np.array([1, 2], np.int64), "int64"),
        (np.array([[1, 2]], np.int32), "2-D"),
        ([1, 2], "list"),
        (np.array([], np.int32), "1 to 20"),
        (_text(*[5] * 19), "21"),
        (_text(18), "18"),
        (_text(-1), "-1"),
        (np.array([1, 2, 0], np.int32), "end"),
    ],
)
def test_other_texts_are_refused(tiny: Any, ids: Any, word: str) -> None:
    """A text that is not of the contract is an InputError with its position."""
    with pytest.raises(InputError, match="text 1") as caught:
        _open_towers(tiny).encode_texts([_text(4), ids])
    assert word in str(caught.value)


def test_a_padded_batch_is_no_list_of_texts(tiny: Any) -> None:
    """A 2-D array, padded, is refused: the towers pad themselves."""
    with pytest.raises(InputError, match="ndarray"):
        _open_towers(tiny).encode_texts(np.array([[1, 2], [1, 2]], np.int32))  # type: ignore[arg-type]


# What an engine must be


def _rename(graph: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    for node in graph.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    for given in graph.graph.input:
        given.name = new if given.name == old else given.name
    return graph


def _fix_batch(graph: onnx.ModelProto) -> onnx.ModelProto:
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return graph


def _retype(graph: onnx.ModelProto) -> onnx.ModelProto:
    graph.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    return graph


def _second_output(graph: onnx.ModelProto) -> onnx.ModelProto:
    graph.graph.output.append(helper.make_tensor_value_info("norm", TensorProto.FLOAT, ["batch", 1]))
    return graph


@pytest.mark.parametrize(
    ("change", "datum"),
    [
        (lambda model: _rename(model.image_graph(), "image", "pixel_values"), "pixel_values"),
        (lambda model: _fix_batch(model.image_graph()), "(1, 16, 16, 3)"),
        (lambda model: _retype(model.image_graph()), "int32"),
        (
            lambda model: replace(model, size=8, image_weight=model.image_weight[:192]).image_graph(),
            "8, 8, 3",
        ),
        (lambda model: model.image_graph("image_embeds"), "image_embeds"),
        (lambda model: _second_output(model.image_graph()), "norm"),
        (
            lambda model: replace(model, image_weight=model.image_weight[:, :5]).image_graph(),
            "batch, 5",
        ),
        (lambda model: model.text_graph(), "input_ids"),
    ],
)
def test_an_engine_of_other_tensors_is_refused(
    tiny: Any, make_tiny: Callable[..., Any], change: Callable[[Any], onnx.ModelProto], datum: str
) -> None:
    """An engine with other inputs or outputs is an EngineError that names the file, at opening."""
    broken = make_tiny(graphs={Tower.IMAGE: change(tiny.model)})
    with pytest.raises(EngineError, match=r"image\.fp32\.onnx") as caught:
        _open_towers(broken)
    assert datum in str(caught.value)


def test_an_engine_that_is_no_onnx_is_refused(tiny: Any, make_tiny: Callable[..., Any]) -> None:
    """A file that onnxruntime cannot read is an EngineError that names it, not a fallback of `auto`."""
    broken = make_tiny()
    broken.bundle.engine(Tower.TEXT, Precision.FP32).write_bytes(b"not a model")
    with pytest.raises(EngineError, match=r"text\.fp32\.onnx"):
        _open_towers(broken, provider="auto")


# What comes out


def test_a_vector_that_is_not_finite_is_an_error(tiny: Any, make_tiny: Callable[..., Any]) -> None:
    """An engine that divides by a norm of zero raises EngineError with the row; no NaN gets out."""
    zero = replace(tiny.model, text_weight=np.zeros_like(tiny.model.text_weight))
    towers = _open_towers(make_tiny(graphs={Tower.TEXT: zero.text_graph()}))
    with pytest.raises(EngineError, match="row 0") as caught:
        towers.encode_texts([_text(4), _text(5)])
    assert "nan" in str(caught.value)
    assert str(towers.runtime) in str(caught.value)


@pytest.mark.parametrize(
    ("output", "data"),
    [
        (np.eye(3, 4, dtype=np.float64), ["(3, 4)", "float64"]),
        (np.eye(2, 4, dtype=np.float32), ["(2, 4)", "(3, 4)"]),
        (np.eye(3, 4, dtype=np.float32) * 1.01, ["1.01", "row 0", "3 of 3"]),
        (np.diag([1, np.inf, 1, 1]).astype(np.float32)[:3], ["inf", "row 1", "1 of 3"]),
        (None, ["NoneType"]),
    ],
)
def test_what_is_no_unit_vector_is_an_error(output: Any, data: list[str]) -> None:
    """Anything but finite float32 rows of norm 1 raises EngineError that says what came."""
    with pytest.raises(EngineError) as caught:
        check_embeddings(output, shape=(3, 4), source="an engine", tower=Tower.IMAGE)
    assert all(datum in str(caught.value) for datum in data)


def test_each_of_several_vectors_must_have_length_1() -> None:
    """Of (N, Q, D) every vector counts; the row that is named is the item's."""
    output = np.stack([np.eye(3, 4, dtype=np.float32)] * 5)
    assert check_embeddings(output, shape=(5, 3, 4), source="an engine", tower=Tower.IMAGE) is output
    output[3, 1] *= 2
    with pytest.raises(EngineError) as caught:
        check_embeddings(output, shape=(5, 3, 4), source="an engine", tower=Tower.IMAGE)
    assert caught.value.row == 3
    assert "1 of 15" in str(caught.value)


ORT_ERRORS = [
    value
    for value in vars(onnxruntime_pybind11_state).values()
    if isinstance(value, type) and issubclass(value, BaseException)
]


@pytest.mark.parametrize("kind", [*ORT_ERRORS, RuntimeError, ValueError, MemoryError])
def test_every_error_of_onnxruntime_is_mapped(tiny: Any, kind: type[Exception]) -> None:
    """Each exception class of onnxruntime comes out as EngineError, with the original as its cause."""

    class Failing:
        def run(self, *_: object) -> Any:
            raise kind("out of order")

    towers = _open_towers(tiny)
    towers._sessions = dict.fromkeys(Tower, Sessions(Failing(), (Failing(),)))  # type: ignore[arg-type]
    for call in (lambda: towers.encode_images(noise_images(1)), lambda: towers.encode_texts([_text()])):
        with pytest.raises(TwinspireError, match="out of order") as caught:
            call()
        assert isinstance(caught.value, EngineError)
        assert isinstance(caught.value.__cause__, kind)


def test_onnxruntime_has_errors_to_map() -> None:
    """The list that the test above walks is not empty."""
    assert len(ORT_ERRORS) >= 10


@pytest.mark.parametrize(
    "change",
    [
        {"output_form": OutputForm.MAX_OF_VECTORS},
        {"input": TensorSpec("pixel_values", "float32", (3, 16, 16))},
        {"output": TensorSpec("embedding", "float32", (32, 12))},
        {"output": TensorSpec("embedding", "float32", (1, 12)), "output_form": OutputForm.MAX_OF_VECTORS},
        {"output": TensorSpec("embedding", "float32", (32, 11)), "output_form": OutputForm.MAX_OF_VECTORS},
    ],
)
def test_towers_of_later_versions_are_refused(tiny: Any, change: dict[str, Any]) -> None:
    """A bundle can say what no runtime can compute or search yet; opening towers on it is a BundleError."""
    manifest = tiny.bundle.manifest
    towers = replace(manifest.towers, image=replace(manifest.towers.image, **change))
    bundle = Bundle(tiny.bundle.path, replace(manifest, towers=towers))
    for open_towers in (LocalTowers, lambda bundle: TritonTowers("127.0.0.1:1", bundle)):
        with pytest.raises(BundleError, match="image tower"):
            open_towers(bundle)


def test_images_need_not_be_square(tiny: Any, make_tiny: Callable[..., Any]) -> None:
    """A tower of 8 x 32 pixels gets images of that shape, from files to vectors; others are refused."""
    graph = tiny.model.image_graph()
    for axis, pixels in ((1, 8), (2, 32)):  # as many as the tiny tower's 16 x 16
        graph.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = pixels
    made = make_tiny(graphs={Tower.IMAGE: graph}).bundle
    wide = replace(made.image, height=8, width=32, resize=Resize.STRETCH, shortest_side=None, crop_rounding=None)
    image = replace(made.manifest.towers.image, settings=wide, input=image_input(8, 32))
    bundle = Bundle(made.path, replace(made.manifest, towers=replace(made.manifest.towers, image=image)))
    with Client.local(bundle, precision="fp32", provider="cpu", threads=1) as client:
        pixels = client.preprocess([noise_images(1, size=40)[0]] * 2)
        assert pixels.shape == (2, 8, 32, 3)
        _assert_close(client.towers.encode_images(pixels), tiny.model.encode_images(pixels))
        with pytest.raises(InputError, match=r"\(N, 8, 32, 3\)"):
            client.towers.encode_images(noise_images(1))
