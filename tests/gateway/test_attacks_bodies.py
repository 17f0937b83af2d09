"""Bodies that mean harm, and what Schemathesis makes from the OpenAPI document, against a real uvicorn."""

from __future__ import annotations

import base64
import gzip
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.live_gateway import BODY, EMBEDDINGS, Gateway, serving
from twinspire import Client, Index, sample_bundle
from twinspire.ingest import add_images
from twinspire.stores import BundleReference
from twinspire_eval.scenes import Split, scene_set
from twinspire_server.gateway.settings import GatewaySettings

REQUESTS = int(os.environ.get("TWINSPIRE_FUZZ_REQUESTS", "150"))
"""About how many requests Schemathesis makes: `make fuzz-gateway` makes some 5,000."""
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway with small limits."""
    with serving(max_body=4.0, max_megapixels=4.0) as found:
        yield found


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    """A client of it."""
    with httpx.Client(base_url=gateway.url, timeout=60) as client:
        yield client
    assert gateway.app.state.embedder.pending == 0


DEEP = 300_000
BODIES = {
    "deep arrays": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep where a text belongs": b'{"model": "scenes", "input": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "not UTF-8": b'{"model": "scenes", "input": "\xff\xfe"}',
    "a lone surrogate": b'{"model": "scenes", "input": "\\ud800"}',
    "a lone surrogate in the model": b'{"model": "\\udfff", "input": "a"}',
    "a lone surrogate in a key": b'{"model": "scenes", "input": "a", "\\ud800": 1}',
    "NaN": b'{"model": "scenes", "input": "a", "dimensions": NaN}',
    "Infinity": b'{"model": "scenes", "input": [Infinity, -Infinity]}',
    "an overflowing number": b'{"model": "scenes", "input": "a", "dimensions": 1e999}',
    "a huge number": b'{"model": "scenes", "input": "a", "dimensions": ' + b"9" * 5000 + b"}",
    "a huge number of digits": b'{"model": "scenes", "input": ' + b"9" * 500_000 + b"}",
    "a negative number": b'{"model": "scenes", "input": "a", "dimensions": -9223372036854775809}',
    "the same key twice": b'{"model": "scenes", "model": {}, "input": "a"}',
    "a null byte": b'{"model": "sce\\u0000nes", "input": "a"}',
    "nothing": b"",
    "null": b"null",
    "a number": b"1",
    "half": b'{"model": "scenes", "input": "a',
    "a line of JSON too many": b'{"model": "scenes", "input": "a"}{}',
    "many keys": json.dumps({f"k{number}": number for number in range(50_000)}).encode(),
    "many keys that collide": json.dumps({str(number * (2**61 - 1)): 1 for number in range(20_000)}).encode(),
    "millions of values": b'{"model": "scenes", "input": [' + b"1," * 2_000_000 + b"1]}",
    "a form": b"model=scenes&input=a",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_malformed_bodies_are_the_clients_errors(http: httpx.Client, body: bytes) -> None:
    """Whatever a body holds, it ends in a 4xx in the dialect's form, in bounded time, and says no internals."""
    answer = http.post(EMBEDDINGS, content=body, headers=JSON)
    assert 400 <= answer.status_code < 500, answer.text[:300]
    error = answer.json()["error"]
    assert error["code"] != "internal_error"
    assert "Traceback" not in answer.text
    assert len(answer.content) < 10_000


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/xml",
        "application/x-www-form-urlencoded",
        "",
        "a" * 5000,
        "multipart/form-data",
        "application/json; charset=utf-16",
    ],
)
def test_other_content_types_are_the_clients_errors(http: httpx.Client, kind: str) -> None:
    """A body of another type than the route takes is not guessed at."""
    answer = http.post(EMBEDDINGS, content=b"<a/>", headers={"Content-Type": kind})
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "identity, gzip", "x"])
def test_compressed_bodies_are_415(http: httpx.Client, coding: str) -> None:
    """A body that unpacks to a thousand times its size is not unpacked."""
    answer = http.post(EMBEDDINGS, content=gzip.compress(b" " * 10**7), headers={**JSON, "Content-Encoding": coding})
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "compressed_body"


def test_10000_inputs_are_too_many(http: httpx.Client) -> None:
    """More inputs than a request may have are refused before one is computed, and say how many may be."""
    answer = http.post(EMBEDDINGS, json={"model": "scenes", "input": ["a"] * 10_000})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "too_many_inputs"
    assert "2048" in answer.json()["error"]["message"]


def test_a_full_queue_is_429_for_one_and_for_many(gateway: Gateway, http: httpx.Client) -> None:
    """Inputs that wait are bounded; one more is refused with Retry-After like a batch."""
    embedder = gateway.app.state.embedder
    embedder.pending += 4096
    try:
        for body in (BODY, {"model": "scenes", "input": ["a"] * 1000}):
            answer = http.post(EMBEDDINGS, json=body)
            assert answer.status_code == 429
            assert int(answer.headers["Retry-After"]) >= 1
    finally:
        embedder.pending -= 4096
    assert http.post(EMBEDDINGS, json=BODY).status_code == 200


