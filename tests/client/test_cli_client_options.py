"""How commands open their client: in this process with a runtime of choice, or on a server."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from PIL import Image

from support.commands import Ran, run_twinspire
from support.description import describing
from twinspire.bundle import Bundle
from twinspire.index import Index

pytestmark = pytest.mark.slow

Run = Callable[..., Ran]
# Each command that encodes, up to its options.
COMMANDS = {
    "search": ("search", "idx", "red cat"),
    "classify": ("classify", "photos", "-l", "labels.txt"),
    "index add": ("index", "add", "idx", "photos"),
    "index sync": ("index", "sync", "idx", "photos"),
    "index watch": ("index", "watch", "idx", "photos"),
}


@pytest.fixture
def run(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `twinspire` in a folder with three images, labels and the tiny bundle as `tiny`."""
    (tmp_path / "tiny").symlink_to(tiny.bundle.path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "labels.txt").write_text("red cat\nblue dog\n")
    for number, name in enumerate("abc"):
        noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run_main(*arguments: object) -> Ran:
        return run_twinspire(capfd, *arguments)

    return run_main


@pytest.fixture
def engines_stay_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a local engine is opened."""
    import twinspire.towers.local

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a local engine was opened")

    monkeypatch.setattr(twinspire.towers.local, "open_sessions", fail)


def refused(ran: Ran, *words: str) -> None:
    """Check for status 2 and one error that names these words."""
    assert (ran.status, ran.out) == (2, "")
    assert len(re.findall("^error: ", ran.err, re.MULTILINE)) == 1  # gRPC logs a failed handshake on its own
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err, ran.err


@pytest.mark.usefixtures("engines_stay_shut")
def test_a_server_encodes_for_every_command(run: Run, start_fake: Callable[..., Any]) -> None:
    """With --server images and texts are encoded there, and no engine is opened here."""
    server = start_fake()
    remote = ("-b", "tiny", "--server", server.url)
    ran = run("index", "add", "idx", "photos", *remote)
    assert ran.status == 0, ran.err
    assert sum(server.rows()) == 3
    assert run("index", "sync", "synced", "photos", *remote).status == 0
    assert sum(server.rows()) == 6
    assert len(run("search", "idx", "red cat", *remote).out.splitlines()) == 3
    assert len(run("classify", "photos", "-l", "labels.txt", *remote).out.splitlines()) == 6
    with Index.open("idx") as index:
        found = index.vectors(range(3))
        places = [Path(item.uri) for item in index.get(range(3))]
    pixels = np.stack([np.asarray(Image.open(path)) for path in places])
    difference = np.abs(found - server.tiny.model.encode_images(pixels)).max()
    assert difference < 1e-6, f"largest difference {difference:.2e}"


def test_several_servers_and_a_fallback(
    run: Run, start_fake: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """--server takes addresses separated by commas; with --fallback commands work, and warn, while none is there."""
    servers = [start_fake(), start_fake()]
    ran = run("index", "add", "idx", "photos", "-b", "tiny", "--server", ",".join(server.url for server in servers))
    assert ran.status == 0, ran.err
    assert sum(sum(server.rows()) for server in servers) == 3
    ran = run("search", "idx", "red cat", "-b", "tiny", "--server", "127.0.0.1:1,127.0.0.1:2", "--fallback")
    assert (ran.status, len(ran.out.splitlines())) == (0, 3), ran.err
    assert "127.0.0.1:1" in caplog.text


@pytest.mark.usefixtures("engines_stay_shut")
def test_tls_options_reach_the_connection(run: Run, start_fake: Callable[..., Any], tmp_path: Path) -> None:
    """With the authority and a client certificate the server answers; without either it does not."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    credentials = grpc.ssl_server_credentials(
        [(issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())],
        root_certificates=authority.cert_pem.bytes(),
        require_client_auth=True,
    )
    remote = ("-b", "tiny", "--server", start_fake(credentials=credentials).url, "--deadline", "2")
    both = ("--tls-certificate", "certificate.pem", "--tls-key", "key.pem")
    assert run("index", "add", "idx", "photos", *remote, "--tls-ca", "ca.pem", *both).status == 0
    for options in ((), ("--tls",), ("--tls-ca", "ca.pem"), both):
        ran = run("search", "idx", "red cat", *remote, *options)
        refused(ran, remote[3])
        assert ("TLS?" in ran.err) == (not options and "Socket closed" in ran.err)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_server_that_is_not_there_is_an_error(run: Run, command: str) -> None:
    """Every command gives up within the deadline, and no index appears."""
    if command == "search":
        assert run(*COMMANDS["index add"], "-b", "tiny").status == 0
    ran = run(*COMMANDS[command], "-b", "tiny", "--server", "127.0.0.1:1", "--deadline", "0.3")
    refused(ran, "127.0.0.1:1")
    assert Path("idx").exists() == (command == "search")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "index watch"])  # it waits
