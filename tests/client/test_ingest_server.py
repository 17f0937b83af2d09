"""A watch whose server is away for longer than a deadline: it waits, continues, and can be stopped meanwhile."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from twinspire.bundle import DecodeMode, Tower
from twinspire.errors import ServerUnavailableError
from twinspire.images import ImageLimits
from twinspire.index import Index
from twinspire.ingest import FolderEvent, IngestOptions, watch

SPACE = "7" * 64


class Server:
    """A client of a server that refuses the next `refusals` batches; calls `on_refusal` with how many are left."""

    space, dim, limits, decode = SPACE, 3, ImageLimits(), DecodeMode.EXACT
    bundle = SimpleNamespace(towers=(Tower.IMAGE, Tower.TEXT))

    def __init__(self) -> None:
        self.refusals = 0
        self.on_refusal: Callable[[int], None] = lambda _: None
        self.towers = SimpleNamespace(encode_images=self.encode)

    def preprocess(self, items: list[bytes], *, on_error: str) -> tuple[NDArray[np.uint8], list[Any]]:
        """Take the first pixel."""
        assert on_error == "skip"
        pixels = [np.asarray(Image.open(io.BytesIO(item)).convert("RGB"))[:1, :1] for item in items]
        return np.array(pixels, np.uint8).reshape(-1, 1, 1, 3), []

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the direction of each colour, (N, 3), or refuse."""
        if self.refusals:
            self.refusals -= 1
            self.on_refusal(self.refusals)
            raise ServerUnavailableError("no answer within 30 s")
        rows = pixels.reshape(-1, 3).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def draw(path: Path, shade: int) -> None:
    """Write an image at once."""
    draft = path.with_suffix(".part")
    Image.new("RGB", (4, 4), (shade, 90, 9)).save(draft, format="PNG")
    draft.replace(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Draw images a and b."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for shade, name in ((10, "a.png"), (20, "b.png")):
        draw(folder / name, shade)
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """Make an empty index, open for writing."""
    with Index.create(tmp_path / "index", space=SPACE, dim=3) as index:
        yield index


@pytest.mark.parametrize("refused", ["catching up", "following"])
def test_a_watch_waits_for_a_server_that_is_away(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """It reports that once, continues when the server answers, and misses nothing that happened meanwhile."""
    monkeypatch.setattr(sys.modules["twinspire.ingest.watch"], "_RETRY_S", 0.1)  # the package has a function "watch"
    server: Any = Server()
    events: list[FolderEvent] = []
    reports: list[str | None] = []
    stop, caught_up = threading.Event(), threading.Event()

    def on_refusal(left: int) -> None:
        if left == 1:
            draw(folder / "meanwhile.png", 40)

    def names() -> set[str]:
        return {Path(item.uri).name for item in index.items()}

    server.on_refusal = on_refusal
    server.refusals = 3 if refused == "catching up" else 0
    thread = threading.Thread(
        target=watch,
        args=(index, server, [folder], IngestOptions(on_event=events.append)),
        kwargs={
            "settle_s": 0.1,
            "gone_s": 0.3,
            "stop": stop,
            "on_caught_up": caught_up.set,
            "on_server": lambda error: reports.append(None if error is None else str(error)),
        },
    )
    thread.start()
    try:
        assert caught_up.wait(20)
        if refused == "following":
            server.refusals = 3
            draw(folder / "c.png", 30)
            (folder / "b.png").unlink()
        expected = {"a.png", "meanwhile.png", *(["b.png"] if refused == "catching up" else ["c.png"])}
        end = time.monotonic() + 20
        while names() != expected and time.monotonic() < end:
            time.sleep(0.02)
        assert names() == expected
    finally:
        stop.set()
        thread.join(20)
    assert reports == ["no answer within 30 s", None]
    assert not [event for event in events if event.cause is not None]


def test_a_watch_that_waits_for_a_server_can_be_stopped(index: Index, folder: Path) -> None:
    """Also before it has caught up, which it then does not claim."""
    server: Any = Server()
    server.refusals = 1
    stop, caught_up = threading.Event(), threading.Event()
    watch(index, server, [folder], stop=stop, on_caught_up=caught_up.set, on_server=lambda _: stop.set())
    assert not caught_up.is_set()
    assert len(index) == 0
