"""A bundle's reranker on a real Triton: right scores, batches of many callers' pairs, and bad input sent straight."""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton
from typer.testing import CliRunner

from support.arrays import noise_images
from support.rerankers import NAME, drawn_pairs, expected_scores, with_reranker
from twinspire import AsyncClient, Client, LocalTowers, TritonTowers
from twinspire.bundle import Bundle, BundleWriter, Precision
from twinspire.cli.app import application
from twinspire.contract import padded
from twinspire.errors import ServerRefusedError
from twinspire.towers.local_reranker import BATCH
from twinspire_server.repository import Accelerator, Device, RepositoryRuntime, build_repository
from twinspire_server.repository.config import config_pbtxt, ready_check
from twinspire_server.repository.rerankers import container_reranker
from twinspire_server.repository.settings import ServingOptions
from twinspire_server.repository.spec import BundleCopy
from twinspire_server.repository.towers import ServedBundle
from twinspire_server.triton import TritonServer

MODEL = f"tiny_{NAME}"
TOLERANCE = 1e-6  # float32 against float64 over 768 pixels
DEADLINE_S = 60
TEXTS = ["a red cat", "", "the blue boat on the snow", "a large green house left of the dog"]


# What is built


def _config(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(), triton.ModelConfig())


def _parameters(config: Any) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


@pytest.mark.parametrize("runtime", RepositoryRuntime)
def test_the_reranker_is_a_model_beside_the_towers(rerank: Bundle, tmp_path: Path, runtime: RepositoryRuntime) -> None:
    """Both runtimes get a model of the contract's tensors that joins requests, with the space and the precision."""
    models = build_repository([rerank.path], tmp_path, precision="int8", runtime=runtime, threads=1)
    (model,) = [model for model in models if model.name == MODEL]
    config = _config(model.folder)
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (BATCH, True)
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [
        ("image", [16, 16, 3]),
        ("input_ids", [20]),
    ]
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("probability", [1])]
    facts = {"space": rerank.space, "precision": "int8", "reranker": NAME}
    assert facts.items() <= _parameters(config).items()
    assert "tower" not in _parameters(config)
    engine = model.folder / "1" / "model.onnx"
    if runtime is RepositoryRuntime.CONTAINER:
        assert config.backend == "onnxruntime"
        assert engine.read_bytes() == (rerank.path / f"{NAME}.int8.onnx").read_bytes()
    else:
        assert config.backend == "python"
        assert Bundle.open(model.folder / "1" / "bundle").manifest.rerankers == rerank.manifest.rerankers


def test_a_bundle_without_reranker_has_no_such_model(tiny: Any, tmp_path: Path) -> None:
    """The models of other bundles are what they were."""
    models = build_repository([tiny.bundle.path], tmp_path, precision="fp32")
    assert [model.name for model in models] == ["tiny_image", "tiny_text"]


def test_a_precision_that_the_reranker_lacks(tiny: Any, tmp_path: Path) -> None:
    """Beside int8 towers a reranker in fp32 alone is served in fp32, and the command says so."""
    bundle = with_reranker(tiny.bundle, tmp_path / "tiny", precisions=[Precision.FP32])
    arguments = ["build", str(bundle.path), "-o", str(tmp_path / "models"), "--precision", "int8", "--no-raw-inputs"]
    result = CliRunner().invoke(application(), arguments)
    assert result.exit_code == 0, result.output
    lines = {line.partition(":")[0].rpartition("/")[2]: line for line in result.output.splitlines()}
    assert f"version 1, fp32, space {bundle.space[:12]}" in lines[MODEL]
    assert "int8" in lines["tiny_text"]


