"""Raw inputs served by a real Triton: files and plain texts get the client's vectors, or its errors, each its own."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import wave
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from support.arrays import noise_images, png
from support.data import ODD_IMAGES, PHOTOS
from twinspire import Client
from twinspire.bundle import Bundle, BundleDescription, BundleWriter, DecodeMode, Tower
from twinspire.errors import InputError, ServerError, ServerRefusedError
from twinspire.images import Preprocessor
from twinspire.towers.triton import describe_server
from twinspire_server.repository import build_repository
from twinspire_server.repository.config import read_config
from twinspire_server.repository.served_probes import PROBES, ServedProbes
from twinspire_server.triton import TritonServer, launch

TOGETHER = 8
"""How many requests the models of `waiting` wait for, so that a test knows what is in a batch."""
TOLERANCE = 1e-6  # batches of other sizes, float32
DEADLINE_S = 60
TEXTS = ["a red cat", "", "  The LARGE boat\n", "dog " * 60, "ein Hund 🐕", "雪の上の家", "of \x00 snow"]


class RawClient:
    """A caller with nothing but Triton's generated stubs."""

    def __init__(self, url: str) -> None:
        self._channel = grpc.insecure_channel(url, options=[("grpc.max_send_message_length", -1)])
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self.close = self._channel.close

    def encode(self, model: str, name: str, items: Sequence[bytes]) -> np.ndarray:
        """Send one request of n items; return (n, D)."""
        request = pb.ModelInferRequest(model_name=model)
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[len(items), 1])
        tensor.contents.bytes_contents.extend(items)
        response = self.stub.ModelInfer(request, timeout=DEADLINE_S)
        return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(response.outputs[0].shape)

    def failure(self, model: str, name: str, items: Sequence[bytes]) -> tuple[str, str]:
        """Send a request that fails; return the status and the message."""
        with pytest.raises(grpc.RpcError) as caught:
            self.encode(model, name, items)
        return caught.value.code().name, caught.value.details()

    def executions(self, model: str) -> int:
        """Count the batches that a model has run."""
        (found,) = self.stub.ModelStatistics(pb.ModelStatisticsRequest(name=model), timeout=DEADLINE_S).model_stats
        return int(found.execution_count)


@pytest.fixture(scope="module")
def raw(triton_server: TritonServer) -> Iterator[RawClient]:
    """Call the server of the tiny bundle."""
    with closing(RawClient(triton_server.grpc_url)) as client:
        yield client


@pytest.fixture(scope="module")
def client(triton_server: TritonServer) -> Iterator[Client]:
    """Connect without a bundle."""
    with Client.connect(triton_server.grpc_url) as opened:
        yield opened


def _assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    difference = np.abs(found - expected).max()
    assert difference <= TOLERANCE, f"largest difference {difference:.2e}"


def test_photos_get_the_clients_vectors(raw: RawClient, client: Client) -> None:
    """JPEG files in one request give what `Client` gives, which decodes them itself."""
    files = sorted(PHOTOS.glob("*.jpg"))[:32]
    found = raw.encode("tiny_image_bytes", "image_bytes", [file.read_bytes() for file in files])
    _assert_close(found, client.encode_images(files))
    assert len({row.tobytes() for row in found}) == len(files)


def _odd_images() -> list[Path]:
    return sorted(file for file in ODD_IMAGES.iterdir() if not file.name.startswith(("LICENSE", "README")))


@pytest.mark.parametrize("file", _odd_images(), ids=lambda file: file.name)
def test_odd_images_get_the_clients_vector_or_its_error(raw: RawClient, client: Client, file: Path) -> None:
    """An image turned by EXIF, of another mode, truncated or too large is treated exactly as by `Client`."""
    content = file.read_bytes()
    expected, skipped = client.encode_images([content], on_error="skip")
    if not skipped:
        _assert_close(raw.encode("tiny_image_bytes", "image_bytes", [content]), expected)
        return
    status, message = raw.failure("tiny_image_bytes", "image_bytes", [content])
    assert status == "INVALID_ARGUMENT"
    assert message.endswith(str(skipped[0]))


def test_texts_get_the_clients_vectors(raw: RawClient, client: Client) -> None:
    """Empty, long and Chinese texts in one request give what `Client` gives."""
    _assert_close(
        raw.encode("tiny_text_raw", "text", [text.encode() for text in TEXTS]),
        client.encode_texts(TEXTS),
    )


