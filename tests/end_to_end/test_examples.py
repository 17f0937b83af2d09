"""The programs in examples/ and the commands and programs in docs/ run."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from twinspire import sample_bundle
from twinspire.errors import MissingDependencyError
from twinspire_eval.scenes import Split, draw_dataset
from twinspire_server.repository import build_repository
from twinspire_server.triton import TritonServer, find_triton

ROOT = Path(__file__).parents[2]
EXAMPLES, DOCS = ROOT / "examples", ROOT / "docs"


def run(name: str, *arguments: object, folder: Path) -> list[str]:
    """Run an example in `folder` with warnings as errors and return the lines that it prints."""
    return run_in(folder, "-W", "error", EXAMPLES / f"{name}.py", *arguments)


def run_in(folder: Path, *arguments: object) -> list[str]:
    """Run Python with these arguments in `folder` and return the lines that it prints."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout.splitlines()


def environment(**further: str) -> dict[str, str]:
    """Return the environment of a program that imports what these tests import."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **further}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folder that the docs work in: 500 scenes, a table of their captions, and an index of both."""
    path = tmp_path_factory.mktemp("docs")
    draw_dataset(path / "photos", 500, seed=7, split=Split.HELDOUT)
    annotations = json.loads((path / "photos" / "captions.json").read_text(encoding="utf-8"))["annotations"]
    with (path / "captions.csv").open("w", encoding="utf-8") as table:
        table.write("image,caption,year,camera\n")
        for annotation in annotations:
            if annotation["language"] == "en":
                number = annotation["image_id"]
                camera = ("X100", "K-3", "Pixel")[number % 3]
                table.write(f'{number:06d}.jpg,"{annotation["caption"]}",{2015 + number % 8},{camera}\n')
    run_in(path, "-m", "twinspire", "index", "add", "cap.index", "photos", "--captions", "captions.csv")
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """Serve the repository `models` of the sample and return the address."""
    try:
        find_triton()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    build_repository([sample_bundle()], folder / "models")
    with TritonServer(folder / "models") as triton:
        yield triton.grpc_url


