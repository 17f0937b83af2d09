"""The page's static files over HTTP."""

from __future__ import annotations

import gzip
import re

import httpx
import pytest

from twinspire_server.gateway.page_routes import page_files


def test_the_page_is_at_the_root_under_its_own_policy(http: httpx.Client) -> None:
    """`/` is HTML with a policy that allows no inline scripts, no inline styles and no other host."""
    answer = http.get("/").raise_for_status()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_every_file_that_the_page_names_is_served(http: httpx.Client) -> None:
    """What HTML and modules refer to exists, modules are preloaded, and nothing refers to another host."""
    named = set(re.findall(r'(?:href|src)="page/([^"]+)"', http.get("/").text))
    assert set(page_files()) - named == {"index.html"}
    for name, file in page_files().items():
        text = file.content.decode()
        named |= set(re.findall(r'from "\./([^"]+)"', text))
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
    assert "main.js" in named
    for name in named:
        answer = http.get(f"/page/{name}").raise_for_status()
        assert answer.content == page_files()[name].content


def test_an_unchanged_file_is_not_sent_again(http: httpx.Client) -> None:
    """With its entity tag a file is 304 without content; without, it is compressed where the client takes that."""
    first = http.get("/page/main.js")
    assert first.headers["content-encoding"] == "gzip"
    again = http.get("/page/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    plain = http.get("/page/main.js", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == first.content
    assert http.head("/page/main.js").content == b""


@pytest.mark.parametrize(
    "path",
    ["/page/", "/page/nothing.js", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/main.js%00", "/page//etc/passwd"],
)
def test_only_the_pages_files_are_served(http: httpx.Client, path: str) -> None:
    """Other names are 404, whatever path they try to be."""
    assert http.get(path).status_code == 404


def test_compressed_files_are_the_files() -> None:
    """What is sent compressed unpacks to the file."""
    for file in page_files().values():
        assert gzip.decompress(file.compressed) == file.content