def test_another_reranker_is_a_further_version(rerank: Bundle, tiny: Any, tmp_path: Path) -> None:
    """The same reranker keeps its version in either runtime; another engine is the next one, of this model alone."""
    for runtime in RepositoryRuntime:
        folder, options = tmp_path / runtime, {"precision": "fp32", "runtime": runtime, "threads": 1}
        for bundle, version in (
            (rerank, 1),
            (rerank, 1),
            (with_reranker(tiny.bundle, tmp_path / f"{runtime}2", shift=1), 2),
        ):
            models = {model.name: model.version for model in build_repository([bundle.path], folder, **options)}
            assert models[MODEL] == version
            assert models["tiny_image"] == 1


def test_a_reranker_of_a_later_version_is_left_out(
    rerank: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A reranker with other tensors than this version computes is not served, which a warning says; the towers are."""
    spec = (rerank.manifest.rerankers or {})[NAME]
    other = replace(spec, inputs=spec.inputs[:1])
    with BundleWriter(tmp_path / "tiny", base=rerank) as writer:
        writer.commit(replace(rerank.manifest.draft(), rerankers={NAME: other}), {})
    models = build_repository([tmp_path / "tiny"], tmp_path / "models", precision="fp32")
    assert [model.name for model in models] == ["tiny_image", "tiny_text"]
    assert "newer version" in caplog.text


@pytest.mark.parametrize("accelerator", [Accelerator.TENSORRT, Accelerator.CUDA])
def test_on_a_gpu_of_the_container_cuda_runs_it(rerank: Bundle, accelerator: Accelerator) -> None:
    """On a GPU the reranker has CUDA's provider, whatever runs the towers."""
    options = ServingOptions(runtime=RepositoryRuntime.CONTAINER, device=Device.GPU, accelerator=accelerator)
    served = ServedBundle(bundle=rerank, precision=Precision.FP32, options=options, copy=BundleCopy(rerank))
    (spec,) = container_reranker(served)
    config = text_format.Parse(config_pbtxt(spec), triton.ModelConfig())
    assert [engine.name for engine in config.optimization.execution_accelerators.gpu_execution_accelerator] == ["cuda"]
    assert config.instance_group[0].kind == triton.ModelInstanceGroup.KIND_GPU


# What is served


@dataclass(frozen=True)
class Served:
    """The bundle behind a real server; a batch of its reranker waits for up to 16 pairs."""

    server: TritonServer
    channel: Any
    bundle: Bundle

    def ask(self, arrays: dict[str, np.ndarray]) -> Future[np.ndarray]:
        """Send one request to the reranker, whatever it holds."""
        inputs = []
        for name, array in arrays.items():
            given = grpc.InferInput(name, array.shape, {"uint8": "UINT8", "int32": "INT32"}[array.dtype.name])
            given.set_data_from_numpy(array)
            inputs.append(given)
        answer: Future[np.ndarray] = Future()

        def done(result: Any, error: Exception | None) -> None:
            if error is None:
                answer.set_result(result.as_numpy("probability"))
            else:
                answer.set_exception(error)

        self.channel.async_infer(MODEL, inputs, done, client_timeout=DEADLINE_S)
        return answer

    def counts(self) -> tuple[int, int]:
        """Return the pairs and the batches that the reranker has computed, when the counts stand still."""
        counts = (-1, -1)
        while counts != (counts := self._counts()):
            time.sleep(0.1)
        return counts

    def _counts(self) -> tuple[int, int]:
        (model,) = self.channel.get_inference_statistics(MODEL).model_stats
        return int(model.inference_count), int(model.execution_count)


@pytest.fixture(scope="module")
def served(needs_triton: None, rerank: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve the bundle; its reranker's batches wait for pairs to come, so that a test knows that they are joined."""
    folder = tmp_path_factory.mktemp("rerankers")
    build_repository([rerank.path], folder / "models", precision="fp32", threads=1, description=True)
    config = folder / "models" / MODEL / "config.pbtxt"
    waiting = f"dynamic_batching {{ preferred_batch_size: {BATCH} max_queue_delay_microseconds: 200000"
    config.write_text(config.read_text().replace("dynamic_batching {", waiting))
    server = TritonServer(folder / "models", log_file=folder / "triton.log")
    with server, grpc.InferenceServerClient(server.grpc_url) as channel:
        yield Served(server, channel, rerank)


def _assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    difference = np.abs(found - expected).max()
    print(f"largest difference {difference:.2e}")
    assert difference <= TOLERANCE


def _rows(bundle: Bundle, images: np.ndarray, texts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {"image": images, "input_ids": padded(texts, bundle.text.pad_id, bundle.text.context_length)}


def test_twenty_pairs_have_the_scores_of_this_process(served: Served) -> None:
    """20 pairs in a call, texts of all lengths, have the scores of `LocalTowers` and of NumPy."""
    images, texts = drawn_pairs(served.bundle, 20)
    local = LocalTowers(served.bundle, precision="fp32", provider="cpu", threads=1)
    with TritonTowers(served.server.grpc_url, served.bundle) as towers:
        found = towers.score_pairs(images, texts)
    _assert_close(found, local.score_pairs(images, texts))
    _assert_close(found, expected_scores(served.bundle, images, texts))
    local.close()


def test_pairs_of_many_callers_are_joined(served: Served) -> None:
    """64 single pairs of as many threads, with texts of different lengths, are few batches with the right scores."""
    images, texts = drawn_pairs(served.bundle, 64, seed=1)
    assert len({text.size for text in texts}) > 10
    pairs, batches = served.counts()
    with TritonTowers(served.server.grpc_url, served.bundle) as towers, ThreadPoolExecutor(64) as threads:
        scores = threads.map(lambda at: towers.score_pairs(images[at : at + 1], texts[at : at + 1]), range(64))
        found = np.concatenate(list(scores))
    _assert_close(found, expected_scores(served.bundle, images, texts))
    more_pairs, more_batches = served.counts()
    print(f"{more_batches - batches} batches")
    assert more_pairs - pairs == 64
    assert more_batches - batches <= 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows | {"image": rows["image"][:, :15]}, "shape"),
        (lambda rows: rows | {"input_ids": rows["input_ids"][:, :19]}, "shape"),
        (lambda rows: rows | {"image": np.repeat(rows["image"], 2, axis=0)}, "batch"),
        (lambda rows: rows | {"image": rows["image"].astype(np.int32)}, "data-type|datatype"),
        (lambda rows: {"image": rows["image"]}, "inputs"),
        (lambda rows: {name: np.repeat(array, BATCH + 1, axis=0) for name, array in rows.items()}, "batch"),
        (lambda rows: rows | {"input_ids": np.full_like(rows["input_ids"], 99)}, "text"),
        (lambda rows: rows | {"input_ids": np.zeros_like(rows["input_ids"])}, "text"),
        (lambda rows: {name: array[:0] for name, array in rows.items()}, "size"),
    ],
    ids=["height", "length", "images", "dtype", "no text", "too many", "unknown ids", "padding", "no rows"],
)
def test_a_bad_request_harms_no_other(
    served: Served, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], message: str
) -> None:
    """What is no pair is refused with the reason; pairs that are sent with it are answered as ever."""
    images, texts = drawn_pairs(served.bundle, 4, seed=2)
    good = [served.ask(_rows(served.bundle, images[at : at + 1], texts[at : at + 1])) for at in range(2)]
    bad = served.ask(change(_rows(served.bundle, images[:1], texts[:1])))
    good += [served.ask(_rows(served.bundle, images[at : at + 1], texts[at : at + 1])) for at in range(2, 4)]
    with pytest.raises(grpc.InferenceServerException, match=f"(?i){message}"):
        bad.result(DEADLINE_S)
    found = np.concatenate([answer.result(DEADLINE_S) for answer in good])[:, 0]
    _assert_close(found, expected_scores(served.bundle, images, texts))


