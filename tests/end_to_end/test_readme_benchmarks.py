"""Every benchmark is run as README and documentation show it, with `--smoke` added: the smallest size that works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURING = (ROOT / "docs" / "architecture" / "measuring.md").read_text(encoding="utf-8")
PROGRAMS = {
    "twinspire": [sys.executable, "-c", "from twinspire.cli import main; main()"],
    "python": [sys.executable],
}


def benchmarks() -> list[str]:
    """Return the command lines that start a benchmark, each once, and what `make demo` runs.

    The check of a machine with a GPU is none: tests/bench/test_gpu_check.py rehearses it. `bench peers` installs
    gigabytes: tests/bench/test_peers_command.py runs it with peers that need nothing.
    """
    shown = README + MEASURING
    written = re.findall(r"`(?:twinspire bench|python -m twinspire_bench)[^`]*`", shown)
    written += re.findall(r"^(?:twinspire bench|python -m twinspire_bench).*", shown, re.MULTILINE)
    commands = [" ".join(shlex.split(line.strip("`"), comments=True)) for line in written]
    (demo,) = recipe("demo")
    assert "make demo" in README
    others = ("compare", "gpu_check", "bench peers")
    return list(dict.fromkeys([demo, *(c for c in commands if not any(name in c for name in others))]))


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile that it runs in its environment."""
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    (lines,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)*)", rules, re.MULTILINE)
    return re.findall(r"^\t\$\(BIN\)/(.*)", lines, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run in; the benchmarks of a model with random weights share the model that they make in it."""
    return tmp_path_factory.mktemp("readme")


def test_the_documentation_has_every_benchmark() -> None:
    """None of the benchmarks is without its command line."""
    names = {" ".join(command.split()[:3]) for command in benchmarks()}
    ours = ("engines", "merged_tokens", "serving_overhead", "lanes", "overload", "gateway", "growth")
    modules = {f"python -m twinspire_bench.{module}" for module in ours}
    assert names == modules | {f"twinspire bench {name}" for name in ("index", "latency", "recall", "search")} | {
        "twinspire demo -o"
    }


def test_make_bench_runs_them_all_and_keeps_the_records() -> None:
    """The target's commands are those of the documentation, each with a record in runs/bench."""
    commands = recipe("bench")
    kinds = [" ".join(command.split()[:3]) for command in commands]
    assert sorted(kinds) == sorted(" ".join(command.split()[:3]) for command in benchmarks()[1:])
    assert all(re.search(r" --json runs/bench/[a-z]+\.json$", command) for command in commands)


@pytest.mark.parametrize("command", benchmarks())
def test_a_benchmark_runs_as_it_is_shown(command: str, folder: Path) -> None:
    """It ends well, prints figures and says on standard error that they mean nothing."""
    if "python -m" in command:
        for module, extra in (("torch", "export"), ("nncf", "quantize"), ("openvino", "peers")):
            pytest.importorskip(module, reason=f"needs the extra {extra}")
    program, *arguments = shlex.split(command)
    words = [*PROGRAMS[program], *arguments, "--smoke"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert re.search(r"\d", done.stdout)
    assert "smoke" in done.stderr
    assert "was cut" not in done.stderr


def test_what_the_benchmarks_write_is_ignored(folder: Path) -> None:
    """Run in a checkout, none of them leaves a file that git lists. Runs after the benchmarks."""
    written = [str(path.relative_to(folder)) + "/" * path.is_dir() for path in folder.iterdir()]
    assert [name for name in written if not is_ignored(name)] == []


def test_what_the_readme_makes_is_ignored() -> None:
    """Folders and files that the README's commands write where they are run are ignored by git; sources are not."""
    lines = [
        line for block in README.split("```")[1::2] for line in block.splitlines() if line.startswith("twinspire ")
    ]
    outputs = set(re.findall(r" -o (\S+)", "\n".join(lines)))
    indexes = set(re.findall(r"\b[\w-]+\.index\b", README))
    files = {*re.findall(r"--sheet (\S+)", README), *re.findall(r"index export \S+ (\S+)", README)}
    assert {"clip", "clip-int8", "clip-best", "models"} <= outputs
    assert {"photos.index", "clip.index"} <= indexes
    assert files
    names = [*(f"{folder}/" for folder in (*outputs, *indexes, "demo", "runs")), *files]
    assert [name for name in names if not is_ignored(name)] == []
    tracked = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(tracked, cwd=ROOT, capture_output=True, text=True, check=True).stdout == ""


def is_ignored(name: str) -> bool:
    """Whether git ignores this name in the root of the checkout."""
    command = ["git", "check-ignore", "--quiet", "--no-index", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0