def bomb(side: int) -> bytes:
    """Return a PNG of side x side pixels in a few kilobytes: `side`² grey pixels of one value."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    row = b"\0" * (side + 1)
    pixels = b"".join([packer.compress(row) for _ in range(side)]) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def image_answer(http: httpx.Client, image: bytes) -> httpx.Response:
    """Send an image as a NIM client does."""
    uri = "data:image/png;base64," + base64.b64encode(image).decode()
    return http.post(EMBEDDINGS, json={"model": "scenes", "input": [uri]})


def test_a_small_file_of_many_pixels_is_not_decoded(http: httpx.Client) -> None:
    """A PNG of 25 megapixels in 25 kB is refused by its header, the one within the limit is served."""
    packed = bomb(5000)
    assert len(packed) < 100_000
    answer = image_answer(http, packed)
    assert answer.status_code == 400
    assert "megapixels" in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "input[0]"
    assert image_answer(http, bomb(500)).status_code == 200


def test_urls_are_refused_unless_their_host_is_allowed(http: httpx.Client) -> None:
    """Without --allow-image-host a URL is an error that says what to send; with it, addresses inside stay closed."""

    def body(url: str) -> object:
        content = [{"type": "image_url", "image_url": {"url": url}}]
        return {"model": "scenes", "messages": [{"role": "user", "content": content}]}

    refused = http.post(EMBEDDINGS, json=body("http://localhost/a.png"))
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "url_not_allowed"
    with serving(allow_image_host=["localhost"]) as allowing:
        answer = allowing.post(body("http://localhost/a.png"))
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "url_not_fetched"
        assert allowing.post(body("http://127.0.0.1/a.png")).json()["error"]["code"] == "url_not_allowed"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/../../etc/passwd",
            "/..%2f..%2fetc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/page/..%2f..%2fapp.py",
            "//etc/passwd",
        ),
        *(
            "/page/../app.py",
            "/page/%2e%2e/app.py",
            "/page/....//app.py",
            "/page/..\\app.py",
            "/page/%00",
            "/page/index.html%00.js",
        ),
        *(
            "/page//etc/passwd",
            "/page/%2fetc%2fpasswd",
            "/page/" + "a" * 5000,
            "/v1/items/..%2f..%2fetc%2fpasswd/image",
        ),
    ],
)
def test_no_path_leads_to_a_file(gateway: Gateway, path: str) -> None:
    """Dots, encoded slashes, null bytes and long names find nothing and break nothing."""
    answer = gateway.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert int(answer[9:12]) in (400, 404, 405, 414, 422, 501), answer[:200]
    assert b"root:" not in answer
    assert b"import annotations" not in answer


def with_models_name(schema: Any) -> Any:
    """Return a schema in which `model` is the one that is served: else all requests would end at its name."""
    if isinstance(schema, list):
        return [with_models_name(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: with_models_name(value) for key, value in schema.items()}
    properties = changed.get("properties")
    if isinstance(properties, dict) and "model" in properties:
        properties["model"] = {"type": "string", "enum": ["scenes"]}
    return changed


@pytest.fixture(scope="module")
def gateway_with_index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with an index of pictures and texts."""
    folder = tmp_path_factory.mktemp("fuzzed")
    for number, scene in enumerate(scene_set(12, seed=3, split=Split.HELDOUT)):
        scene.draw().save(folder / f"{number}.jpg")
    with (
        Client.local(sample_bundle()) as client,
        Index.create(folder / "index", space=client.space, dim=client.dim, bundle=BundleReference("scenes")) as index,
    ):
        add_images(index, client, sorted(folder.glob("*.jpg")))
    with serving(GatewaySettings(index=str(folder / "index"))) as found:
        yield found


@pytest.mark.slow
@pytest.mark.timeout(3300)
def test_schemathesis_finds_no_server_error(gateway_with_index: Gateway, tmp_path: Path) -> None:
    """Requests made from the OpenAPI document, good and bad, never end in a 5xx."""
    gateway = gateway_with_index
    document = with_models_name(httpx.get(gateway.url + "/openapi.json").json())
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    operations = sum(len(path) for path in document["paths"].values())
    program = Path(sys.executable).with_name("schemathesis")
    command = (
        [str(program)]
        if program.exists()
        else [sys.executable, "-c", "import schemathesis.cli as cli; cli.schemathesis()"]
    )
    report = tmp_path / "report.xml"
    found = subprocess.run(
        [
            *command,
            "run",
            str(tmp_path / "openapi.json"),
            f"--url={gateway.url}",
            "--checks=not_a_server_error",
            f"--max-examples={max(5, 2 * REQUESTS // operations)}",
            f"--phases=examples,fuzzing{',coverage' if REQUESTS > 1000 else ''}",
            "--mode=all",
            "--continue-on-failure",
            "--report=junit",
            f"--report-junit-path={report}",
            "--no-color",
        ],
        capture_output=True,
        text=True,
        timeout=600 if REQUESTS <= 1000 else 3000,
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stdout[-5000:] + found.stderr[-2000:]
    samples = [
        sample
        for metric in gateway.app.state.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "twinspire_gateway_requests_total"
    ]
    counted = sum(sample.value for sample in samples)
    print(f"{counted:.0f} requests to {operations} operations")
    # An operation without parameters has a single request.
    assert counted >= max(3 * operations, REQUESTS // 2)
    assert not [sample.labels for sample in samples if sample.labels["status"].startswith("5")]
