"""The root command: how it is started, what it says of itself, and what shells complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from twinspire.cli.index import maintenance

pytestmark = pytest.mark.slow

MODULE = [sys.executable, "-m", "twinspire"]
SCRIPT = [sys.executable, "-c", "import sys; sys.argv[0] = 'twinspire'; from twinspire.cli import main; main()"]


def _run(command: list[str], *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *arguments],
        env={**os.environ, "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _completed(line: str) -> set[str]:
    """Return what bash is offered behind a line that ends where the cursor is."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    ran = _run(SCRIPT, _TWINSPIRE_COMPLETE="complete_bash", **words)
    assert (ran.returncode, ran.stderr) == (0, "")
    return set(ran.stdout.split())


def test_the_module_runs_as_the_command_does() -> None:
    """`python -m twinspire` has the same commands and statuses; usage lines name it as it was started."""
    assert _run(MODULE, "--version").stdout == _run(SCRIPT, "--version").stdout != ""
    assert "Usage: python -m twinspire search " in _run(MODULE, "search", "--help").stdout
    assert "Usage: twinspire search " in _run(SCRIPT, "search", "--help").stdout
    assert (
        _run(MODULE, "search", "nowhere", "a cat").returncode == _run(SCRIPT, "search", "nowhere", "a cat").returncode
    )


def test_help_says_what_the_exit_status_means() -> None:
    """`--help` of the root names every status."""
    (told,) = re.findall(r"Exit status:.*", _run(MODULE, "--help").stdout.replace("\n", " "))
    for status in ("0", "1", "2", "3", "130", "143"):
        assert re.search(rf"\b{status}\b", told), status


@pytest.mark.parametrize("command", [MODULE, SCRIPT], ids=["module", "script"])
def test_completion_is_for_the_command(command: list[str]) -> None:
    """The script that is shown completes `twinspire`, however it was asked for; bash can read it."""
    script = _run(command, "--show-completion", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").stdout
    if not script:  # the shell is detected where it cannot be named
        script = _run(command, "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").stdout
    assert script.rstrip().endswith(" twinspire")
    assert "_TWINSPIRE_COMPLETE=complete_bash" in script
    assert subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_commands_and_values_are_completed() -> None:
    """Commands, options, kinds, modes, providers and precisions."""
    assert {"search", "serve", "scenes"} <= _completed("twinspire s")
    assert _completed("twinspire index ex") <= {"export"}
    assert {"--server", "--streams", "--sheet"} <= _completed("twinspire search idx --s")
    assert _completed("twinspire search idx --mode ") == {"auto", "vector", "keyword", "hybrid"}
    assert _completed("twinspire search idx --kind ") == {"image", "text", "audio"}
    assert _completed("twinspire search idx --provider o") == {"openvino"}
    assert _completed("twinspire classify x --precision f") == {"fp32", "fp16"}
    assert "ivf,sq8" in _completed("twinspire index build idx --spec i")


def test_paragraphs_of_help_are_wrapped_by_the_terminal() -> None:
    """Where it is wide enough, each paragraph of a docstring is one line."""
    told = _run(MODULE, "index", "export", "--help", COLUMNS="2000").stdout
    lines = [line.strip() for line in told.splitlines()]
    paragraphs = (maintenance.export.__doc__ or "").strip().split("\n\n")
    assert len(paragraphs) > 2
    for paragraph in paragraphs:
        assert " ".join(paragraph.split()) in lines


def test_help_loads_nothing_heavy() -> None:
    """`--help` comes without numpy, grpc, onnxruntime, FAISS, pyarrow or torch."""
    program = (
        "import sys\nfrom twinspire.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'grpc', 'onnxruntime', 'faiss', 'pyarrow', 'torch', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for arguments in (["--help"], ["search", "--help"], ["index", "--help"], ["index", "add", "--help"]):
        ran = _run([sys.executable, "-c", program], *arguments)
        assert ran.returncode == 0, ran.stderr


def test_the_module_is_where_the_package_is() -> None:
    """Importing `twinspire.__main__` runs nothing."""
    ran = _run([sys.executable, "-c", "import twinspire.__main__ as module; print(module.__file__)"])
    assert Path(ran.stdout.strip()).name == "__main__.py"
