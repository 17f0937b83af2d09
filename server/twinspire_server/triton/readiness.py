"""Asking a server whether it is the one that was started, and ready."""

from __future__ import annotations

import json
from contextlib import closing
from http.client import OK, HTTPConnection, HTTPException

from twinspire_server.triton.addresses import LOOPBACK
from twinspire_server.triton.ports import Ports

_TIMEOUT_S = 2.0


def ready_version(metrics_address: str, ports: Ports, name: str) -> str | None:
    """Return the version of the server called `name` when all its services and models are ready, else None.

    Another server that took the HTTP port is not mistaken for it: it has another name. gRPC is started before HTTP,
    the metrics after it.
    """
    try:
        if _get(LOOPBACK, ports.http, "/v2/health/ready") is None:
            return None
        about = json.loads(_get(LOOPBACK, ports.http, "/v2") or b"{}")
        metrics = _get(metrics_address, ports.metrics, "/metrics")
    except (OSError, HTTPException, ValueError):
        return None
    if about.get("name") != name or metrics is None or b"nv_" not in metrics:
        return None
    return str(about["version"])


def _get(address: str, port: int, path: str) -> bytes | None:
    """Return the page, or None where the server has another answer."""
    with closing(HTTPConnection(address, port, timeout=_TIMEOUT_S)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        return body if answer.status == OK else None
