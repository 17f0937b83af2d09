"""A gateway in front of a real Triton that speaks TLS, while it is there and when it has gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from support.live_gateway import EMBEDDINGS, Gateway, eventually, serving
from twinspire import sample_bundle
from twinspire.errors import MissingDependencyError
from twinspire.towers import TlsOptions
from twinspire_server.gateway.settings import GatewaySettings
from twinspire_server.repository import build_repository
from twinspire_server.triton import ServerTls, TritonServer, find_triton

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The sample bundle on a Triton that wants TLS and writes an access log."""
    try:
        find_triton()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("triton")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "root.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    build_repository([sample_bundle()], folder / "repository", threads=1, description=True)
    tls = ServerTls(certificate=folder / "certificate.pem", key=folder / "key.pem")
    with TritonServer(folder / "repository", tls=tls, access_log=folder / "access.log") as server:
        yield server


@pytest.fixture(scope="module")
def gateway(triton: TritonServer) -> Iterator[Gateway]:
    """A gateway in front of it, which gives up after two seconds."""
    tls = TlsOptions(root_certificates=triton.repository.parent / "root.pem")
    with serving(GatewaySettings(servers=(triton.grpc_url,), server_tls=tls), deadline=2.0) as found:
        yield found


def test_the_servers_log_has_the_id_of_the_request(triton: TritonServer, gateway: Gateway) -> None:
    """What the gateway asks a Triton for has an id that begins with that of the HTTP request."""
    assert gateway.post(headers={"X-Request-ID": "from-the-client"}).status_code == 200
    log = Path(triton.repository.parent / "access.log")
    assert eventually(lambda: "from-the-client." in log.read_text())


def test_a_server_that_went_away_is_503(triton: TritonServer, gateway: Gateway) -> None:
    """Requests are 503 with Retry-After, single and batch, within the deadline; the gateway is alive and not ready."""
    assert httpx.get(gateway.url + "/readyz", timeout=30).status_code == 200
    triton.stop()
    for texts in ("a red car", ["a red car"] * 100):
        answer = gateway.post({"model": "scenes", "input": texts})
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json()["error"]["message"]
    assert eventually(lambda: httpx.get(gateway.url + "/readyz", timeout=30).status_code == 503)
    assert triton.grpc_url not in httpx.get(gateway.url + "/readyz", timeout=30).text
    assert httpx.get(gateway.url + "/livez").status_code == 200
    assert gateway.app.state.embedder.pending == 0
    assert gateway.metric("twinspire_gateway_requests_total", route=EMBEDDINGS, dialect="openai", status="503") == 2