@pytest.mark.parametrize(
    ("model", "name", "content", "word"),
    [
        ("image_bytes", "image_bytes", b"", "empty"),
        ("image_bytes", "image_bytes", b"GET / HTTP/1.1", "format"),
        ("image_bytes", "image_bytes", png(noise_images(1)[0]).ljust(65 * 2**20, b"\0"), "MiB"),
        ("text_raw", "text", b"caf\xe9", "UTF-8"),
        ("text_raw", "text", b"\xed\xa0\x80", "UTF-8"),  # half of a pair of surrogates
        ("text_raw", "text", b"a" * (2**20 + 1), "bytes"),
    ],
    ids=["empty", "no image", "too large", "latin 1", "surrogate", "too long"],
)
def test_an_item_that_cannot_be_used_is_named(raw: RawClient, model: str, name: str, content: bytes, word: str) -> None:
    """The error is an invalid argument that names the item's position in its request and the cause."""
    good = {"image_bytes": png(noise_images(1)[0]), "text_raw": b"snow"}[model]
    status, message = raw.failure(f"tiny_{model}", name, [good, content, good])
    assert status == "INVALID_ARGUMENT"
    assert " 1 (bytes): " in message
    assert word in message


@pytest.mark.parametrize(("model", "name"), [("image_bytes", "image_bytes"), ("text_raw", "text")])
def test_more_items_than_a_batch_are_refused(raw: RawClient, model: str, name: str) -> None:
    """A request above the largest batch is an invalid argument that names the limit."""
    limit = {"image_bytes": 32, "text_raw": 64}[model]
    status, message = raw.failure(f"tiny_{model}", name, [b"a"] * (limit + 1))
    assert (status, str(limit) in message) == ("INVALID_ARGUMENT", True)


@dataclass(frozen=True)
class Waiting:
    """A server of two bundles whose models wait for eight requests."""

    server: TritonServer
    raw: RawClient
    heard: Bundle

    def encode_together(self, model: str, name: str, contents: Sequence[bytes], *, called: Sequence[str]) -> list[Any]:
        """Send requests of one item, see that each model in `called` ran one batch, and give the answers or errors."""
        before = {other: self.raw.executions(other) for other in called}

        def ask(content: bytes) -> Any:
            try:
                return self.raw.encode(model, name, [content])
            except grpc.RpcError as error:
                return error

        with ThreadPoolExecutor(TOGETHER) as pool:
            answers = list(pool.map(ask, contents))
        assert {other: self.raw.executions(other) - count for other, count in before.items()} == dict.fromkeys(
            called, 1
        )
        return answers


@pytest.fixture(scope="module")
def waiting(
    needs_triton: None, tiny: Any, heard: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Waiting]:
    """Serve the tiny bundle and one with an audio tower; the models of the first form batches of eight requests."""
    folder = tmp_path_factory.mktemp("waiting") / "models"
    build_repository([heard.path], folder, precision="fp32", threads=1, raw_inputs=True, description=True)
    built = build_repository([tiny.bundle.path], folder, threads=1, raw_inputs=True, description=True)
    for config in [model.folder / "config.pbtxt" for model in built if model.name.startswith("tiny")]:
        batching = f"dynamic_batching {{ preferred_batch_size: {TOGETHER} max_queue_delay_microseconds: 1000000"
        config.write_text(config.read_text().replace("dynamic_batching {", batching))
    with TritonServer(folder) as server, closing(RawClient(server.grpc_url)) as raw:
        yield Waiting(server, raw, heard)


