"""API keys: `Authorization: Bearer KEY`, from a file or the environment, each with rates of its own."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from starlette.types import ASGIApp, Receive, Scope, Send

from twinspire._arguments import file_errors
from twinspire.errors import InputError
from twinspire_server.gateway.errors import GatewayError
from twinspire_server.gateway.safety.context import RequestContext

VARIABLE = "TWINSPIRE_GATEWAY_KEYS"
_SHORTEST = 16
_CHECK_S = 1.0  # how often the file is looked at
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
_KEY = re.compile(r"[\x21-\x7e]+")
_NAME = re.compile(r"[\w .@/+-]{1,64}")
_log = logging.getLogger("twinspire")


@dataclass(frozen=True)
class Key:
    """A key as its SHA-256; `name` stands for it in logs and metrics."""

    digest: bytes
    name: str


class KeyStore:
    """The keys of a gateway, read again when their file changes.

    A file that can no longer be read or has a bad line leaves the keys as they were, and is logged. Raises InputError
    where that is so at the start.
    """

    def __init__(self, path: Path | None = None, *, text: str | None = None) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._checked_s = -math.inf
        if path is not None:
            self._keys = self._read(path)
        else:
            self._keys = parse_keys(text or "", source=VARIABLE)

    def find(self, key: bytes) -> Key | None:
        """Return the key that a client sent, None for an unknown one. Every comparison takes the same time."""
        self._refresh()
        digest = hashlib.sha256(key).digest()
        found = None
        for known in self._keys:
            if hmac.compare_digest(known.digest, digest):
                found = known
        return found

    def reload(self) -> None:
        """Read the file again, changed or not."""
        self._stamp, self._checked_s = None, -math.inf
        self._refresh()

    def _refresh(self) -> None:
        if self._path is None or (now := time.monotonic()) - self._checked_s < _CHECK_S:
            return
        self._checked_s = now
        try:
            if self._stamp != _stamp(self._path):
                self._keys = self._read(self._path)
                _log.warning("read %d keys from %s", len(self._keys), self._path)
        except (InputError, OSError) as error:
            _log.error("the keys stay as they were: %s", error)

    def _read(self, path: Path) -> tuple[Key, ...]:
        with file_errors(f"the keys {path} cannot be read", path):
            self._stamp = _stamp(path)
            text = path.read_text("utf-8", errors="replace")
        return parse_keys(text, source=str(path))


def parse_keys(text: str, *, source: str) -> tuple[Key, ...]:
    """Return the keys of lines `KEY [NAME]` or `sha256:HEX [NAME]`; empty lines and those with # count for nothing.

    Raises InputError with the line of a bad one, without its text, and for no key at all.
    """
    keys: dict[bytes, Key] = {}
    for number, line in enumerate(text.splitlines(), 1):
        word, _, name = line.strip().partition(" ")
        if not word or word.startswith("#"):
            continue
        problem = _problem(word, name.strip())
        if problem is not None:
            raise InputError(f"{source}, line {number}: {problem}", option="--keys", line=number)
        match = _DIGEST.fullmatch(word)
        digest = bytes.fromhex(match[1]) if match else hashlib.sha256(word.encode()).digest()
        keys.setdefault(digest, Key(digest, name.strip() or f"key-{number}"))
    if not keys:
        raise InputError(
            f"{source} has no key: expected a line for each, such as openssl rand -hex 32 prints", option="--keys"
        )
    return tuple(keys.values())


def _problem(word: str, name: str) -> str | None:
    if word.startswith("sha256:"):
        if _DIGEST.fullmatch(word) is None:
            return "expected 64 hexadecimal digits behind sha256:"
    elif len(word) < _SHORTEST or _KEY.fullmatch(word) is None:
        return f"expected a key of at least {_SHORTEST} printable ASCII characters, such as openssl rand -hex 32 prints"
    if name and _NAME.fullmatch(name) is None:
        return "expected a name of at most 64 letters, digits, spaces and ._@/+- behind the key"
    return None


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_ino, found.st_size


class TokenBucket:
    """A rate with a burst of one second: what was taken beyond it is owed, and nothing more is given until it is paid.

    So a batch that is larger than the burst passes, and the ones after it wait.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._clock = per_s, clock
        self._burst = max(per_s, 1.0)
        self._left, self._at_s = self._burst, clock()

    def take(self, count: float) -> float:
        """Take `count` and return 0, or take nothing and return the seconds until there is one again."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at_s) * self._per_s)
        self._at_s = now
        if self._left < min(1.0, count):
            return (1.0 - self._left) / self._per_s
        self._left -= count
        return 0.0


@dataclass(frozen=True)
class _Rates:
    requests: TokenBucket | None
    inputs: TokenBucket | None


class Keys:
    """Middleware that asks for a key (401) and holds each to its rates (429). Without keys all clients share the rates.

    `is_public` says which paths need no key. Raises GatewayError.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyStore | None,
        is_public: Callable[[str, str], bool],
        rate: float | None,
        input_rate: float | None,
    ) -> None:
        self._app, self._keys, self._is_public = app, keys, is_public
        self._rate, self._input_rate = rate, input_rate
        self._rates: dict[bytes, _Rates] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the key, then hand the request on."""
        if scope["type"] == "http" and not self._is_public(scope["method"], scope["path"]):
            self._admit(scope)
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        context: RequestContext = scope["state"]["context"]
        digest = b""
        if self._keys is not None:
            key = self._keys.find(_bearer(scope))
            if key is None:
                raise _unauthorized("this key is not known here: ask who runs the gateway for one")
            context.key = scope["state"]["key"] = key.name
            digest = key.digest
        if self._rate is None and self._input_rate is None:
            return
        rates = self._rates.setdefault(digest, self._new_rates()) if digest not in self._rates else self._rates[digest]
        _take(rates.requests, 1, "requests", self._rate)
        context.charge = lambda count: _take(rates.inputs, count, "inputs", self._input_rate)

    def _new_rates(self) -> _Rates:
        requests, inputs = (None if rate is None else TokenBucket(rate) for rate in (self._rate, self._input_rate))
        return _Rates(requests, inputs)


def key_store(path: Path | None) -> KeyStore | None:
    """Return the keys of a file, else of the environment, None where there are none."""
    if path is not None:
        return KeyStore(path)
    text = os.environ.get(VARIABLE)
    return None if text is None else KeyStore(text=text)


def _bearer(scope: Scope) -> bytes:
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if not given:
        raise _unauthorized("this gateway needs a key: send the header Authorization: Bearer KEY")
    scheme, _, key = given[0].partition(b" ")
    if len(given) > 1 or scheme.lower() != b"bearer" or not key.strip():
        raise _unauthorized("the header Authorization is not as expected: Bearer KEY, once")
    return bytes(key.strip())


def _unauthorized(message: str) -> GatewayError:
    return GatewayError(401, message, code="invalid_api_key", headers=MappingProxyType({"WWW-Authenticate": "Bearer"}))


def _take(bucket: TokenBucket | None, count: int, what: str, per_s: float | None) -> None:
    wait_s = 0.0 if bucket is None else bucket.take(count)
    if wait_s > 0:
        raise GatewayError(
            429,
            f"more than {per_s:g} {what} per second: try again in {wait_s:.1f} s",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
        )