def test_commands_of_the_docs(folder: Path) -> None:
    """Each command on the pages about search ends well, or with the error that the page shows."""
    launcher = f'twinspire() {{ {sys.executable} -m twinspire "$@"; }}; '
    pages = ("start/search.md", "guides/index-millions.md", "guides/filters-hybrid.md", "guides/duplicates.md")
    for page in pages:
        for block in re.findall(r"```console\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL):
            for line, shown in re.findall(r"^\$ (.*)\n((?:[^$].*\n)?)", block, re.MULTILINE):
                if "scenes draw" in line:
                    continue  # they are there
                done = subprocess.run(
                    ["bash", "-c", launcher + line],
                    cwd=folder,
                    env=environment(),
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == (2 if shown.startswith("error:") else 0), f"{line}\n{done.stderr}"


def test_programs_of_the_docs(folder: Path, server: str) -> None:
    """Each Python block of the pages about search and clients runs, against a real server."""
    count = 0
    for page in ("start/search.md", "start/clients.md", "guides/filters-hybrid.md", "guides/duplicates.md"):
        text = (DOCS / page).read_text(encoding="utf-8").replace("127.0.0.1:8001", server)
        for program in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            run_in(folder, "-c", program)
            count += 1
    assert count >= 6


def test_every_example_is_run_here() -> None:
    """No example is without a test."""
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


def test_search_folder(tmp_path: Path) -> None:
    """A folder's images are found best first, and a second run with the same index encodes nothing."""
    draw_dataset(tmp_path / "scenes", 24, seed=7, split=Split.HELDOUT)
    first, *hits = run("search_folder", "scenes", "--index", "scenes.index", folder=tmp_path)
    assert first.startswith("24 images added")
    scores = [float(line.split()[1]) for line in hits]
    assert len(hits) == 3
    assert scores == sorted(scores, reverse=True)
    again, *same_hits = run("search_folder", "scenes", "--index", "scenes.index", folder=tmp_path)
    assert again.startswith("0 images added, 24 known")
    assert same_hits == hits


def test_serve_and_query(tmp_path: Path) -> None:
    """The server's embeddings are those of the engines in this process."""
    try:
        find_triton()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    lines = run("serve_and_query", folder=tmp_path)
    (difference,) = re.findall(r"largest difference (\S+)", "\n".join(lines))
    assert float(difference) < 1e-6
    assert lines[0] == "built scenes_image, scenes_text, scenes_reranker"


def test_encode_async(tmp_path: Path, server: str) -> None:
    """Servers give the cosines of this process, where nothing is computed unless no server is available."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        away = f"127.0.0.1:{listener.getsockname()[1]}"

    def numbers(lines: list[str]) -> list[float]:
        return [float(number) for line in lines for number in re.findall(r"-?\d\.\d\d", line)]

    here = numbers(run("encode_async", folder=tmp_path))
    assert len(here) == 9
    *cosines, first, second, local = run("encode_async", "--server", server, "--server", away, folder=tmp_path)
    assert numbers(cosines) == pytest.approx(here, abs=0.02)  # the provider may be another
    assert first == f"{server}: 3 calls, 0 failed"
    assert second.startswith(f"{away}: 0 calls")
    assert local == "this process: 0 calls"
    assert run("encode_async", "--server", away, folder=tmp_path)[-1] == "this process: 3 calls"


def test_evaluate(tmp_path: Path) -> None:
    """R@1, R@5 and R@10 are printed for both languages and directions, within their intervals."""
    lines = run("evaluate", "--data", "scenes:60:7", folder=tmp_path)
    figures = [re.findall(r"[01]\.\d{3}", line) for line in lines if " r" in line]
    assert len(figures) == 12
    for value, low, high in (map(float, row) for row in figures):
        assert low <= value <= high
        assert value > 0.5


def test_quantize(tmp_path: Path) -> None:
    """The new bundle has int8 engines beside the fp32 ones, a third of their size, each with a measured cosine."""
    lines = run("quantize", "-o", tmp_path / "int8", folder=tmp_path)
    engines = {tuple(line.split()[:2]): line for line in lines if " MB " in line}
    sizes = {key: float(line.split()[2]) for key, line in engines.items()}
    for tower in ("image", "text"):
        assert sizes[tower, "int8"] < sizes[tower, "fp32"] / 3
        assert float(engines[tower, "int8"].split()[-1]) > 0.99
    assert (tmp_path / "int8" / "bundle.json").exists()


def test_custom_store(tmp_path: Path) -> None:
    """A registered store is filled and searched by its URI."""
    lines = run("custom_store", folder=tmp_path)
    assert [line.partition(":")[0] for line in lines] == ["a red bus", "a blue boat"]
    assert all(float(line.split()[-2]) > 0 for line in lines)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    """Start the app over an index of 24 scenes and return its address."""
    pytest.importorskip("fastapi", reason="needs fastapi")
    pytest.importorskip("uvicorn", reason="needs uvicorn")
    draw_dataset(tmp_path / "scenes", 24, seed=7, split=Split.HELDOUT)
    run("search_folder", "scenes", "--index", "photos.index", folder=tmp_path)
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "fastapi_app:app", "--port", "0"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(INDEX="photos.index"), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stderr)
            yield next(match[0] for match in found if match is not None)
        finally:
            process.terminate()


def fetch(url: str, document: object = None) -> tuple[int, Any]:
    """Return the status and the JSON of an answer; a document is sent by POST."""
    data = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_fastapi_app(service: str) -> None:
    """GET and POST give the same hits, and a request that cannot be answered is a 400 that names what is wrong."""
    status, got = fetch(f"{service}/search?{urllib.parse.urlencode({'q': 'a red bus', 'k': 3})}")
    assert (status, len(got["hits"])) == (200, 3)
    assert fetch(f"{service}/search", {"query": "a red bus", "k": 3})[1]["hits"] == got["hits"]
    status, refused = fetch(f"{service}/search", {"query": "a red bus", "kk": 3})
    assert status == 400
    assert "kk" in refused["error"]
    assert fetch(f"{service}/search", {"query": [{"image": "/etc/passwd", "weight": 1.0}]})[0] == 400
