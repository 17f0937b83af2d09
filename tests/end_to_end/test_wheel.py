"""The wheel, built and unpacked away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_brings_the_sample_and_the_command(tmp_path: Path) -> None:
    """From an installed wheel the sample bundle opens and encodes, and the command lists every package's commands."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("twinspire-*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    program = (
        "import pathlib, twinspire, twinspire.cli.app as app\n"
        f"assert twinspire.__file__.startswith({str(site)!r}), twinspire.__file__\n"
        "fonts = pathlib.Path(twinspire.__file__).parent / 'fonts'\n"
        "assert {file.name for file in fonts.iterdir()} == {'OFL.txt', 'TwinspireSansSC-Regular.otf'}\n"
        "page = pathlib.Path(twinspire.__file__).parents[1] / 'twinspire_server' / 'gateway' / 'page'\n"
        "assert {'index.html', 'main.js', 'style.css'} <= {file.name for file in page.iterdir()}\n"
        "with twinspire.Client.local(twinspire.sample_bundle()) as client:\n"
        "    assert client.encode_texts(['a red car']).shape == (1, client.dim)\n"
        "names = {command.name or command.callback.__name__ for command in app.application().registered_commands}\n"
        "names |= {group.name for group in app.application().registered_groups}\n"
        "export = {'export', 'convert', 'quantize', 'tensorrt', 'precision'}\n"
        "server, bench = {'demo', 'build', 'serve', 'reload', 'gateway'}, {'bench', 'scenes', 'tune'}\n"
        "assert names == {'index', 'search', 'classify', 'doctor'} | export | server | bench, names\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment)
