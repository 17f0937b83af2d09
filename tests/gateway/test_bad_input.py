"""Bad input to every dialect, against a real gateway: status, and error in the dialect's own form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

MODEL = "scenes"
LONG = "red car " * 100
NO_IMAGE, NO_BASE64 = "data:image/png;base64,AAAA", "data:image/png;base64,%%%%"
URL = "https://example.com/a.png"
Error = tuple[str, str | None]  # the message, and the code where the form has one


def openai_error(document: Any) -> Error:
    """Read `{"error": {"message", "type", "param", "code"}}`."""
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    return document["error"]["message"], document["error"]["code"]


def text_at(key: str, *others: str) -> Callable[[Any], Error]:
    """Read a form that has the message as a text."""

    def read(document: Any) -> Error:
        assert set(document) == {key, *others}
        assert isinstance(document[key], str)
        return document[key], None

    return read


@dataclass(frozen=True)
class Form:
    """How a dialect's clients write texts and pictures, and read errors."""

    path: str
    texts: Callable[[Any], dict[str, Any]]
    image: Callable[[str], dict[str, Any]]
    text_place: str
    image_place: str
    error: Callable[[Any], Error]
    dimensions: str | None = "dimensions"
    strict: dict[str, Any] | None = None
    names_model: bool = True


FORMS = {
    "openai": Form(
        "/v1/embeddings",
        lambda texts: {"input": texts},
        lambda uri: {"input": ["a", uri]},
        "input", "input", openai_error, strict={"truncate": "NONE"},
    ),
    "vllm": Form(
        "/v1/embeddings",
        lambda texts: {"messages": [[{"role": "user", "content": text}] for text in texts]},
        lambda uri: {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}]}]},
        "messages", "messages[0].content[0]", openai_error, strict={},
    ),
    "nim": Form(
        "/v1/embeddings",
        lambda texts: {"input": texts, "input_type": "query"},
        lambda uri: {"input": ["a", uri], "input_type": "query"},
        "input", "input[1]", openai_error, strict={},
    ),
    "jina": Form(
        "/v1/embeddings",
        lambda texts: {"input": texts, "task": "retrieval.query"},
        lambda uri: {"input": [{"text": "a"}, {"image": uri}]},
        "input", "input[1].image", text_at("detail"), strict={},
    ),
    "infinity": Form(
        "/embeddings",
        lambda texts: {"input": texts},
        lambda uri: {"input": [uri], "modality": "image"},
        "input", "input[0]", openai_error,
    ),
    "cohere": Form(
        "/v2/embed",
        lambda texts: {"texts": texts},
        lambda uri: {"images": [uri]},
        "texts", "images[0]", text_at("message", "id"), "output_dimension", {"truncate": "NONE"},
    ),
    "voyage": Form(
        "/v1/multimodalembeddings",
        lambda texts: {"inputs": [{"content": [{"type": "text", "text": text}]} for text in texts]},
        lambda uri: {"inputs": [{"content": [{"type": "image_base64", "image_base64": uri}]}]},
        "inputs", "inputs[0].content[0]", text_at("detail"), "output_dimension", {"truncation": False},
    ),
    "weaviate": Form(
        "/vectorize",
        lambda texts: {"texts": texts},
        lambda uri: {"images": [uri]},
        "texts", "images[0]", text_at("error"), None, None, False,
    ),
}  # fmt: skip

ALL = pytest.mark.parametrize("form", list(FORMS.values()), ids=list(FORMS))


