"""Server-side request forgery: image URLs that try to make the gateway reach what it should not."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult

from twinspire import sample_bundle
from twinspire.errors import InputError
from twinspire_server.gateway.embedder import Embedder
from twinspire_server.gateway.errors import GatewayError
from twinspire_server.gateway.inputs import EmbedRequest, EncodedImage, ImageUrl
from twinspire_server.gateway.safety.fetching import ImageFetcher, is_public
from twinspire_server.gateway.safety.options import SafetyOptions
from twinspire_server.gateway.settings import GatewaySettings

LOOPBACK = (ipaddress.ip_network("127.0.0.1/32"),)
IMAGE = b"\xff\xd8\xff not much of an image"


class Names(AbstractResolver):
    """A resolver that gives a name the addresses of a list, one list after the other (DNS rebinding)."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the next list."""
        self.asked.append(host)
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Do nothing."""


class Web:
    """An HTTP server on loopback; `answer` writes each answer."""

    def __init__(self, tls: ssl.SSLContext | None = None, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.seen: list[dict[str, str]] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = image
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.seen.append(dict(self.headers))
                web.answer(self)

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(address, Handler)
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]


def image(handler: BaseHTTPRequestHandler) -> None:
    """Answer with an image."""
    reply(handler, 200, IMAGE, {"Content-Type": "image/jpeg", "Set-Cookie": "a=b"})


def reply(handler: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str]) -> None:
    """Answer with headers and content."""
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(content))} | headers).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


@contextmanager
def running(tls: ssl.SSLContext | None = None, address: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[Web]:
    """Run a web server."""
    web = Web(tls, address)
    thread = threading.Thread(target=web.server.serve_forever, args=(0.02,))
    thread.start()
    yield web
    web.server.shutdown()
    web.server.server_close()
    thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    """A web server that nobody may be led to."""
    with running() as found:
        yield found


def fetch(url: str, names: Names, *, hosts: Sequence[str] = ("images.test",), **options: Any) -> bytes:
    """Fetch one URL with a fetcher of its own."""

    async def run() -> bytes:
        async with ImageFetcher(hosts, resolver=names, **{"max_bytes": 10_000} | options) as fetcher:
            return await fetcher.fetch(url, param="input[3]")

    return asyncio.run(run())


def refusal(url: str, names: Names, **options: Any) -> GatewayError:
    """Return the error that a URL ends in."""
    with pytest.raises(GatewayError) as raised:
        fetch(url, names, **options)
    assert raised.value.status == 400
    assert raised.value.param == "input[3]"
    return raised.value


def test_an_image_of_an_allowed_host_is_fetched(web: Web) -> None:
    """The request names the host, and has no cookie of an earlier answer; the content is as sent."""
    names = Names(["127.0.0.1"])

    async def run() -> list[bytes]:
        async with ImageFetcher(["images.test"], max_bytes=100, resolver=names, allowed_networks=LOOPBACK) as fetcher:
            return [await fetcher.fetch(f"http://images.test:{web.port}/a.jpg") for _ in range(2)]

    assert asyncio.run(run()) == [IMAGE, IMAGE]
    assert [seen["Host"] for seen in web.seen] == [f"images.test:{web.port}"] * 2
    assert not any("Cookie" in seen for seen in web.seen)


def test_tls_is_for_the_name_that_was_allowed() -> None:
    """HTTPS goes to the checked address and verifies the certificate of the name; another name's is refused."""
    authority = trustme.CA()
    client = ssl.create_default_context()
    authority.configure_trust(client)
    for name, is_good in (("images.test", True), ("other.test", False)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        with running(context) as server:
            url, names = f"https://images.test:{server.port}/", Names(["127.0.0.1"])
            if is_good:
                assert fetch(url, names, tls=client, allowed_networks=LOOPBACK) == IMAGE
            else:
                assert "certificate" in refusal(url, names, tls=client, allowed_networks=LOOPBACK).message


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
        ),
        *("192.0.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.88.99.1"),
        *("::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1", "::127.0.0.1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001::1"),
    ],
)
def test_an_allowed_name_that_leads_inside_is_refused(web: Web, address: str) -> None:
    """Loopback, private, link-local, shared, reserved and multicast addresses, and IPv6 that carries IPv4."""
    assert not is_public(ipaddress.ip_address(address))
    error = refusal("http://images.test/", Names([address]))
    assert error.code == "url_not_fetched"
    assert address not in error.message


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(address: str) -> None:
    """Hosts of the internet are not refused."""
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.1", "0", "localhost"),
        *("[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "localhost.", "localhost.localdomain", "169.254.169.254"),
        *("evil.test", "images.test.evil.test", "evilimages.test", "sub.images.test", "images.test%2eevil.test"),
        *("images.test%00.evil.test", "①②⑦.⓪.⓪.①", "metadata.google.internal", ""),
    ],
)
def test_other_hosts_are_refused(web: Web, host: str) -> None:
    """Numbers in any notation, other names, and names that only look like an allowed one are not even resolved."""
    names = Names(["127.0.0.1"])
    error = refusal(f"http://{host}:{web.port}/", names, allowed_networks=LOOPBACK)
    assert error.code == "url_not_allowed"
    assert not names.asked
    assert not web.seen


