"""Processes of peers, each served with the Python of its environment."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinspire_bench.json_process import JsonProcess
from twinspire_bench.peers.catalogue import CataloguedPeer
from twinspire_bench.peers.environments import Environments, own_environment

_SERVE = Path(__file__).with_name("adapters") / "serve.py"
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?=$|[\[<>=!~; ])")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "DO_NOT_TRACK": "1",
}


class PeerProcess:
    """A started peer, on the first `threads` of our processors; leaving the `with` block ends it.

    `versions` are those of the packages that its environment was made for. Raises EngineError where the environment
    cannot be made and where the peer cannot be opened within `time_limit_s`.
    """

    def __init__(
        self,
        peer: CataloguedPeer,
        task: Mapping[str, Any],
        *,
        threads: int,
        environments: Environments,
        time_limit_s: float,
    ) -> None:
        requirements = () if peer.environment is None else peer.environment.requirements
        packages = [found[0] for requirement in requirements if (found := _PACKAGE.match(requirement))]
        self._time_limit_s = time_limit_s
        if peer.environment is None:
            command = [sys.executable, "-P"]
            variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        else:
            command = [str(environments.python(peer.environment)), "-I"]
            variables = own_environment()
        variables |= _OFFLINE | dict.fromkeys(_THREAD_VARIABLES, str(threads))
        self._process = JsonProcess([*command, str(_SERVE), str(peer.adapter)], label=peer.name, environment=variables)
        details = {"kind": peer.kind, "threads": threads, "packages": packages, "options": peer.options}
        try:
            answer = self._process.ask(json.dumps({**task, **details}), time_limit_s=time_limit_s)
            self.versions: dict[str, str] = answer["versions"]
        except BaseException:
            self.close()
            raise

    def measure(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Let the peer measure once. Raises EngineError where it fails or takes longer than the time limit."""
        return self._process.ask(json.dumps(request), time_limit_s=self._time_limit_s)

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
