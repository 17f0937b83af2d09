"""Search over HTTP against a real gateway, and beside `twinspire search --json`."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.commands import run_twinspire
from twinspire import Client, Index
from twinspire.search import SearchResponse

TEXT = "a red house"


@pytest.fixture
def command(
    scenes_index: Path, local_client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """`twinspire search --json` on the index, with the client of all tests, whose engines take a second to load."""
    monkeypatch.setattr("twinspire.cli.search.open_client", lambda *_: nullcontext(local_client))

    def run(*arguments: object) -> dict[str, Any]:
        ran = run_twinspire(capsys, "search", scenes_index, *arguments, "--json")
        assert ran.status == 0, ran.err
        document: dict[str, Any] = ran.document
        return document

    return run


def _searched(api: httpx.Client, document: dict[str, Any]) -> dict[str, Any]:
    response = api.post("/v1/search", json=document)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def _scores_aside(document: dict[str, Any]) -> dict[str, Any]:
    """Return a response with its scores rounded, as engines of two processes may differ in the last bit."""
    hits = [
        {**hit, "score": round(hit["score"], 4), "parts": {name: round(part, 4) for name, part in hit["parts"].items()}}
        for hit in document["hits"]
    ]
    return {key: document[key] for key in ("schema_version", "mode", "searched", "offset", "notes")} | {"hits": hits}


@pytest.mark.parametrize(
    ("document", "arguments"),
    [
        ({"text": TEXT}, [TEXT]),
        ({"text": TEXT, "k": 3, "offset": 2}, [TEXT, "-k", 3, "--offset", 2]),
        ({"text": TEXT, "mode": "vector", "kind": "text"}, [TEXT, "--mode", "vector", "--kind", "text"]),
        ({"text": TEXT, "mode": "keyword"}, [TEXT, "--mode", "keyword"]),
        (
            {"text": TEXT, "mode": "hybrid", "where": "year >= 2012"},
            [TEXT, "--mode", "hybrid", "--where", "year >= 2012"],
        ),
        (
            {"query": [{"text": "a house"}, {"text": "red", "weight": -0.5}], "mode": "vector"},
            ["a house", "--minus", "0.5 * 'red'", "--mode", "vector"],
        ),
        (
            {"text": TEXT, "boosts": [{"where": "city = 'town1'", "weight": 0.3}], "pins": ["id = 7"]},
            [TEXT, "--boost", "city = 'town1':0.3", "--pin", "id = 7"],
        ),
        ({"text": TEXT, "diversify": 0.7, "mode": "vector"}, [TEXT, "--diversify", 0.7, "--mode", "vector"]),
        ({"text": TEXT, "min_score": 0.9}, [TEXT, "--min-score", 0.9]),
        ({"text": TEXT, "group": True}, [TEXT, "--group"]),
        ({"text": TEXT, "group": 0.7, "k": 4, "offset": 2}, [TEXT, "--group-threshold", 0.7, "-k", 4, "--offset", 2]),
        ({"text": TEXT, "where": "nothing = 1"}, [TEXT, "--where", "nothing = 1"]),
    ],
)
def test_answers_are_the_commands(
    api: httpx.Client, command: Callable[..., dict[str, Any]], document: dict[str, Any], arguments: list[object]
) -> None:
    """A request gets the document that the command prints for the same search."""
    expected = _scores_aside(command(*arguments))
    assert _scores_aside(_searched(api, document)) == expected
    assert document.get("where") == "nothing = 1" or expected["hits"] or expected["notes"]


def test_a_request_of_the_command_is_one_here(api: httpx.Client, command: Callable[..., dict[str, Any]]) -> None:
    """The request that `--json` prints can be posted as it is, and the answer is a `SearchResponse`."""
    found = _searched(api, command(TEXT)["request"])
    assert SearchResponse.from_dict(found).to_dict() == found


@pytest.mark.parametrize("way", ["upload", "data"])
def test_a_picture_finds_what_the_command_finds(
    api: httpx.Client, scenes_index: Path, command: Callable[..., dict[str, Any]], way: str
) -> None:
    """An uploaded picture and one in a data URI have the hits of `--image`, alone and in a sum."""
    file = scenes_index.parent / "scene5.jpg"
    printed = command("--image", file, "--add", "0.3 * snow", "--mode", "vector")
    parts: list[dict[str, Any]] = [{"image": "upload:1"}, {"text": "snow", "weight": 0.3}]
    if way == "data":
        parts[0]["image"] = f"data:image/jpeg;base64,{base64.b64encode(file.read_bytes()).decode()}"
        found = _searched(api, {"query": parts, "mode": "vector"})
    else:
        other = (scenes_index.parent / "scene1.jpg").read_bytes()
        response = api.post(
            "/v1/search",
            data={"request": json.dumps({"query": parts, "mode": "vector"})},
            files=[("image", ("a.jpg", other)), ("image", ("b.jpg", file.read_bytes()))],
        )
        found = response.raise_for_status().json()
    assert _scores_aside(found) == _scores_aside(printed)
    assert found["hits"][0]["id"] == 5


def test_an_item_is_searched_by_its_stored_vector(api: httpx.Client, scenes_index: Path) -> None:
    """`item:ID` has the hits of the stored vector, for a picture and for a text, whose file nobody opens."""
    with Index.open(scenes_index) as index:
        for id_ in (4, 24):
            (expected,) = index.search(index.vectors([id_]), k=10, space=index.space)
            found = _searched(api, {"query": [{"image": f"item:{id_}"}]})
            assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in expected]
            assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_an_item_and_pictures_add_up(api: httpx.Client, scenes_index: Path, local_client: Client) -> None:
    """Items, uploads and texts of one query get each their own vector."""
    file = scenes_index.parent / "scene2.jpg"
    parts = [{"image": "upload:0"}, {"image": "item:9", "weight": 2}, {"text": "snow", "weight": -1}]
    response = api.post(
        "/v1/search",
        data={"request": json.dumps({"query": parts, "mode": "vector"})},
        files={"image": file.read_bytes()},
    )
    with Index.open(scenes_index) as index:
        vector = (
            local_client.encode_images([file])[0] + 2 * index.vectors([9])[0] - local_client.encode_texts(["snow"])[0]
        )
        (expected,) = index.search(vector[None] / (vector @ vector) ** 0.5, space=index.space)
    hits = response.raise_for_status().json()["hits"]
    assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
    assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-3)


@pytest.mark.parametrize(
    ("document", "status", "param", "word"),
    [
        ({"text": "a", "rerank": True}, 400, "rerank", "rerank"),
        ({"text": "a", "rerank": 101}, 400, "rerank", "100"),
        ({"query": [{"text": "a"}, {"text": "b"}], "rerank": 5}, 400, "rerank", "one text"),
        ({"text": "a", "query": "b"}, 400, "text", "exclude"),
        ({"k": 3}, 400, "query", "query"),
        ({"text": ""}, 400, "query.text", "empty"),
        ({"text": ["a"]}, 400, "text", "string"),
        ({"text": "a", "k": 0}, 400, "k", "1"),
        ({"text": "a", "k": 10_001}, 400, "k", "10,000"),
        ({"text": "a", "where": "year >"}, 400, "where", "filter"),
        ({"text": "a", "boosts": [{"where": "year = 1", "weight": 0}]}, 400, "boosts[0].weight", "weight"),
        ({"query": [{"text": "a"}] * 65}, 400, "query", "64"),
        ({"text": "a", "pins": ["id = 1"] * 65}, 400, "boosts", "64"),
        ({"text": "a", "unknown": 1}, 400, "unknown", "unknown"),
        ({"query": [{"text": "a" * 9_000}, {"text": "b" * 9_000}]}, 400, "query", "18,000"),
        ({"text": "a", "where": f"year = {'1' * 6_000}", "pins": [f"year = {'1' * 6_000}"]}, 400, "where", "filters"),
        ({"query": [{"image": "upload:0"}]}, 400, "query[0].image", "0 images"),
        ({"query": [{"image": "data:image/png;base64,####"}]}, 400, "query[0].image", "base64"),
        ({"query": [{"image": "data:image/png;base64,AAAA"}]}, 400, None, "image"),
        ({"query": [{"image": "item:99999"}]}, 404, None, "99999"),
        ({"query": [{"text": "a", "image": "item:1"}]}, 400, "query[0]", "one"),
        ({"query": [{"audio": "data:audio/wav;base64,AAAA"}]}, 400, None, "audio"),
        ([], 400, None, "object"),
    ],
)
def test_what_cannot_be_searched_is_named(
    api: httpx.Client, document: object, status: int, param: str | None, word: str
) -> None:
    """A bad request has the status, the key and a word that say what is wrong."""
    response = api.post("/v1/search", json=document)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["param"], word in error["message"]) == (param, True), error


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../scene1.jpg",
        "scene1.jpg",
        "file:///etc/passwd",
        "http://127.0.0.1/a.jpg",
        "item:../1",
        "item:1/../2",
        "item:-1",
        "item:1.0",
        "item:１",
        "item:99999999999999999999",
        "upload:../0",
        "upload:-1",
        "",
        "data:/etc/passwd",
    ],
)
def test_no_name_opens_a_file(api: httpx.Client, scenes_index: Path, name: str) -> None:
    """Paths, URLs and whatever looks like an item are refused, and so is the path of an indexed picture."""
    for key in ("image", "audio"):
        for tried in (name, str(scenes_index.parent / "scene1.jpg")):
            response = api.post("/v1/search", json={"query": [{key: tried}]})
            assert response.status_code == 400, response.text
            assert response.json()["error"]["param"] == f"query[0].{key}"


def test_a_text_is_never_parsed(api: httpx.Client, scenes_index: Path) -> None:
    """A text that names a file is a text: as a sum with a picture it would find that picture."""
    path = scenes_index.parent / "scene1.jpg"
    for text in (f'"a" + {path}', str(path), f"- {path}"):
        assert _searched(api, {"text": text, "mode": "vector"})["hits"][0]["score"] < 0.9


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("text/plain", b'{"text": "a"}', 415),
        ("application/x-www-form-urlencoded", b"text=a", 415),
        ("application/json", b'{"text": ', 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b"\xff\xfe", 400),
        ("application/json", b"", 400),
        ("multipart/form-data", b"", 400),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n--x--\r\n", 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="path"\r\n\r\na\r\n--x--\r\n',
            400,
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\na\r\n--x--\r\n',
            400,
        ),
    ],
)
def test_other_bodies_are_refused(api: httpx.Client, content_type: str, body: bytes, status: int) -> None:
    """A body that is neither JSON nor a whole form of known fields is refused."""
    response = api.post("/v1/search", content=body, headers={"content-type": content_type})
    assert response.status_code == status, response.text


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_NAMES = st.sampled_from(["item:3", "item:99", "upload:0", "data:image/png;base64,AAAA", "/etc/passwd", "a.jpg"])
_FILTERS = st.sampled_from(["year >= 2012", "tags contains 'odd'", "year >", "id = 3", "", "(" * 80]) | st.text(
    max_size=30
)
_PART = st.fixed_dictionaries(
    {}, optional={"text": st.text(max_size=30), "image": _NAMES, "audio": _NAMES, "weight": st.floats() | _VALUES}
)
_KEYS = {
    "text": st.text(max_size=40),
    "query": st.text(max_size=40) | st.lists(_PART, max_size=4),
    "k": st.integers(-1, 40),
    "offset": st.integers(-1, 2**70),
    "kind": st.sampled_from(["image", "text", "audio", None, "video"]),
    "where": _FILTERS | st.none(),
    "mode": st.sampled_from(["auto", "vector", "keyword", "hybrid", "other"]),
    "boosts": st.lists(st.fixed_dictionaries({"where": _FILTERS, "weight": st.floats()}), max_size=3),
    "pins": st.lists(_FILTERS, max_size=3),
    "diversify": st.floats() | st.none(),
    "min_score": st.floats() | st.none(),
    "effort": st.integers() | st.none(),
    "group": st.floats() | st.booleans() | st.none(),
    "rerank": st.integers(-1, 120) | st.booleans() | st.none(),
}
_DOCUMENTS = st.fixed_dictionaries({}, optional={key: value | _VALUES for key, value in _KEYS.items()}) | _VALUES
_GOOD = st.fixed_dictionaries(
    {"text": st.text(min_size=1)}, optional={k: v for k, v in _KEYS.items() if k not in ("text", "query", "rerank")}
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=_DOCUMENTS | _GOOD)
def test_no_document_is_an_error_of_the_server(api: httpx.Client, document: object) -> None:
    """Whatever JSON comes, the answer is hits or says what is wrong with the request, with a message."""
    body = json.dumps(document)  # with NaN and Infinity, which are no JSON
    response = api.post("/v1/search", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404), (response.status_code, response.text, document)
    assert response.status_code == 200 or response.json()["error"]["message"]
