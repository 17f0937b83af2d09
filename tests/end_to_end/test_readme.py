"""What the README shows is run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from twinspire_bench.scenes import Split, draw_dataset

README = Path(__file__).parents[2] / "README.md"


def test_the_ten_lines_find_pictures(tmp_path: Path) -> None:
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
