"""Gateways of models of other kinds: with sounds, with one tower, with shorter or with several vectors; aliases."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from support.clap import encoded, sounds
from support.gateway import served
from twinspire import Client
from twinspire.bundle import Tower
from twinspire.index import BundleReference, Index
from twinspire.ingest import add_texts
from twinspire.migration import migrate
from twinspire_server.gateway.settings import GatewaySettings

Running = Callable[..., AbstractContextManager[str]]
PICTURE = {"input": ["data:image/png;base64,AAAA"], "modality": "image"}


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """Change bundle.json, which no other file has a digest of."""
    file = bundle / "bundle.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    edit(document)
    file.write_text(json.dumps(document), encoding="utf-8")
    return bundle


def refused(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post a body that is refused with 400; return OpenAI's error."""
    answer = httpx.post(url + path, json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.mark.slow
def test_sounds(run_gateway: Running, make_tiny: Callable[..., Any]) -> None:
    """A model of sounds embeds them with Infinity's modality; pictures and broken sounds are refused by their place."""
    heard = make_tiny("heard", towers=(Tower.TEXT, Tower.AUDIO))
    files = [encoded(sound, 8_000, "WAV", "PCM_16") for sound in list(sounds(8_000, 1.0).values())[:2]]
    uris = [f"data:audio/wav;base64,{base64.b64encode(file).decode()}" for file in files]
    with Client.local(heard.bundle) as client, run_gateway("--bundle", heard.bundle.path) as url:
        answer = httpx.post(f"{url}/embeddings", json={"input": uris, "modality": "audio"}, timeout=60)
        rows = [one["embedding"] for one in answer.raise_for_status().json()["data"]]
        assert np.array_equal(np.array(rows, np.float32), client.encode_audio(files))
        broken = refused(url, "/embeddings", {"input": [uris[0], "data:audio/wav;base64,AAAA"], "modality": "audio"})
        assert (broken["param"], broken["code"]) == ("input[1]", "invalid_audio")
        fetched = refused(url, "/embeddings", {"input": "https://example.com/a.wav", "modality": "audio"})
        assert (fetched["param"], fetched["code"]) == ("input", "url_not_allowed")
        picture = refused(url, "/embeddings", PICTURE)
        assert (picture["param"], picture["code"]) == ("input[0]", "kind_not_supported")
        assert httpx.get(f"{url}/models").json()["data"][0]["capabilities"] == ["audio_embed", "embed"]


@pytest.mark.slow
def test_shorter_vectors(run_gateway: Running, make_tiny: Callable[..., Any]) -> None:
    """Vectors are cut to a length that the model allows, and normalised again; a model without pictures has none."""
    tiny = make_tiny(towers=(Tower.TEXT,))
    bundle = edit_manifest(tiny.bundle.path, lambda document: document.update(dims=[4, 8, 12]))
    with Client.local(bundle) as client, run_gateway("--bundle", bundle) as url:
        whole = client.encode_texts(["red cat", "boat"])
        for length in (4, 8, 12):
            body = {"model": "tiny", "input": ["red cat", "boat"], "dimensions": length}
            data = httpx.post(f"{url}/v1/embeddings", json=body, timeout=60).raise_for_status().json()["data"]
            cut = whole[:, :length] / np.linalg.norm(whole[:, :length], axis=1, keepdims=True)
            assert np.allclose([one["embedding"] for one in data], cut, atol=1e-6)
        assert refused(url, "/v1/embeddings", body | {"dimensions": 5})["code"] == "dimensions_not_allowed"
        assert refused(url, "/embeddings", PICTURE)["code"] == "kind_not_supported"
        packed = httpx.post(f"{url}/v2/embed", json={"model": "tiny", "texts": ["a"], "embedding_types": ["binary"]})
        assert packed.status_code == 400
        assert "multiple of 8" in packed.json()["message"]


@pytest.mark.slow
def test_several_vectors(run_gateway: Running, make_tiny: Callable[..., Any], tiny: Any) -> None:
    """A model with several vectors an image embeds texts; pictures are refused, since a response has one for each."""
    graph = tiny.model.image_graph("single")
    graph.graph.node.append(helper.make_node("Unsqueeze", ["single", "axis"], ["row"]))
    graph.graph.node.append(helper.make_node("Concat", ["row", "row"], ["embedding"], axis=1))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    del graph.graph.output[:]
    shape = ["batch", 2, 12]
    graph.graph.output.append(helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, shape))

    def several(document: dict[str, Any]) -> None:
        document["towers"]["image"]["output"]["shape"] = [2, 12]
        document["towers"]["image"]["output_form"] = "max_of_vectors"

    bundle = edit_manifest(make_tiny("several", graphs={Tower.IMAGE: graph}).bundle.path, several)
    with run_gateway("--bundle", bundle) as url:
        error = refused(url, "/embeddings", PICTURE)
        assert (error["param"], error["code"]) == ("input[0]", "several_vectors")
        httpx.post(f"{url}/embeddings", json={"input": "red cat"}, timeout=60).raise_for_status()


def test_aliases(run_gateway: Running, tiny: Any) -> None:
    """A model is called by its aliases too, such as the names that immich knows."""
    with run_gateway("--bundle", tiny.bundle.path, "--alias", "ViT-B-32__openai", "--alias", "other/name") as url:
        assert [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]] == [
            "tiny",
            "ViT-B-32__openai",
            "other/name",
        ]
        assert httpx.get(f"{url}/v1/models/other/name").json()["id"] == "other/name"
        entries = json.dumps({"clip": {"textual": {"modelName": "ViT-B-32__openai"}}})
        httpx.post(f"{url}/predict", data={"entries": entries, "text": "red cat"}).raise_for_status()
        answer = httpx.post(f"{url}/v1/embeddings", json={"model": "other/name", "input": "a"})
        assert answer.raise_for_status().json()["model"] == "other/name"


def test_an_index_of_shorter_vectors(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    """An index cut to a length is searched with vectors of that length, and of another one once it has migrated."""
    bundle = make_tiny(dims=(4, 8, 12)).bundle
    (tmp_path / "lines.txt").write_text("a red cat\na blue boat\n", encoding="utf-8")
    path = tmp_path / "index"
    reference = BundleReference("tiny", str(bundle.path))

    def found(url: str) -> list[tuple[str, float]]:
        answer = httpx.post(f"{url}/v1/search", json={"text": "a red cat", "mode": "vector"}, timeout=60)
        return [(hit["caption"], round(hit["score"], 4)) for hit in answer.raise_for_status().json()["hits"]]

    with (
        Client.local(bundle, dim=8) as client,
        Index.create(path, space=client.space, dim=8, bundle=reference) as index,
    ):
        add_texts(index, client, [tmp_path / "lines.txt"])
        cosines = {dim: float(np.prod(_of(client, dim), axis=0).sum()) for dim in (4, 8)}
    with served(GatewaySettings(index=str(path))) as url:
        assert found(url) == [("a red cat", 1.0), ("a blue boat", round(cosines[8], 4))]
        answer = httpx.post(f"{url}/v1/embeddings", json={"input": "a red cat", "model": "tiny"}, timeout=60)
        assert len(answer.raise_for_status().json()["data"][0]["embedding"]) == 12
        with Client.local(bundle, dim=4) as client:
            assert migrate(path, client, bundle=reference).switched
        assert found(url) == [("a red cat", 1.0), ("a blue boat", round(cosines[4], 4))]


def _of(client: Client, dim: int) -> np.ndarray:
    return client.cut_to(dim).encode_texts(["a red cat", "a blue boat"])
