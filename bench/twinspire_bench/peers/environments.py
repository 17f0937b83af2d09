"""Environments of peers: one virtual environment for each list of requirements, made once and kept."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from twinspire._atomic import atomic_folder
from twinspire.errors import EngineError
from twinspire_bench.json_process import end_group
from twinspire_bench.peers.catalogue import Environment

_ERROR = "ERROR: "


def default_folder() -> Path:
    """Return the folder for environments in the user's cache: $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "twinspire", "peers")


class Environments:
    """The environments in a folder. An environment is made whole or not at all; other requirements make another one.

    `time_limit_s` is that of making one; `say` receives what is being made.
    """

    def __init__(self, folder: Path, *, time_limit_s: float, say: Callable[[str], None]) -> None:
        self._folder, self._time_limit_s, self._say = folder.absolute(), time_limit_s, say
        self._failures: dict[Environment, str] = {}

    def python(self, environment: Environment) -> Path:
        """Return the interpreter of an environment, which is made where the folder does not have it.

        Raises EngineError with the reason where that fails, at once where it failed before.
        """
        if environment in self._failures:
            raise EngineError(self._failures[environment])
        target = self._folder / f"{environment.name}-{_fingerprint(environment)}"
        if not target.exists():
            self._say(f"installing {', '.join(environment.requirements)}")
            try:
                self._make(target, environment)
            except (OSError, EngineError) as error:
                self._failures[environment] = f"cannot be installed: {error}"
                raise EngineError(self._failures[environment]) from error
        return target / "bin" / "python"

    def _make(self, target: Path, environment: Environment) -> None:
        with atomic_folder(target, many_files=True) as draft:
            self._run([sys.executable, "-m", "venv", str(draft)])
            pip = [str(draft / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
            self._run([*pip, *environment.requirements])

    def _run(self, command: list[str]) -> None:
        """Run a command to its end. Raises EngineError with what it printed of the reason."""
        with subprocess.Popen(  # noqa: S603 - venv and pip
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=own_environment(),
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=self._time_limit_s)
            except subprocess.TimeoutExpired:
                limit = f"{self._time_limit_s:g} s (--install-limit-s)"
                raise EngineError(f"not done within the time limit of {limit}") from None
            finally:
                end_group(process)
        if process.returncode != 0:
            raise EngineError(_reason(output))


def own_environment() -> dict[str, str]:
    """Return this process's environment variables without those that lend our packages to another Python."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _reason(output: str) -> str:
    """Return the first line that pip marks as an error, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    return [*errors, *lines[-1:], "no reason was printed"][0]


def _fingerprint(environment: Environment) -> str:
    content = [environment.requirements, sys.version, sys.base_prefix]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