@pytest.fixture(scope="module")
def heard(make_tiny_at: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Make a bundle named `heard` with a text and an audio tower, in a space of its own."""
    folder = tmp_path_factory.mktemp("heard")
    made = make_tiny_at(folder / "tiny", towers=(Tower.TEXT, Tower.AUDIO), seed=7)
    with BundleWriter(folder / "heard", base=made.bundle) as writer:
        return writer.commit(replace(made.bundle.manifest.draft(), name="heard"), {})


@pytest.mark.parametrize("bad", [[], [5], [0, 7]])
def test_a_bad_image_fails_alone_in_its_batch(waiting: Waiting, tiny: Any, bad: list[int]) -> None:
    """Of eight files that are decoded and encoded as one batch, the bad ones alone are errors, in any place."""
    images = noise_images(TOGETHER)
    contents = [png(image) for image in images]
    for place in bad:
        contents[place] = contents[place][:-40]
    called = ["tiny_decode", *([] if bad else ["tiny_image"])]
    found = waiting.encode_together("tiny_image_bytes", "image_bytes", contents, called=called)
    expected = tiny.int8.encode_images(images)
    for place, answer in enumerate(found):
        if place in bad:
            assert "image 0 (bytes): truncated" in answer.details()
        else:
            _assert_close(answer, expected[place : place + 1])


def test_a_bad_text_fails_alone_in_its_batch(waiting: Waiting, tiny: Any) -> None:
    """Of eight texts that are tokenized as one batch, the one that is no UTF-8 alone is an error."""
    words = [b"red", b"cat", b"dog", b"\xff", b"boat", b"snow", b"left", b"a"]
    found = waiting.encode_together("tiny_text_raw", "text", words, called=["tiny_tokenize"])
    error = found.pop(3)
    assert "text 0 (bytes): not UTF-8" in error.details()
    with Client.connect(waiting.server.grpc_url, tiny.bundle) as client:
        good = client.encode_texts([word.decode() for word in words if word != b"\xff"])
    _assert_close(np.concatenate(found), good)


def test_sounds_get_the_clients_vectors(waiting: Waiting) -> None:
    """WAV files give what `Client` gives; a file that is no sound is named."""
    sounds = [np.random.default_rng(seed).integers(-20000, 20000, 4000, np.int16) for seed in range(3)]
    files = [_wav(samples) for samples in sounds]
    with Client.connect(waiting.server.grpc_url, name="heard") as client:
        _assert_close(waiting.raw.encode("heard_audio_bytes", "audio_bytes", files), client.encode_audio(files))
    status, message = waiting.raw.failure("heard_audio_bytes", "audio_bytes", [files[0], b"no sound"])
    assert (status, "sound 1 (bytes)" in message) == ("INVALID_ARGUMENT", True)


def _wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "NONE"))
        sound.writeframes(samples.tobytes())
    return file.getvalue()


# The description


def test_a_client_needs_no_bundle(triton_server: TritonServer, client: Client, tiny: Any) -> None:
    """Without a bundle the client has the served manifest and tokenizer, and gives the same vectors as with it."""
    assert client.bundle.manifest == tiny.bundle.manifest
    assert client.bundle.tokenizer_json() == tiny.bundle.tokenizer_path.read_bytes()
    assert client.bundle.location == triton_server.grpc_url
    assert not isinstance(client.bundle, Bundle)
    with Client.connect(triton_server.grpc_url, tiny.bundle) as known:
        assert np.array_equal(client.encode_texts(TEXTS), known.encode_texts(TEXTS))
        images = list(noise_images(3, size=40))
        assert np.array_equal(client.encode_images(images), known.encode_images(images))


def test_one_of_several_bundles_is_chosen_by_name_or_space(waiting: Waiting, tiny: Any) -> None:
    """A server of two bundles lists them where neither is named; a name or a space chooses."""
    url = waiting.server.grpc_url
    with pytest.raises(InputError, match="heard, tiny") as caught:
        Client.connect(url)
    assert caught.value.option == "name"
    with pytest.raises(InputError, match="heard, tiny"):
        describe_server(url, name="other")
    assert describe_server(url, name="tiny").space == tiny.bundle.space
    assert describe_server(url, space=waiting.heard.space).name == "heard"
    with pytest.raises(InputError, match="space"):
        describe_server(url, name="tiny", space=waiting.heard.space)


def _describe(raw: RawClient, name: bytes, *outputs: str) -> dict[str, list[bytes]]:
    request = pb.ModelInferRequest(model_name="twinspire")
    request.inputs.add(name="bundle", datatype="BYTES", shape=[1]).contents.bytes_contents.append(name)
    for output in outputs:
        request.outputs.add(name=output)
    response = raw.stub.ModelInfer(request, timeout=DEADLINE_S)
    found = {}
    for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
        strings, rest = [], content
        while rest:
            end = 4 + int.from_bytes(rest[:4], "little")
            strings.append(rest[4:end])
            rest = rest[end:]
        found[output.name] = strings
    return found


def test_the_contract_names_the_models_that_clients_call(waiting: Waiting) -> None:
    """Any language reads names and spaces, and the tensors of each model; the running models have the same."""
    found = _describe(waiting.raw, b"heard", "names", "spaces", "contract")
    assert found["names"] == [b"heard", b"tiny"]
    assert found["spaces"][0] == waiting.heard.space.encode()
    contract = json.loads(found["contract"][0])
    assert (contract["space"], contract["dim"]) == (waiting.heard.space, waiting.heard.dim)
    assert set(contract["models"]) == {"heard_text", "heard_audio", "heard_text_raw", "heard_audio_bytes"}
    for name, model in contract["models"].items():
        served = waiting.raw.stub.ModelMetadata(pb.ModelMetadataRequest(name=name), timeout=DEADLINE_S)
        for tensors, told in ((served.inputs, model["inputs"]), (served.outputs, model["outputs"])):
            assert [(t.name, t.datatype, list(t.shape)[1:]) for t in tensors] == [
                (t["name"], t["datatype"], t["shape"]) for t in told
            ]


@pytest.mark.parametrize("name", [b"", b"nobody", b"\xff", b"n" * 10**6])
def test_an_unknown_bundle_is_an_error_that_lists_the_known(waiting: Waiting, name: bytes) -> None:
    """What is no served name is an invalid argument; the answer is short and the model goes on."""
    with pytest.raises(grpc.RpcError) as caught:
        _describe(waiting.raw, name, "manifest")
    assert caught.value.code().name == "INVALID_ARGUMENT"
    assert len(caught.value.details()) < 1000
    assert _describe(waiting.raw, b"", "names")["names"] == [b"heard", b"tiny"]


def test_a_damaged_description_is_refused(waiting: Waiting, tiny: Any, tmp_path: Path) -> None:
    """A tokenizer other than the manifest's, a manifest of another space and one cut off are errors, and so is none."""
    folder = tmp_path / "models"
    (model,) = (shutil.copytree(waiting.server.repository / "twinspire", folder / "twinspire"),)
    bundles = Path(model) / "1" / "bundles"
    shutil.copytree(bundles / "tiny", bundles / "swapped")
    shutil.copytree(bundles / "tiny", bundles / "cut")
    (bundles / "tiny" / "tokenizer.json").write_bytes(b"{}")
    with ExitStack() as stack:
        server = stack.enter_context(TritonServer(folder))
        for name in ("tiny", "swapped"):
            with pytest.raises(ServerError, match="damaged"):
                describe_server(server.grpc_url, name=name)
        with pytest.raises(ServerRefusedError):  # described, and not served
            Client.connect(server.grpc_url, name="heard")


def test_a_build_without_raw_inputs_removes_them(tiny: Any, tmp_path: Path) -> None:
    """Models for raw inputs of an earlier build are gone, and the description names the towers alone."""
    build_repository([tiny.bundle.path], tmp_path / "models", raw_inputs=True, description=True)
    assert (tmp_path / "models" / "tiny_decode").is_dir()
    build_repository([tiny.bundle.path], tmp_path / "models", description=True)
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"tiny_image", "tiny_text", "twinspire"}
    contract = json.loads((tmp_path / "models/twinspire/1/bundles/tiny/contract.json").read_text())
    assert set(contract["models"]) == {"tiny_image", "tiny_text"}


