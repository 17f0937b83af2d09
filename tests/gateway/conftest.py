"""A gateway that listens: `twinspire gateway` with the sample bundle, in a process of its own."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from support.browser import running_chromium
from support.gateway import served
from support.page_index import PageIndex, make_page_index
from twinspire import Client, Index, sample_bundle
from twinspire.ingest import Captions, IngestOptions, add_images, add_texts
from twinspire.stores import BundleReference
from twinspire_eval.scenes import Language, Split, scene_set
from twinspire_server.gateway.settings import GatewaySettings

TWINSPIRE = Path(sys.executable).with_name("twinspire")


@contextmanager
def running_gateway(*options: str | Path) -> Iterator[str]:
    """Run `twinspire gateway` with options on a free port; yield its address."""
    command: Sequence[str | Path] = [TWINSPIRE, "gateway", "--port", "0", *options]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("gateway at http://")
            yield line.split()[-1]
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="session")
def gateway() -> Iterator[str]:
    """The address of a gateway that computes the sample bundle in its process."""
    with running_gateway("--bundle", sample_bundle()) as url:
        yield url


@pytest.fixture(scope="session")
def http(gateway: str) -> Iterator[httpx.Client]:
    """An HTTP client of the gateway."""
    with httpx.Client(base_url=gateway, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def local_client() -> Iterator[Client]:
    """The client whose vectors the gateway must give."""
    with Client.local(sample_bundle()) as client:
        yield client


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Three encoded pictures: a JPEG, a PNG and a lossless WebP, 120 x 90 pixels."""
    generator = np.random.default_rng(0)
    made = []
    for encoding in ("JPEG", "PNG", "WEBP"):
        coarse = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        file = io.BytesIO()
        options = {"lossless": True} if encoding == "WEBP" else {}
        Image.fromarray(coarse).resize((120, 90)).save(file, encoding, **options)
        made.append(file.getvalue())
    return made


@pytest.fixture(scope="session")
def data_uris(pictures: list[bytes]) -> list[str]:
    """The pictures as data URIs."""
    types = ("jpeg", "png", "webp")
    return [
        f"data:image/{of};base64,{base64.b64encode(picture).decode()}"
        for of, picture in zip(types, pictures, strict=True)
    ]


@pytest.fixture(scope="session")
def run_gateway() -> Callable[..., AbstractContextManager[str]]:
    """A context manager that runs a gateway with options in a process of its own and gives its address."""
    return running_gateway


@pytest.fixture(scope="session")
def scenes_index(local_client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 24 pictures, ids 0 to 23, with captions and metadata, and of two texts."""
    folder = tmp_path_factory.mktemp("scenes")
    scenes = scene_set(24, seed=3, split=Split.HELDOUT)
    files = [folder / f"scene{number}.jpg" for number in range(len(scenes))]
    for scene, file in zip(scenes, files, strict=True):
        scene.draw().save(file, quality=92)
    captions = {file.name: [scene.captions[Language.ENGLISH]] for scene, file in zip(scenes, files, strict=True)}
    metadata = {
        file.name: {
            "year": 2010 + number % 4,
            "tags": ["even" if number % 2 == 0 else "odd"],
            "city": f"town{number % 3}",
        }
        for number, file in enumerate(files)
    }
    texts = folder / "texts.txt"
    texts.write_text("a red house\na blue boat\n", encoding="utf-8")
    with Index.create(
        folder / "index", space=local_client.space, dim=local_client.dim, bundle=BundleReference("scenes")
    ) as index:
        source = Captions(captions, folder=folder, metadata=metadata)
        add_images(index, local_client, files, IngestOptions(captions=source))
        add_texts(index, local_client, [texts])
    return folder / "index"


@pytest.fixture(scope="session")
def search_gateway(scenes_index: Path) -> Iterator[str]:
    """The address of a gateway that searches `scenes_index`, in this process."""
    with served(GatewaySettings(index=str(scenes_index))) as url:
        yield url


@pytest.fixture
def api(search_gateway: str) -> Iterator[httpx.Client]:
    """An HTTP client of a gateway with an index."""
    with httpx.Client(base_url=search_gateway, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser, while a module's tests run: Playwright keeps an event loop running, where others start their own."""
    with running_chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def page_index(local_client: Client, tmp_path_factory: pytest.TempPathFactory) -> PageIndex:
    """An index of 130 pictures of many shapes, and of two texts, that the page shows."""
    return make_page_index(local_client, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="session")
def page_gateway(page_index: PageIndex) -> Iterator[str]:
    """The address of a gateway that searches `page_index`, in this process."""
    with served(GatewaySettings(index=str(page_index.path))) as url:
        yield url


@pytest.fixture
def page(chromium: Browser, page_gateway: str) -> Iterator[Page]:
    """A tab of a browser in English on a desktop; `goto("/...")` opens the page."""
    with chromium.new_context(
        base_url=page_gateway, locale="en-US", viewport={"width": 1280, "height": 800}, reduced_motion="reduce"
    ) as context:
        page = context.new_page()
        page.set_default_timeout(30_000)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        yield page
        assert not problems
