"""The image for a CPU, compose.yaml and the proxy, as far as they can be checked without a container engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from support.commands import run_twinspire
from support.prometheus import free_port, until

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
CADDYFILE = ROOT / "deploy" / "caddy" / "Caddyfile"
HTTPS = ROOT / "deploy" / "compose.https.yaml"


def _instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} +(.*)$", DOCKERFILE, re.MULTILINE)


def _compose(*options: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "docker-compose"), *map(str, options), "config", "--format", "json"]
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp"), **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _services(*options: object, **variables: str) -> dict[str, Any]:
    done = _compose(*options, **variables)
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


class TestDockerfile:
    """The recipe of the image."""

    def test_hadolint_finds_nothing(self) -> None:
        """Hadolint accepts both recipes."""
        command = [BIN / "hadolint", "--config", ROOT / "deploy" / "hadolint.yaml"]
        done = subprocess.run(
            [*command, ROOT / "Dockerfile", ROOT / "Dockerfile.triton"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, "")

    def test_what_is_copied_exists_and_reaches_the_builder(self) -> None:
        """Every source of a COPY is in the repository and not in .dockerignore."""
        ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
        sources = [
            source
            for line in _instructions("COPY")
            if "--from" not in line
            for source in line.split()[:-1]
            if not source.startswith("--")
        ]
        assert len(sources) > 5
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not source.startswith(".")
            assert source.split("/")[0] not in ignored

    def test_the_extras_are_those_of_the_project(self) -> None:
        """EXTRAS names extras of pyproject.toml, and the line that lists packages finds theirs."""
        (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", DOCKERFILE, re.MULTILINE)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert {"cpu", "server", "gateway"} <= set(extras.split(",")) <= set(project["optional-dependencies"])
        (line,) = [line for line in _instructions("RUN") if "requirements.txt" in line]
        program = shlex.split(line.partition(" > ")[0])
        done = subprocess.run(
            [sys.executable, *program[1:]],
            cwd=ROOT,
            env={**os.environ, "EXTRAS": extras},
            capture_output=True,
            text=True,
            check=True,
        )
        found = done.stdout.splitlines()
        assert set(project["dependencies"]) < set(found)
        pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
        for requirement in found:
            name = re.split(r"[\[<>=;! ]", requirement)[0].lower()
            assert re.search(rf"^{re.escape(name)}==", pinned, re.MULTILINE), requirement

    def test_it_runs_without_rights(self) -> None:
        """The account is a number, which Kubernetes can tell from root's."""
        assert _instructions("USER") == ["10001:10001"]

    def test_the_first_process_passes_signals_on(self) -> None:
        """The entry point is tini, which is installed, before `twinspire`."""
        (entry,) = _instructions("ENTRYPOINT")
        assert json.loads(entry) == ["tini", "--", "twinspire"]
        assert re.search(r"apt-get install .*\btini\b", DOCKERFILE)

    def test_versions_are_constrained(self) -> None:
        """All packages have the versions of constraints.txt and come as wheels."""
        (line,) = [line for line in _instructions("RUN") if "--requirement" in line]
        assert "--constraint constraints.txt" in line
        assert "--only-binary :all:" in line
        assert all("--no-cache-dir" in line for line in _instructions("RUN") if "pip install" in line)