def test_bundles_whose_models_are_gone_are_not_described(tiny: Any, heard: Bundle, tmp_path: Path) -> None:
    """Building one bundle keeps the description of another as long as its models are there."""
    build_repository([heard.path], tmp_path, precision="fp32", description=True)
    build_repository([tiny.bundle.path], tmp_path, description=True)
    described = tmp_path / "twinspire" / "1" / "bundles"
    assert sorted(path.name for path in described.iterdir()) == ["heard", "tiny"]
    for tower in ("text", "audio"):
        shutil.rmtree(tmp_path / f"heard_{tower}")
    build_repository([tiny.bundle.path], tmp_path, description=True)
    assert [path.name for path in described.iterdir()] == ["tiny"]


def test_a_description_has_no_engines(client: Client) -> None:
    """What a server describes is a `BundleDescription`: settings and tokenizer, without a path or engines."""
    assert type(client.bundle) is BundleDescription
    assert not hasattr(client.bundle, "engine")
    assert client.bundle.name in repr(client.bundle)


# HTTP


def test_http_is_not_opened_on_the_wheels_triton(triton_server: TritonServer, tiny: Any) -> None:
    """`open_http` on 2.51 is refused before anything starts."""
    if tuple(map(int, triton_server.version.split(".")[:2])) >= (2, 73):
        pytest.skip("this Triton has no known faults of HTTP")
    server = TritonServer(triton_server.repository, open_http=True)
    with pytest.raises(InputError, match="gateway"):
        server.start()
    assert not server.running