@pytest.mark.parametrize(
    "url",
    [
        *("http://images.test@127.0.0.1/", "http://user:pass@images.test/", "http://127.0.0.1\\@images.test/"),
        *("http://images.test:25/", "https://images.test:80/", "file:///etc/passwd", "gopher://images.test/"),
        *("ftp://images.test/", "http:///etc/passwd", "http:images.test", "//images.test/", "http://[images.test/"),
        *("http://images.test:99999/", "http://images.test:x/", "data:image/png;base64,aaaa", "", "a" * 100_000),
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    """Users, foreign ports, other schemes and what is no URL end before anything is resolved."""
    names = Names(["127.0.0.1"])
    assert refusal(url, names).code == "url_not_allowed"
    assert not names.asked


def test_subdomains_are_allowed_by_a_pattern_alone() -> None:
    """`*.images.test` is any name below it, not itself and not what only ends like it."""
    names = Names(["127.0.0.1"])
    for host in ("images.test", "evilimages.test", "a%2f.images.test", ".images.test"):
        assert refusal(f"http://{host}/", names, hosts=["*.images.test"]).code == "url_not_allowed", host
    assert not names.asked
    assert refusal("http://a.b.images.test/", names, hosts=["*.images.test"]).code == "url_not_fetched"


def test_a_name_that_changes_its_address_gains_nothing(web: Web) -> None:
    """DNS rebinding: the address that is connected to is the one that was checked, of each list and each time."""
    url = f"http://images.test:{web.port}/"
    for answers in ([["127.0.0.2"], ["127.0.0.1"]], [["127.0.0.2", "127.0.0.1"]]):
        names = Names(*answers)
        allowed = (ipaddress.ip_network("127.0.0.2/32"),)
        for _ in range(2):
            assert refusal(url, names, allowed_networks=allowed).code == "url_not_fetched"
    assert not web.seen


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost/",
        "http://inside.test/",
        "file:///etc/passwd",
        "//evil.test/",
    ],
)
def test_a_redirect_is_checked_like_the_first_url(web: Web, location: str) -> None:
    """An allowed host cannot send the gateway on to another one."""
    web.answer = lambda handler: reply(handler, 302, b"", {"Location": location})
    error = refusal(f"http://images.test:{web.port}/", Names(["127.0.0.1"]), allowed_networks=LOOPBACK)
    assert error.code == "url_not_allowed"
    assert len(web.seen) == 1


