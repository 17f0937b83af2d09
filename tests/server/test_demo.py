"""The demo, small: images go in and words find them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from twinspire import Index, sample_bundle
from twinspire.errors import InputError, MissingDependencyError
from twinspire_server.demo import QUERIES, DemoRuntime, run_demo

IMAGES = 40


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the demo."""
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.mark.slow
def test_the_report_has_the_promised_form(out: Path) -> None:
    """The JSON names runtime, speed, recall both ways in both languages, and seven queries with their hits."""
    stages: dict[str, int] = {}
    report = run_demo(
        out,
        bundle=sample_bundle(),
        images=IMAGES,
        runtime=DemoRuntime.LOCAL,
        on_progress=lambda stage, done, total: stages.update({stage: done}),
    )
    assert stages == {"drawing": IMAGES, "indexing": IMAGES}
    document = json.loads(json.dumps(report.to_json()))
    assert set(document) == {
        "runtime",
        "triton_version",
        "mean_batch_size",
        "images",
        "images_per_s",
        "recall",
        "queries",
    }
    assert document["runtime"] == "local"
    assert document["triton_version"] is None
    assert document["mean_batch_size"] is None
    assert document["images"] == IMAGES
    assert document["images_per_s"] > 0
    assert set(document["recall"]) == {"en", "zh"}
    for both in document["recall"].values():
        assert set(both) == {"text_to_image", "image_to_text"}
        for recall in both.values():
            assert 0 < recall["r1"] <= recall["r5"] <= recall["r10"] <= 1
    assert [query["query"] for query in document["queries"]] == [*QUERIES, "query.jpg"]
    for query in document["queries"]:
        scores = [hit["score"] for hit in query["hits"]]
        assert scores == sorted(scores, reverse=True)
        assert all((out / "scenes" / hit["file"]).is_file() for hit in query["hits"])
    assert report.sheet.is_file()


def test_the_same_scene_drawn_again_finds_its_image(out: Path) -> None:
    """The image query shows the first scene in another drawing, and the first hit is the first image."""
    report = run_demo(out, bundle=sample_bundle(), images=IMAGES, runtime=DemoRuntime.LOCAL)
    assert Path(report.answers[-1].hits[0].uri).name == "000000.jpg"


@pytest.mark.slow
def test_the_server_makes_the_batches(tmp_path: Path) -> None:
    """Through Triton the images go singly, are gathered into batches, and are found as in this process."""
    served = run_demo(tmp_path / "served", bundle=sample_bundle(), images=5 * IMAGES, runtime=DemoRuntime.TRITON)
    local = run_demo(tmp_path / "local", bundle=sample_bundle(), images=5 * IMAGES, runtime=DemoRuntime.LOCAL)
    assert served.runtime is DemoRuntime.TRITON
    assert served.triton_version
    assert served.mean_batch_size is not None
    assert served.mean_batch_size > 1
    assert served.recall == local.recall
    assert [[hit.uri.rsplit("/", 1)[1] for hit in answer.hits] for answer in served.answers] == [
        [hit.uri.rsplit("/", 1)[1] for hit in answer.hits] for answer in local.answers
    ]


@pytest.mark.slow
def test_auto_says_why_it_stays_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no Triton can be started `auto` runs here and gives the reason; `triton` is an error."""
    import twinspire_server.triton.launch as launch

    def nothing() -> None:
        raise MissingDependencyError("nvidia-pytriton", "server", "a Triton server")

    monkeypatch.setattr(launch, "find_triton", nothing)
    report = run_demo(tmp_path / "auto", bundle=sample_bundle(), images=IMAGES)
    assert report.runtime is DemoRuntime.LOCAL
    assert report.fallback is not None
    assert "nvidia-pytriton" in report.fallback
    with pytest.raises(MissingDependencyError) as caught:
        run_demo(tmp_path / "triton", bundle=sample_bundle(), images=IMAGES, runtime=DemoRuntime.TRITON)
    assert (caught.value.package, caught.value.extra) == ("nvidia-pytriton", "server")


def test_a_strangers_folder_is_left_alone(tmp_path: Path) -> None:
    """A folder that no demo made is refused and keeps its files; an earlier demo's keeps what the demo did not make."""
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match="empty"):
        run_demo(tmp_path, bundle=sample_bundle(), images=IMAGES)
    assert [file.name for file in tmp_path.iterdir()] == ["photo.jpg"]


def test_the_index_has_captions_and_metadata(tmp_path: Path) -> None:
    """Each image has a caption in both languages, and metadata that a filter can use."""
    run_demo(tmp_path, bundle=sample_bundle(), images=IMAGES, runtime=DemoRuntime.LOCAL)
    with Index.open(tmp_path / "index") as index:
        items = list(index.items())
        assert all(len(item.caption.splitlines()) == 2 for item in items if item.caption is not None)
        assert all(item.metadata["objects"] in (1, 2, 3) for item in items)
        assert 0 < index.count(where="colours contains 'red' and background != 'sea'") < IMAGES


@pytest.mark.slow
def test_the_command_ends_with_the_gateway_and_starts_it(tmp_path: Path) -> None:
    """It prints the command of the demo's page; with --open the page is served and given to the browser."""
    seen = tmp_path / "seen"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}\n')
    browser.chmod(0o755)
    command = [Path(sys.executable).with_name("twinspire"), "demo", "-o", tmp_path / "a demo", "--images", "8"]
    environment = {**os.environ, "BROWSER": str(browser)}
    with subprocess.Popen(
        [*command, "--runtime", "local", "--open"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            lines = []
            while not lines or not lines[-1].startswith("gateway at "):
                lines.append(process.stdout.readline())
                assert lines[-1], lines
            url = lines[-1].split()[-1]
            assert f"twinspire gateway --index '{tmp_path}/a demo/index'" in lines[-2]
            assert "<title>twinspire</title>" in httpx.get(url).text
            for _ in range(100):
                if seen.is_file() and seen.read_text():
                    break
                time.sleep(0.1)
            assert seen.read_text().strip() == url
        finally:
            process.terminate()
            process.wait(30)