def test_its_ready_check_is_answered(served: Served) -> None:
    """The canary's request of one pair is answered."""
    check = ready_check(served.server.repository / MODEL)
    assert check is not None
    url = f"{served.server.http_url}/v2/models/{MODEL}/infer"
    headers = {**served.server.admin_headers, **check.headers}
    with urllib.request.urlopen(urllib.request.Request(url, check.body, headers), timeout=10) as answer:
        assert answer.status == 200


def test_a_client_without_a_bundle_scores_pairs(served: Served) -> None:
    """The server's description has the reranker, and its contract the model with both inputs."""
    images = list(noise_images(4))
    with Client.connect(served.server.grpc_url) as client, Client.local(served.bundle, precision="fp32") as local:
        _assert_close(client.score_pairs(images, TEXTS), local.score_pairs(images, TEXTS))
    given = grpc.InferInput("bundle", [1], "BYTES")
    given.set_data_from_numpy(np.array([b"tiny"], np.object_))
    (contract,) = served.channel.infer("twinspire", [given]).as_numpy("contract")
    model = json.loads(contract)["models"][MODEL]
    assert [tensor["name"] for tensor in model["inputs"]] == ["image", "input_ids"]
    assert [tensor["shape"] for tensor in model["outputs"]] == [[1]]