class _Ready(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        """Say whether it is ready."""
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.end_headers()
        self.wfile.write(b'{"reasons": ["no server"]}')

    def log_message(self, *_: object) -> None:  # type: ignore[override]
        """Log nothing."""


@contextmanager
def _ready(status: int) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("_", (_Ready,), {"status": status}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class TestHealthCheck:
    """The program that the image's HEALTHCHECK runs."""

    def _check(self, *ports: int) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-I", ROOT / "deploy" / "docker" / "healthcheck.py", *map(str, ports)]
        return subprocess.run(program, capture_output=True, text=True, check=False)

    def test_the_port_that_answers_counts(self) -> None:
        """With nothing on the first port, the second one says whether the container is healthy."""
        with _ready(200) as port:
            assert self._check(free_port(), port).returncode == 0

    def test_not_ready_is_not_healthy(self) -> None:
        """A command that is not ready is not healthy, and the check says why."""
        with _ready(503) as port, _ready(200) as other:
            done = self._check(port, other)
        assert done.returncode == 1
        assert "no server" in done.stdout

    def test_nothing_is_not_healthy(self) -> None:
        """Where nothing listens, the check fails."""
        assert self._check(free_port(), free_port()).returncode == 1

    def test_the_image_asks_the_default_ports(self) -> None:
        """Its ports are the defaults of the commands and are exposed."""
        text = (ROOT / "deploy" / "docker" / "healthcheck.py").read_text(encoding="utf-8")
        (line,) = re.findall(r"^PORTS = \((.*)\)$", text, re.MULTILINE)
        (exposed,) = _instructions("EXPOSE")
        assert set(line.split(", ")) == {"8080", "8003"} <= set(exposed.split())


class TestCompose:
    """compose.yaml, read by Docker Compose."""

    @pytest.mark.parametrize("profile", ["cpu", "nvidia"])
    def test_a_profile_starts_one_kind_of_server(self, profile: str) -> None:
        """Either profile has a server by the name `triton`, two gateways, their proxy, Prometheus and Grafana."""
        services = _services("--profile", profile)
        common = {"gateway-1", "gateway-2", "proxy", "prometheus", "grafana"}
        assert set(services) - common == ({"build", "triton"} if profile == "cpu" else {"triton-nvidia"})
        servers = [
            name
            for name, service in services.items()
            if name == "triton" or "triton" in (service.get("networks", {}).get("models") or {}).get("aliases", ())
        ]
        assert len(servers) == 1

    @pytest.mark.parametrize("profile", ["cpu", "nvidia"])
    def test_only_this_machine_connects(self, profile: str) -> None:
        """All published ports are bound to loopback, and none of them is a server's of models."""
        services = _services("--profile", profile)
        published = {
            name: [port["host_ip"] for port in service["ports"]]
            for name, service in services.items()
            if "ports" in service
        }
        assert set(published) == {"proxy", "prometheus", "grafana"}
        assert {address for addresses in published.values() for address in addresses} == {"127.0.0.1"}

    def test_containers_have_no_rights(self) -> None:
        """No container gains rights, and ours cannot write to their images."""
        for name, service in {**_services("--profile", "cpu"), **_services("--profile", "nvidia")}.items():
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
            assert service.get("read_only") or name == "grafana", name

    def test_others_need_https_and_keys(self) -> None:
        """The file that opens the gateway to others does not without a name for the certificate, and keys."""
        assert _compose("-f", "compose.yaml", "-f", HTTPS, "--profile", "cpu", SITE="a.example").returncode != 0
        keys = {"TWINSPIRE_GATEWAY_KEYS": "0123456789abcdef"}
        assert _compose("-f", "compose.yaml", "-f", HTTPS, "--profile", "cpu", **keys).returncode != 0
        services = _services("-f", "compose.yaml", "-f", HTTPS, "--profile", "cpu", SITE="a.example", **keys)
        assert services["proxy"]["environment"]["ADDRESS"] == "a.example"
        assert services["gateway-2"]["environment"] == keys

    def test_the_command_knows_every_option(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Commands of the containers are those of `twinspire`, with options that they have."""
        services = _services("--profile", "cpu")
        for name in ("build", "triton", "gateway-1", "gateway-2"):
            command, *arguments = services[name]["command"]
            known = run_twinspire(capsys, command, "--help").out
            for argument in arguments:
                if argument.startswith("--"):
                    assert argument in known, (name, argument)

    def test_prometheus_watches_what_is_started(self) -> None:
        """The targets are services or names of them, at ports that their commands open."""
        services = {**_services("--profile", "cpu"), **_services("--profile", "nvidia")}
        config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "compose.yml").read_text(encoding="utf-8"))
        names = set(services)
        for service in services.values():
            for network in (service.get("networks") or {}).values():
                names |= set((network or {}).get("aliases", ()))
        for job in config["scrape_configs"]:
            for each in job.get("dns_sd_configs", ()):
                assert set(each["names"]) <= names
            for each in job.get("static_configs", ()):
                for target in each["targets"]:
                    name, port = target.split(":")
                    assert port in services[name]["command"]

    def test_files_that_are_mounted_exist(self) -> None:
        """Every file of the repository that a container mounts is there."""
        for service in _services("--profile", "cpu").values():
            for volume in service.get("volumes", ()):
                if volume["type"] == "bind" and volume["target"] != "/pictures":
                    assert Path(volume["source"]).exists(), volume


class TestProxy:
    """Caddy with deploy/caddy/Caddyfile."""

    def test_it_is_formatted(self) -> None:
        """`caddy fmt` changes nothing."""
        done = subprocess.run([BIN / "caddy", "fmt", CADDYFILE], capture_output=True, text=True, check=False)
        assert done.stdout == CADDYFILE.read_text(encoding="utf-8")

    def test_adding_pictures_is_not_repeated(self, tmp_path: Path) -> None:
        """A POST that a gateway lost goes to the next one, unless it adds items."""
        seen: list[str] = []
        added: list[int] = []

        class _Dying(_Ready):
            def do_POST(self) -> None:
                """Read the request, then end without an answer."""
                seen.append(self.path)
                self.rfile.read(int(self.headers["Content-Length"]))
                self.connection.close()

        class _Living(_Ready):
            def do_POST(self) -> None:
                """Answer with what came."""
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (_Dying, _Living)]
        for server in servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        port = free_port()
        environment = {
            **os.environ,
            "ADDRESS": f"http://127.0.0.1:{port}",
            "GATEWAYS": " ".join(f"127.0.0.1:{server.server_port}" for server in servers),
            "HOME": str(tmp_path),
        }
        command = [BIN / "caddy", "run", "--config", CADDYFILE, "--adapter", "caddyfile"]
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            try:
                until(lambda: _answers(port))
                body = b"x" * 300_000
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                    while not {"/v1/search", "/v1/items"} <= set(seen):
                        found = client.post("/v1/search", content=body)
                        assert (found.status_code, found.content) == (200, body)
                        added.append(client.post("/v1/items", content=body).status_code)
            finally:
                process.terminate()
                for server in servers:
                    server.shutdown()
                    server.server_close()
        assert set(added) <= {200, 502}
        assert added.count(502) == seen.count("/v1/items")


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
