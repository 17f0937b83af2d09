"""`ImageFetcher`: fetches images from URLs of hosts that were allowed, and from no address of this network.

A URL in a request makes this machine send a request of its own (server-side request forgery, SSRF). What holds it:

- The host's name must be on the list; numbers are no names, and there is no user, password or foreign port in the URL.
- The address is checked where the socket is made, on what is connected to: a name that resolves differently the second
  time (DNS rebinding) changes nothing. TLS and the header Host still use the name.
- Redirects are followed three times at most, each checked like the first.
- No cookies, no proxies and no passwords from the environment, no compressed answers; size and time are bounded.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection, Iterable
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver

from twinspire_server.gateway.errors import GatewayError

_MOST_REDIRECTS = 3
_AT_A_TIME = 16
_PORTS = {"http": 80, "https": 443}
_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")
# What `is_global` leaves open, or takes for open in some versions of Python: addresses that carry another one (NAT64,
# 6to4, Teredo), and those that have no meaning outside.
_CLOSED = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",
            "192.88.99.0/24",
            "64:ff9b::/96",
            "64:ff9b:1::/48",
            "2001::/23",
            "2002::/16",
            "::/96",
            "fec0::/10",
        ),
    )
)


class ForbiddenAddressError(OSError):
    """A name leads to an address that is not fetched from."""


class ImageFetcher:
    """Fetches images over HTTP and HTTPS. An async context manager; for the event loop that it was opened in.

    `hosts` are names, or `*.NAME` for the subdomains of one. An image has at most `max_bytes`; it is fetched within
    `timeout_s`, redirects included. `resolver` and `allowed_networks` are for tests: the latter are fetched from
    although they are not public, at any port.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        max_bytes: int,
        timeout_s: float = 10.0,
        resolver: AbstractResolver | None = None,
        allowed_networks: Collection[ipaddress.IPv4Network | ipaddress.IPv6Network] = (),
    ) -> None:
        self._hosts = tuple(host.lower() for host in hosts)
        self._max_bytes, self._timeout_s = max_bytes, timeout_s
        self._allowed_networks = tuple(allowed_networks)
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        connector = aiohttp.TCPConnector(
            resolver=resolver, use_dns_cache=False, socket_factory=self._socket, limit=_AT_A_TIME, force_close=True
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            headers={"User-Agent": "twinspire", "Accept": "image/*", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            raise_for_status=False,
        )

    async def fetch(self, url: str, *, param: str | None = None) -> bytes:
        """Return the content of an image. Raises GatewayError, whose `param` is the place in the request.

        The error says what was wrong with the URL or the answer, never which addresses a name has here.
        """
        try:
            async with asyncio.timeout(self._timeout_s), self._turns:
                return await self._followed(url, param)
        except TimeoutError:
            raise _failed(f"{_shown(url)} did not send an image within {self._timeout_s:g} s", param) from None
        except aiohttp.ClientError as error:
            raise _failed(f"{_shown(url)} cannot be fetched: {_reason(error)}", param) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _followed(self, url: str, param: str | None) -> bytes:
        for _ in range(1 + _MOST_REDIRECTS):
            self._check(url, param)
            async with self._session.get(url, allow_redirects=False) as response:
                target = response.headers.get("Location")
                if response.status not in (301, 302, 303, 307, 308) or target is None:
                    return await self._content(response, url, param)
                url = urljoin(url, target)
        raise _failed(f"{_shown(url)} is behind more than {_MOST_REDIRECTS} redirects", param)

    def _check(self, url: str, param: str | None) -> None:
        """Raise GatewayError unless a URL's host is allowed, at its scheme's own port and without a user."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower().removesuffix("."), parts.port
        except ValueError:
            raise _refused(f"{_shown(url)} is not a URL", param) from None
        if parts.scheme not in _PORTS:
            raise _refused(f"{_shown(url)}: expected http or https", param)
        if not url.isascii() or any(character in url for character in "\\\t\r\n "):
            raise _refused("the URL has characters that have to be written as %XX", param)
        if "@" in parts.netloc:
            raise _refused(f"{_shown(url)}: expected a URL without user and password", param)
        if not any(_matches(host, pattern) for pattern in self._hosts):
            raise _refused(
                f"images are not fetched from {_shown(host)} here: the operator allows hosts with --allow-image-host; "
                "or send a data URI",
                param,
            )
        if port not in (None, _PORTS[parts.scheme]) and not self._allowed_networks:
            raise _refused(f"{_shown(url)}: expected the port {_PORTS[parts.scheme]}", param)

    async def _content(self, response: aiohttp.ClientResponse, url: str, param: str | None) -> bytes:
        if response.status != 200:
            raise _failed(f"{_shown(url)} answered {response.status}", param)
        kind = response.headers.get("Content-Type", "application/octet-stream").strip().lower()
        if not kind.startswith(_TYPES):
            raise _failed(f"{_shown(url)} is no image, but {_shown(kind)}", param)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _failed(f"{_shown(url)} is compressed", param)
        if (response.content_length or 0) > self._max_bytes:
            raise self._too_large(url, param)
        content = bytearray()
        async for chunk in response.content.iter_chunked(65536):
            content += chunk
            if len(content) > self._max_bytes:
                raise self._too_large(url, param)
        return bytes(content)

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """Return a socket for an address that is about to be connected to. Raises ForbiddenAddressError."""
        family, kind, protocol, _, address = info
        found = ipaddress.ip_address(address[0].partition("%")[0])
        if not is_public(found) and not any(found in network for network in self._allowed_networks):
            raise ForbiddenAddressError("not a public address")
        return socket.socket(family, kind, protocol)

    def _too_large(self, url: str, param: str | None) -> GatewayError:
        return _failed(f"{_shown(url)} has more than {self._max_bytes} bytes", param)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address belongs to a host of the public internet, also where it carries another one."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    is_odd = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    is_closed = any(address.version == network.version and address in network for network in _CLOSED)
    return address.is_global and not is_odd and not is_closed and not address.is_link_local


def _matches(host: str, pattern: str) -> bool:
    return host.endswith(pattern[1:]) and host != pattern[2:] if pattern.startswith("*.") else host == pattern


def _shown(text: str) -> str:
    return ascii(text[:100])


def _reason(error: aiohttp.ClientError) -> str:
    """Return what went wrong, without addresses: the difference would map the network for whoever asks."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return "its certificate is not valid"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "its host cannot be reached, or is not public"
    return "the answer is not as expected"


def _refused(message: str, param: str | None) -> GatewayError:
    return GatewayError(400, message, param, "url_not_allowed")


def _failed(message: str, param: str | None) -> GatewayError:
    return GatewayError(400, message, param, "url_not_fetched")
