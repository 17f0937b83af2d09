"""`SafetyOptions`: who may use a gateway, its limits, and what it writes down, as options of the command.

Imports nothing heavy, so that `twinspire --help` is fast and needs no extra.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.images import ImageLimits

_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_MIB = 2**20


def _option(*names: str, help: str, panel: str, **more: Any) -> Any:  # noqa: A002, ANN401 - as of typer.Option
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


_WHO, _LIMITS, _WATCH = "Who may use it", "Limits", "Logs, metrics and the end"


@dataclass(frozen=True, kw_only=True)
class SafetyOptions:
    """Who may use a gateway, its limits, and what it writes down.

    Sizes are in MiB, times in seconds. Raises InputError for values that cannot be used.
    """

    keys: Annotated[
        Path | None,
        _option(
            "--keys",
            metavar="FILE",
            panel=_WHO,
            help="Require a key: KEY or sha256:HEX on each line, then a name for the logs. Read again when it changes. "
            "Default: the same lines in the environment variable TWINSPIRE_GATEWAY_KEYS.",
        ),
    ] = None
    rate: Annotated[
        float | None,
        _option(
            "--rate", metavar="REQUESTS", panel=_WHO, help="Requests per second of each key; without keys, of all."
        ),
    ] = None
    input_rate: Annotated[
        float | None,
        _option("--input-rate", metavar="INPUTS", panel=_WHO, help="Texts and images per second of each key."),
    ] = None
    insecure: Annotated[
        bool, _option("--insecure", panel=_WHO, help="Let other machines use the gateway without a key.")
    ] = False
    tls_certificate: Annotated[
        Path | None,
        _option(
            "--tls-certificate", metavar="PEM", panel=_WHO, help="Serve HTTPS with this certificate; needs --tls-key."
        ),
    ] = None
    tls_key: Annotated[
        Path | None, _option("--tls-key", metavar="PEM", panel=_WHO, help="Private key of the certificate.")
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        _option("--cors-origin", metavar="ORIGIN", panel=_WHO, help="Let pages of https://HOST use it; repeatable."),
    ] = None
    host_name: Annotated[
        list[str] | None,
        _option(
            "--host-name",
            metavar="NAME",
            panel=_WHO,
            help="Without keys, on this machine: further name that browsers may reach the gateway by; repeatable.",
        ),
    ] = None
    allow_image_host: Annotated[
        list[str] | None,
        _option(
            "--allow-image-host",
            metavar="HOST",
            panel=_WHO,
            help="Fetch images from URLs of this host, *.HOST for its subdomains; repeatable. Default: none.",
        ),
    ] = None
    max_body: Annotated[
        float, _option("--max-body", metavar="MIB", panel=_LIMITS, help="Largest body of a request; default 64.")
    ] = 64.0
    max_held: Annotated[
        float,
        _option("--max-held", metavar="MIB", panel=_LIMITS, help="Bodies of all requests at a time; default 512."),
    ] = 512.0
    max_megapixels: Annotated[
        float,
        _option("--max-megapixels", metavar="MP", panel=_LIMITS, help="Largest image, by its header; default 64."),
    ] = 64.0
    max_connections: Annotated[
        int,
        _option("--max-connections", metavar="COUNT", panel=_LIMITS, help="Connections at a time; default 512."),
    ] = 512
    read_timeout: Annotated[
        float,
        _option(
            "--read-timeout",
            metavar="SECONDS",
            panel=_LIMITS,
            help="Time for a request's headers, and for its body beyond what 16 KiB/s need; default 20.",
        ),
    ] = 20.0
    access_log: Annotated[
        Path | None,
        _option("--access-log", metavar="FILE", panel=_WATCH, help="Append a line of JSON for each request."),
    ] = None
    metrics_port: Annotated[
        int | None,
        _option("--metrics-port", metavar="PORT", panel=_WATCH, help="Serve /metrics here; 0 picks a free port."),
    ] = None
    metrics_host: Annotated[
        str, _option("--metrics-host", metavar="ADDRESS", panel=_WATCH, help="Address of /metrics; default 127.0.0.1.")
    ] = "127.0.0.1"
    wait: Annotated[
        float,
        _option("--wait", metavar="SECONDS", panel=_WATCH, help="Wait for the servers at the start; default 0."),
    ] = 0.0
    shutdown_delay: Annotated[
        float,
        _option(
            "--shutdown-delay",
            metavar="SECONDS",
            panel=_WATCH,
            help="After SIGTERM, serve on with /readyz at 503 until load balancers have noticed; default 0.",
        ),
    ] = 0.0
    shutdown_timeout: Annotated[
        float,
        _option("--shutdown-timeout", metavar="SECONDS", panel=_WATCH, help="Then finish what began; default 30."),
    ] = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not (math.isfinite(value) and 0 <= value <= 1e6):
                raise _error(field.name, f"{value:g}: expected a number from 0 to 1e6")
        for name in ("max_body", "max_held", "max_megapixels", "read_timeout", "rate", "input_rate", "max_connections"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise _error(name, f"{value:g}: expected a number above 0")
        if self.max_held < self.max_body:
            raise _error("max_held", f"{self.max_held:g}: expected at least --max-body, {self.max_body:g}")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise _error("metrics_port", f"{self.metrics_port}: expected a port from 0 to 65535")
        if (self.tls_key is None) != (self.tls_certificate is None):
            raise _error("tls_key", "and --tls-certificate belong together: expected both or neither")
        _check_each("cors_origin", self.cors_origin, _is_origin, "https://HOST, http://HOST:PORT or *")
        _check_each("host_name", self.host_name, _is_host, "a name such as search.example.org, without a port")
        _check_each("allow_image_host", self.allow_image_host, _is_image_host, "images.example.org or *.example.org")

    @property
    def image_limits(self) -> ImageLimits:
        """The largest image that is decoded."""
        from twinspire.images import ImageLimits

        return ImageLimits(max_pixels=max(1, round(self.max_megapixels * 1e6)), max_bytes=self.max_body_bytes)

    @property
    def max_body_bytes(self) -> int:
        """The largest body in bytes."""
        return max(1, round(self.max_body * _MIB))

    @property
    def max_held_bytes(self) -> int:
        """The bytes of all bodies at a time."""
        return max(1, round(self.max_held * _MIB))


def checked_host(host: str, option: str) -> str:
    """Return the IPv4 or IPv6 address to listen on. Raises InputError for anything else but localhost."""
    try:
        return str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host))
    except ValueError:
        raise _error(option, f"{host!r}: expected an IP address, such as 127.0.0.1, 0.0.0.0 or ::1") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a service that listens on an address."""
    return ipaddress.ip_address(host).is_loopback


def _check_each(name: str, values: Iterable[str] | None, is_good: Any, expected: str) -> None:  # noqa: ANN401
    for value in values or ():
        if not is_good(value):
            raise _error(name, f"{value!r}: expected {expected}")


def _is_host(name: str) -> bool:
    return _HOST.fullmatch(name.lower()) is not None


def _is_image_host(name: str) -> bool:
    return _is_host(name.removeprefix("*.")) and not _is_number(name)


def _is_number(name: str) -> bool:
    """Whether the last label of a name is a number: an IPv4 address in one of its forms, never a name."""
    return re.fullmatch(r"0x[0-9a-f]*|[0-9]+", name.lower().rsplit(".", 1)[-1]) is not None


def _is_origin(origin: str) -> bool:
    try:
        url = urlsplit(origin)
        has_port = url.port is None or url.port > 0
    except ValueError:
        return False
    is_plain = origin == f"{url.scheme}://{url.netloc}" and "@" not in url.netloc
    return origin == "*" or (url.scheme in ("http", "https") and has_port and is_plain and bool(url.hostname))


def _error(name: str, problem: str) -> InputError:
    option = "--" + name.replace("_", "-")
    return InputError(f"{option} {problem}", option=option)