def test_async_clients_score_pairs(served: Served) -> None:
    """Calls of an event loop at once get the scores of their own pairs."""
    images = [noise_images(4, seed=seed) // (seed + 1) for seed in range(6)]

    async def score() -> list[np.ndarray]:
        async with await AsyncClient.connect(served.server.grpc_url, served.bundle) as client:
            return await asyncio.gather(*(client.score_pairs(list(part), TEXTS) for part in images))

    with Client.local(served.bundle, precision="fp32", provider="cpu") as local:
        for found, part in zip(asyncio.run(score()), images, strict=True):
            _assert_close(found, local.score_pairs(list(part), TEXTS))


def test_reranking_is_in_the_servers_metrics(served: Served) -> None:
    """Triton's page counts the answered requests of the reranker by its name."""
    with TritonTowers(served.server.grpc_url, served.bundle) as towers:
        towers.score_pairs(*drawn_pairs(served.bundle, 2))
    pattern = re.compile(rf'twinspire_server_requests_total{{.*"{MODEL}".*"ok".*}} (\S+)')
    ended = time.monotonic() + 10  # counted after the response was sent
    while True:
        page = urllib.request.urlopen(served.server.metrics_url, timeout=10).read().decode()
        match = pattern.search(page)
        assert match is not None
        if float(match[1]) > 0:
            break
        assert time.monotonic() < ended
        time.sleep(0.05)


def test_a_server_without_the_reranker_serves_the_towers(
    triton_server: TritonServer, rerank: Bundle, tiny: Any
) -> None:
    """A real server of the bundle without a reranker encodes, and refuses pairs at once with the remedy."""
    images, texts = drawn_pairs(rerank, 2)
    url = triton_server.grpc_url
    with TritonTowers(url, rerank) as towers, TritonTowers(url, tiny.bundle) as expected:
        for _ in range(2):  # also once the models have been seen
            began_s = time.monotonic()
            with pytest.raises(ServerRefusedError, match="build") as caught:
                towers.score_pairs(images, texts)
            assert time.monotonic() - began_s < 5
            assert caught.value.model == MODEL
            assert np.array_equal(towers.encode_images(images), expected.encode_images(images))


def test_the_fallback_scores_when_the_server_dies(served: Served) -> None:
    """After the end of the server calls are computed by the fallback."""
    images, texts = drawn_pairs(served.bundle, 6)
    expected = expected_scores(served.bundle, images, texts)
    fallback = LocalTowers(served.bundle, precision="fp32", provider="cpu", threads=1)
    with TritonTowers(served.server.grpc_url, served.bundle, fallback=fallback) as towers:
        _assert_close(towers.score_pairs(images, texts), expected)
        served.server.stop(kill=True)
        _assert_close(towers.score_pairs(images, texts), expected)
        assert towers.counters.local_calls == 1
