"""What the README shows is run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from twinspire_eval.scenes import Split, draw_dataset

README = Path(__file__).parents[2] / "README.md"


def test_the_ten_lines_find_images(tmp_path: Path) -> None:
    """The session prints three hits, best first, of the folder that it names."""
    (session,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    draw_dataset(tmp_path / "demo" / "scenes", 24, seed=7, split=Split.HELDOUT)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", session], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    hits = [line.split("  ") for line in done.stdout.splitlines()]
    assert len(hits) == 3
    assert hits == sorted(hits, reverse=True)
    assert all(Path(uri).parent == tmp_path / "demo" / "scenes" for _, uri in hits)


def test_the_command_lines_work_as_written(tmp_path: Path) -> None:
    """Each line of the block below the session ends well on a folder of images; two run until they are stopped."""
    (block,) = re.findall(
        r"The same on the command line.*?```\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
    )
    pictures = tmp_path / "Pictures"
    draw_dataset(pictures, 60, seed=7, split=Split.HELDOUT)
    shutil.copy(next(pictures.rglob("*.jpg")), tmp_path / "photo.jpg")
    (tmp_path / "labels.txt").write_text("a car\na tree\n", encoding="utf-8")
    command = tmp_path / "bin" / "twinspire"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m twinspire "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    for line in block.splitlines():
        runs_on = line.startswith(("twinspire index watch", "twinspire gateway"))
        until = ["timeout", "20"] if runs_on else []
        done = subprocess.run(
            [*until, "bash", "-c", f"exec {line}" if until else line],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == (124 if until else 0), f"{line}\n{done.stdout}\n{done.stderr}"
        assert done.stdout or done.stderr, line
        assert "gateway" not in line or done.stdout.startswith("gateway at http://127.0.0.1:8080"), done.stderr
    assert (tmp_path / "hits.png").stat().st_size
    assert (tmp_path / "photos.npy").stat().st_size