def test_an_overloaded_server_is_an_error(run: Run, start_fake: Callable[..., Any], command: str) -> None:
    """Every command gives up at the deadline with one message; what was to be added is added by the next try."""
    if command == "search":
        assert run(*COMMANDS["index add"], "-b", "tiny").status == 0
    server = start_fake(
        hook=lambda server, request, context: context.abort(
            grpc.StatusCode.UNAVAILABLE, "[request id: <id_unknown>] Exceeds maximum queue size"
        )
    )
    remote = ("-b", "tiny", "--server", server.url)
    refused(run(*COMMANDS[command], *remote, "--deadline", "0.3"), server.url, "queue size")
    server.hook = None
    again = run(*COMMANDS[command], *remote)
    assert again.status == 0, again.err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--server h:1 --precision int8", ["--server", "--precision"]),
        ("--server h:1 --provider cpu", ["--server", "--provider"]),
        ("--server h:1 --streams 2", ["--server", "--streams"]),
        ("--deadline 3", ["--deadline", "--server"]),
        ("--tls", ["--tls", "--server"]),
        ("--fallback", ["--fallback", "--server"]),
        ("--server h:1,h:1", ["h:1", "twice"]),
        ("--server h:1,", ["host:port"]),
        ("--tls-ca ca.pem", ["--tls-ca", "--server"]),
        ("--server h:1 --tls-key key.pem", ["--tls-certificate", "--tls-key"]),
        ("--server h:1 --tls-ca nope.pem", ["nope.pem"]),
        ("--server h:1 --tls-ca labels.txt", ["labels.txt", "PEM"]),
        ("--server http://h:1", ["http://h:1", "host:port"]),
        ("--server h:1 --deadline 0", ["--deadline"]),
        ("--server h:1 --deadline 1e10", ["--deadline", "1e9"]),
        ("--server h:1 --deadline nan", ["--deadline", "nan"]),
        ("--precision int4", ["int4", "fp32"]),
        ("--provider npu", ["npu", "openvino"]),
        ("--threads 0", ["--threads", "0"]),
        ("--streams 0", ["--streams", "0"]),
    ],
)
def test_options_that_do_not_fit_are_refused_first(run: Run, command: str, options: str, words: list[str]) -> None:
    """Status 2 and one message, before the bundle is looked at (here it is not there) and before an index is made."""
    refused(run(*COMMANDS[command], "-b", "nope", *options.split()), *words)
    assert not Path("idx").exists()


def test_the_runtime_can_be_chosen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """--precision, --provider, --threads and --streams are what the local towers are opened with."""
    from twinspire.towers import LocalTowers

    opened: list[str] = []
    plain = LocalTowers.__init__

    def noted(self: LocalTowers, *arguments: Any, **options: Any) -> None:
        plain(self, *arguments, **options)
        opened.append(str(self.runtime))

    monkeypatch.setattr(LocalTowers, "__init__", noted)
    for precision in ("fp32", "int8"):
        options = ("--precision", precision, "--provider", "cpu", "--threads", "2", "--streams", "2")
        ran = run("classify", "photos", "-l", "labels.txt", "-b", "tiny", *options)
        assert ran.status == 0, ran.err
        assert re.search(rf"cpu {precision}, threads: 2, streams: 2", opened[-1])
    refused(run("classify", "photos", "-l", "labels.txt", "-b", "tiny", "--precision", "fp16"), "fp16")


def test_a_servers_own_bundle(
    run: Run, tiny: Any, start_fake: Callable[..., Any], engines_stay_shut: None, tmp_path: Path
) -> None:
    """With --server an index is filled and searched without any bundle here, and remembers none."""
    server = start_fake(hook=describing(tiny.bundle))
    assert run("index", "add", "idx", "photos", "--server", server.url).status == 0
    with Index.open(tmp_path / "idx") as index:
        assert (index.space, index.bundle) == (tiny.bundle.space, None)
    assert run("search", "idx", "red cat", "--server", server.url).status == 0


def test_the_bundle_of_the_indexs_space_is_chosen(
    run: Run, tiny: Any, make_tiny: Callable[..., Any], start_fake: Callable[..., Any]
) -> None:
    """Of a server with several bundles, an index takes that of its space; elsewhere --model names one."""
    other = make_tiny("other", seed=5).bundle
    other = Bundle(other.path, replace(other.manifest, name="other"))
    server = start_fake(hook=describing(other, tiny.bundle))
    ran = run("index", "add", "idx", "photos", "--server", server.url)
    assert ran.status == 2
    assert "other, tiny" in ran.err
    assert run("index", "add", "idx", "photos", "--server", server.url, "--model", "tiny").status == 0
    assert run("search", "idx", "red cat", "--server", server.url).status == 0


def test_a_name_without_server_is_refused(run: Run) -> None:
    """--model chooses among a server's bundles."""
    ran = run("search", "idx", "red cat", "--model", "tiny")
    assert (ran.status, "--server" in ran.err) == (2, True)
