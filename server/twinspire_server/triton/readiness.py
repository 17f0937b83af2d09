"""Asking a server whether it is the one that was started, and ready."""

from __future__ import annotations

import http.client
import json
import socket

from twinspire_server.triton.ports import Ports

_TIMEOUT_S = 2.0


def ready_version(address: str, ports: Ports, name: str) -> str | None:
    """Return the version of the server called `name` when all its services and models are ready, else None.

    Another server that took one of the ports is not mistaken for it: it has another name.
    """
    connection = http.client.HTTPConnection(address, ports.http, timeout=_TIMEOUT_S)
    try:
        if _get(connection, "/v2/health/ready")[0] != http.client.OK:
            return None
        status, body = _get(connection, "/v2")
        about = json.loads(body) if status == http.client.OK else None
        if not isinstance(about, dict) or about.get("name") != name:
            return None
        for port in (ports.grpc, ports.metrics):  # the metrics' service is started last
            socket.create_connection((address, port), timeout=_TIMEOUT_S).close()
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return str(about["version"])


def _get(connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()
