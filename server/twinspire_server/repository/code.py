"""The code in a repository that is a copy of this package's and imports the rest of it.

A copy only fits the version that it was made by: a release that is served for months keeps its model.py, while
twinspire may be upgraded beneath it. So a build names the code's sha256 in the model's config, and a server asks.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from twinspire.errors import InputError
from twinspire_server.repository.config import CONFIG, read_config

CODE_PARAMETER = "code_sha256"
_HERE = Path(__file__).parent
TOWER_CODE, PREPROCESSING_CODE = _HERE / "model.py", _HERE / "preprocess_model.py"


def code_parameters(code: Path) -> dict[str, str]:
    """Return the parameter that names the code of a model, one of this module's files."""
    return {CODE_PARAMETER: hashlib.sha256(code.read_bytes()).hexdigest()[:16]}


def foreign_models(repository: Path) -> list[str]:
    """Return the models whose code was copied from another version of twinspire than the installed one.

    Code that was edited in the repository counts as the version that it was copied from. A config that cannot be read
    is left to Triton, which says what is wrong with it.
    """
    own = [code_parameters(code)[CODE_PARAMETER] for code in (TOWER_CODE, PREPROCESSING_CODE)]
    foreign = []
    for file in sorted(repository.glob(f"*/{CONFIG}")):
        try:
            parameters = read_config(file.parent).parameters
        except InputError:
            continue
        if CODE_PARAMETER in parameters and parameters[CODE_PARAMETER].string_value not in own:
            foreign.append(file.parent.name)
    return foreign


def check_code(repository: Path) -> None:
    """Raise InputError where a model's code was copied from another version of twinspire."""
    foreign = foreign_models(repository)
    if foreign:
        raise InputError(
            f"{repository} was built by another version of twinspire than the installed one, whose server cannot run "
            f"{', '.join(foreign)}: run `twinspire build` again for each of its bundles",
            path=repository,
        )