def refused(http: httpx.Client, form: Form, body: Any, *, status: int = 400) -> Error:
    """Post a body that is refused; return the message and the code."""
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = http.post(form.path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    message, code = form.error(answer.json())
    assert not re.search(r"\(\w+\)|Input should|literal\[", message)  # none of pydantic's words, no names of ours
    return message, code


def named(form: Form, body: dict[str, Any]) -> dict[str, Any]:
    """Return a body with the model's name, where the dialect has one."""
    return {"model": MODEL, **body} if form.names_model else body


def of(code: str | None, expected: str) -> bool:
    """Return whether a code is the expected one, or the form has none."""
    return code in (None, expected)


@ALL
def test_an_unknown_model(http: httpx.Client, form: Form) -> None:
    """Another model's name is 404 and says which is served; Weaviate names none."""
    if form.names_model:
        message, code = refused(http, form, {**form.texts(["a"]), "model": "other"}, status=404)
        assert "'scenes'" in message
        assert of(code, "model_not_found")


@ALL
def test_no_inputs(http: httpx.Client, form: Form) -> None:
    """An empty list says which field it is."""
    message, _ = refused(http, form, named(form, form.texts([])))
    assert message.startswith(form.text_place)


@ALL
def test_too_many_inputs(http: httpx.Client, form: Form) -> None:
    """10,000 inputs are more than a request may have."""
    message, code = refused(http, form, named(form, form.texts(["a"] * 10_000)))
    assert "2048" in message
    assert of(code, "too_many_inputs")


def test_too_many_parts(http: httpx.Client) -> None:
    """The parts of inputs count, not the inputs alone."""
    inputs = [{"content": [{"type": "text", "text": "a"}] * 1025}] * 2
    message, _ = refused(http, FORMS["voyage"], {"model": MODEL, "inputs": inputs})
    assert "2050" in message


@ALL
@pytest.mark.parametrize(("uri", "expected"), [(NO_IMAGE, "invalid_image"), (NO_BASE64, "invalid_base64")])
def test_no_image(http: httpx.Client, form: Form, uri: str, expected: str) -> None:
    """What is no base64, and what is no picture, is named by its place in the request."""
    message, code = refused(http, form, named(form, form.image(uri)))
    assert message.startswith(form.image_place)
    assert of(code, expected)


@ALL
def test_a_url(http: httpx.Client, form: Form) -> None:
    """A URL is not fetched unless its host is allowed. For OpenAI and NIM it is a text."""
    body = named(form, form.image(URL))
    if form.path == "/v1/embeddings" and "input" in body and isinstance(body["input"][1], str):
        assert http.post(form.path, json=body).status_code == 200
    else:
        message, code = refused(http, form, body)
        assert message.startswith(form.image_place)
        assert of(code, "url_not_allowed")


@ALL
def test_a_text_that_is_too_long(http: httpx.Client, form: Form) -> None:
    """Where truncation is not wanted, the error names the text, its length and the context's."""
    if form.strict is None:
        assert http.post(form.path, json=named(form, form.texts([LONG]))).status_code == 200
        return
    message, code = refused(http, form, named(form, {**form.texts(["a", LONG]), **form.strict}))
    assert message.startswith(f"{form.text_place}[1]")
    assert "202" in message
    assert "64" in message
    assert of(code, "text_too_long")


@ALL
@pytest.mark.parametrize("ids", [[1, 2, 3], [[1, 2], [3]]])
def test_token_ids(http: httpx.Client, form: Form, ids: Any) -> None:
    """Token ids are refused: they are those of another model."""
    message, code = refused(http, form, named(form, form.texts(ids)))
    assert message.startswith(form.text_place)
    if form.text_place == "input":
        assert "token" in message
        assert of(code, "token_ids_not_supported")


@ALL
def test_an_unknown_field(http: httpx.Client, form: Form) -> None:
    """A field that the dialect does not have is named."""
    message, code = refused(http, form, named(form, {**form.texts(["a"]), "colour": 1}))
    assert message.startswith("colour")
    assert of(code, "unknown_field")


@ALL
def test_dimensions(http: httpx.Client, form: Form) -> None:
    """A length that the model does not have is named with the one that it has."""
    if form.dimensions is not None:
        message, code = refused(http, form, named(form, {**form.texts(["a"]), form.dimensions: 100}))
        assert message.startswith(form.dimensions)
        assert "128" in message
        assert of(code, "dimensions_not_allowed")


@ALL
def test_no_inputs_at_all(http: httpx.Client, form: Form) -> None:
    """A body without inputs is refused; at the shared path it is of no form but OpenAI's."""
    if form.error is openai_error or form.path != "/v1/embeddings":
        refused(http, form, named(form, {}))


@pytest.mark.parametrize(
    "body", [b"{", b"", b"\xff\xfe", b"[" * 100_000, b'{"input": NaN}', b'"text"', b"[1]", b"null"]
)
@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/embeddings", "/v2/embed", "/v1/multimodalembeddings", "/vectorize"]
)
def test_no_json_object(http: httpx.Client, path: str, body: bytes) -> None:
    """A body that is no JSON, or no object, is 400 in the form of the path's dialect."""
    form = next(form for form in FORMS.values() if form.path == path)
    message, _ = refused(http, form, body)
    assert "body" in message


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/embeddings", "/v2/embed", "/v1/multimodalembeddings", "/vectorize"]
)
def test_another_content_type(http: httpx.Client, path: str) -> None:
    """A body of another type is 415 in the form of the path's dialect."""
    form = next(form for form in FORMS.values() if form.path == path)
    answer = http.post(path, content="{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert "application/json" in form.error(answer.json())[0]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"input": ["a", 2]}, "input[1]"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": "many"}, "dimensions"),
        ({"input": "data:image/png;base64,AAAA"}, "input"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0]"),
        ({"messages": [[{"role": "user", "content": [{"type": "text"}]}]]}, "messages[0][0].content[0].text"),
        ({"messages": [{"role": "user", "content": "a"}], "input": "a"}, "input"),
        ({"input": ["a"], "modality": "video"}, "modality"),
    ],
)
def test_the_place_of_a_fault(http: httpx.Client, body: dict[str, Any], place: str) -> None:
    """A fault is named by its place, in words and in `param`."""
    answer = http.post("/v1/embeddings", json={"model": MODEL, **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == place
    assert error["message"].startswith(place)


@pytest.mark.parametrize("body", [{"input": [{"text": "a", "image": "b"}]}, {"input": [{}]}, {"input": [{"text": 1}]}])
def test_jina_items(http: httpx.Client, body: dict[str, Any]) -> None:
    """An object of Jina's is a text or an image."""
    answer = http.post("/v1/embeddings", json={"model": MODEL, **body})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("input[0]")


@pytest.mark.parametrize("body", [{"normalized": False}, {"late_chunking": True}, {"embedding_type": "int4"}])
def test_jina_options(http: httpx.Client, body: dict[str, Any]) -> None:
    """What cannot be done is refused instead of ignored."""
    answer = http.post("/v1/embeddings", json={"model": MODEL, "input": ["a"], **body})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(*body)


def test_cohere_takes_one_kind(http: httpx.Client) -> None:
    """Texts and images at once are refused."""
    answer = http.post("/v2/embed", json={"model": MODEL, "texts": ["a"], "images": ["b"]})
    assert answer.status_code == 400
    assert "exactly one" in answer.json()["message"]


@pytest.mark.parametrize(
    ("entries", "parts", "status", "word"),
    [
        ({"clip": {"textual": {"modelName": "other"}}}, {"data": {"text": "a"}}, 404, "other"),
        ({"clip": {"textual": {"modelName": MODEL}}}, {"files": {"image": b"a"}}, 400, "text"),
        ({"clip": {"visual": {"modelName": MODEL}}}, {"data": {"text": "a"}}, 400, "image"),
        ({"clip": {"visual": {"modelName": MODEL}}}, {}, 400, "image"),
        ({"clip": {"visual": {"modelName": MODEL}}}, {"files": {"image": b"a"}}, 400, "known format"),
        ({"clip": {"visual": {}}}, {"files": {"image": b"a"}}, 400, "modelName"),
        ({"clip": {}}, {"data": {"text": "a"}}, 400, "visual"),
        ({"ocr": {"detection": {"modelName": MODEL}}}, {"files": {"image": b"a"}}, 400, "clip"),
    ],
)
def test_immich(http: httpx.Client, entries: dict[str, Any], parts: dict[str, Any], status: int, word: str) -> None:
    """Entries that are no smart search, and parts that do not fit them, are refused in immich's form."""
    form = {"entries": json.dumps(entries), **parts.get("data", {})}
    answer = http.post("/predict", data=form, files=parts.get("files"))
    assert answer.status_code == status
    assert set(answer.json()) == {"detail"}
    assert word in answer.json()["detail"]


@pytest.mark.parametrize(
    "request_",
    [
        {"data": {"entries": "{", "text": "a"}},
        {"data": {"text": "a"}},
        {"json": {}},
        {"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}},
    ],
)
def test_immich_forms(http: httpx.Client, request_: dict[str, Any]) -> None:
    """A form that cannot be read is 400 in immich's form."""
    answer = http.post("/predict", **request_)
    assert answer.status_code == 400
    assert set(answer.json()) == {"detail"}


def test_unknown_paths(http: httpx.Client) -> None:
    """A path that does not exist is 404 in OpenAI's form, a method that does not fit 405 in the dialect's."""
    assert openai_error(http.get("/v1/nothing").json())[1] == "not_found"
    answer = http.get("/v2/embed")
    assert (answer.status_code, set(answer.json())) == (405, {"id", "message"})