@pytest.fixture(scope="module")
def open_server(triton_server: TritonServer) -> Iterator[TritonServer]:
    """Open HTTP on whatever Triton is here: what the flags do, without the check of the version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "check_open_http", lambda version, origin: None)
        with TritonServer(triton_server.repository, open_http=True) as server:
            yield server


def _curl(*arguments: str, given: bytes | None = None) -> tuple[int, Any]:
    """Run curl; return the status and the parsed body."""
    command = ["curl", "--silent", "--max-time", "30", "--write-out", "\\n%{http_code}", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, check=True, timeout=DEADLINE_S)
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), json.loads(body or b"null")


def test_curl_gets_a_texts_embedding(open_server: TritonServer, client: Client) -> None:
    """Where HTTP is open, a line of JSON gives what `Client` gives."""
    document = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["a red cat", "雪"]}]}
    url = f"{open_server.http_url}/v2/models/tiny_text_raw/infer"
    status, answer = _curl(url, "--json", json.dumps(document))
    assert status == 200
    (output,) = answer["outputs"]
    found = np.array(output["data"], np.float32).reshape(output["shape"])
    _assert_close(found, client.encode_texts(["a red cat", "雪"]))


def test_curl_gets_a_files_embedding(open_server: TritonServer, client: Client) -> None:
    """A file goes behind a header of JSON, as Triton's binary extension has it."""
    file = next(PHOTOS.glob("*.jpg")).read_bytes()
    given = {"name": "image_bytes", "datatype": "BYTES", "shape": [1, 1]}
    header = json.dumps({"inputs": [{**given, "parameters": {"binary_data_size": len(file) + 4}}]}).encode()
    status, answer = _curl(
        f"{open_server.http_url}/v2/models/tiny_image_bytes/infer",
        *("--data-binary", "@-", "--header", f"Inference-Header-Content-Length: {len(header)}"),
        given=header + len(file).to_bytes(4, "little") + file,
    )
    assert status == 200
    (output,) = answer["outputs"]
    _assert_close(np.array(output["data"], np.float32).reshape(output["shape"]), client.encode_images([file]))


@pytest.mark.parametrize("path", ["models/tiny_text_raw/config", "models/tiny_text_raw/stats", "logging"])
def test_open_http_leaves_the_rest_closed(open_server: TritonServer, path: str) -> None:
    """Configs, statistics and logging still need the key."""
    assert _curl(f"{open_server.http_url}/v2/{path}")[0] == 403


def _jpeg(seed: int = 0) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (200, 260, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def test_a_repository_of_scaled_decoding(needs_triton: None, tiny: Any, tmp_path: Path) -> None:
    """The vectors of encoded images are those of a client with `decode="scaled"`, and the canary finds no fault."""
    build_repository([tiny.bundle.path], tmp_path, threads=1, raw_inputs=True, decode="scaled", description=True)
    with TritonServer(tmp_path) as server, closing(RawClient(server.grpc_url)) as raw:
        found = raw.encode("tiny_image_bytes", "image_bytes", [_jpeg()])
        with Client.connect(server.grpc_url, decode="scaled") as client:
            scaled = client.encode_images([_jpeg()])
        with Client.connect(server.grpc_url) as client:
            exact = client.encode_images([_jpeg()])
        assert (read_config(tmp_path / "tiny_decode").parameters["decode"].string_value) == "scaled"
    assert np.abs(found - scaled).max() <= TOLERANCE
    assert np.abs(found - exact).max() > TOLERANCE


def test_probes_of_scaled_decoding(tiny: Any, tmp_path: Path) -> None:
    """The inputs that the canary expects of encoded probes are those of the mode that the repository was built with."""
    rows = {}
    for decode in DecodeMode:
        (image, *_) = build_repository([tiny.bundle.path], tmp_path / decode, raw_inputs=True, decode=decode)
        probes = ServedProbes.load(image.folder / str(image.version) / PROBES)
        np.testing.assert_array_equal(
            probes.raw_inputs, Preprocessor(tiny.bundle.image, decode=decode).many(probes.raw)
        )
        rows[decode] = probes.raw_inputs
    assert (rows[DecodeMode.EXACT] != rows[DecodeMode.SCALED]).any()


@pytest.mark.parametrize(
    ("options", "word"), [({"decode": "fast", "raw_inputs": True}, "scaled"), ({"decode": "scaled"}, "raw")]
)
def test_decode_modes_that_cannot_be_built(tiny: Any, tmp_path: Path, options: Any, word: str) -> None:
    """An unknown mode, and one without models that decode, are an InputError of that option; nothing is written."""
    with pytest.raises(InputError, match=word) as caught:
        build_repository([tiny.bundle.path], tmp_path / "models", **options)
    assert caught.value.option == "decode"
    assert not (tmp_path / "models").exists()