def test_a_redirect_to_a_name_inside_is_refused(web: Web) -> None:
    """The address of each hop is checked: an allowed name that resolves inside at the second hop."""
    web.answer = lambda handler: reply(handler, 302, b"", {"Location": f"http://images.test:{web.port}/b"})
    names = Names(["127.0.0.1"], ["127.0.0.3"])
    with running(address=("127.0.0.3", web.port)) as inside:
        error = refusal(f"http://images.test:{web.port}/a", names, allowed_networks=LOOPBACK)
    assert error.code == "url_not_fetched"
    assert len(web.seen) == 1
    assert not inside.seen


def test_redirects_end(web: Web) -> None:
    """More than three redirects are not followed."""
    web.answer = lambda handler: reply(handler, 302, b"", {"Location": "/again"})
    error = refusal(f"http://images.test:{web.port}/", Names(["127.0.0.1"]), allowed_networks=LOOPBACK)
    assert "redirects" in error.message
    assert len(web.seen) == 4


ANSWERS = {
    "no image": (200, b"<html>", {"Content-Type": "text/html"}),
    "compressed": (200, b"x" * 100, {"Content-Type": "image/png", "Content-Encoding": "gzip"}),
    "too long": (200, b"x" * 10_001, {"Content-Type": "image/png"}),
    "not there": (404, b"", {"Content-Type": "image/png"}),
    "without a length": (
        200,
        b"x" * 50_000,
        {"Content-Type": "image/png", "Content-Length": "", "Connection": "close"},
    ),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_answers_that_are_no_images_are_refused(web: Web, answer: tuple[int, bytes, dict[str, str]]) -> None:
    """Other types, compressed, larger or missing content is an error of the URL, and is not read to its end."""
    web.answer = lambda handler: reply(handler, *answer)
    error = refusal(f"http://images.test:{web.port}/", Names(["127.0.0.1"]), allowed_networks=LOOPBACK)
    assert error.code == "url_not_fetched"


def test_a_slow_host_is_not_waited_for(web: Web) -> None:
    """The time of a fetch is bounded, also where a byte comes now and then."""
    stop = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "image/png")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not stop.wait(0.05):
            handler.wfile.write(b"x")

    web.answer = drip
    try:
        names = Names(["127.0.0.1"])
        error = refusal(f"http://images.test:{web.port}/", names, allowed_networks=LOOPBACK, timeout_s=0.5)
    finally:
        stop.set()
    assert "within" in error.message


def test_proxies_of_the_environment_are_not_used(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would connect to what it likes: HTTP_PROXY has no effect."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{web.port}")
    assert refusal("http://images.test/", Names(["10.0.0.1"])).code == "url_not_fetched"
    assert not web.seen


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "0x7f.1", "a b", "http://a", "a:80", "*", "*.", "", "[::1]"])
def test_only_names_can_be_allowed(host: str) -> None:
    """Addresses, ports and patterns that mean everything are no hosts for --allow-image-host."""
    with pytest.raises(InputError) as raised:
        SafetyOptions(allow_image_host=[host])
    assert raised.value.option == "--allow-image-host"


def test_the_images_of_a_request_are_fetched_together(monkeypatch: pytest.MonkeyPatch, pictures: list[bytes]) -> None:
    """Two images of one request are under way at once, and their vectors are in the order of the request."""
    contents = dict(zip(("https://images.test/a", "https://images.test/b"), pictures, strict=False))

    async def run() -> tuple[Any, Any]:
        both = asyncio.Barrier(2)

        async def fetch(_fetcher: ImageFetcher, url: str) -> bytes:
            await asyncio.wait_for(both.wait(), 10)
            return contents[url]

        monkeypatch.setattr(ImageFetcher, "fetch", fetch)
        safety = SafetyOptions(allow_image_host=["images.test"])
        async with await Embedder.open(GatewaySettings(bundle=sample_bundle(), safety=safety)) as embedder:
            urls = EmbedRequest(inputs=tuple(map(ImageUrl, contents)))
            files = EmbedRequest(inputs=tuple(map(EncodedImage, contents.values())))
            return (await embedder.embed(urls)).vectors, (await embedder.embed(files)).vectors

    fetched, sent = asyncio.run(run())
    assert np.array_equal(fetched, sent)
