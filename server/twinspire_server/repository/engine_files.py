"""The file that the container's own backends load: an engine of the bundle, one prepared for TensorRT, or a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinspire.bundle import Bundle, Precision, Tower
from twinspire.bundle.writer import copy_file
from twinspire.errors import InputError
from twinspire.tensorrt_support import PlanFolder, prepare_engine
from twinspire_server.repository.installed import ENGINE, PLAN
from twinspire_server.repository.settings import Accelerator, ServingOptions


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """What Triton loads of one version of a model. `sha256` is that of the file as it is written."""

    name: str
    source: Path
    sha256: str
    is_prepared: bool = False

    def write(self, version: Path) -> None:
        """Write it into a version's folder."""
        if self.is_prepared:
            (version / self.name).write_bytes(prepare_engine(self.source))
        else:
            copy_file(self.source, version / self.name)


def engine_file(
    bundle: Bundle, tower: Tower, precision: Precision, options: ServingOptions, plans: PlanFolder | None
) -> EngineFile:
    """Choose a tower's file. Raises BundleError where it is missing, EngineError where TensorRT will not take it."""
    if plans is not None:
        record = plans.manifest.plans[tower]
        return EngineFile(name=PLAN, source=plans.path / record.file, sha256=record.sha256)
    source = bundle.engine(tower, precision)
    if options.uses_tensorrt:
        # Made again when it is written: two towers of a large model would fill the memory.
        digest = hashlib.sha256(prepare_engine(source)).hexdigest()
        return EngineFile(name=ENGINE, source=source, sha256=digest, is_prepared=True)
    return EngineFile(name=ENGINE, source=source, sha256=bundle.manifest.engines[tower][precision].sha256)


def open_plans(
    bundles: Sequence[Bundle], folders: Sequence[Path], accelerator: Accelerator, precision: Precision | None
) -> Mapping[str, PlanFolder]:
    """Open and check the plans of each bundle: those in `folders`, by default in BUNDLE.plans beside each bundle.

    Returns them by the bundles' names; none where the accelerator is another. Raises InputError where folders and
    bundles do not match and where plans are of another precision than was asked for, and what `PlanFolder` raises.
    """
    if accelerator is not Accelerator.PLAN:
        if folders:
            raise InputError(
                f"plans {', '.join(map(str, folders))}: only the accelerator {Accelerator.PLAN} serves plans"
            )
        return {}
    paths = folders or [bundle.path.absolute().with_name(f"{bundle.path.absolute().name}.plans") for bundle in bundles]
    found: dict[str, PlanFolder] = {}
    for path in paths:
        folder = PlanFolder.open(path)
        name = folder.manifest.bundle
        if name in found:
            raise InputError(f"{found[name].path} and {path} are both plans of {name!r}: expected one folder a bundle")
        found[name] = folder
    names = {bundle.name for bundle in bundles}
    if set(found) != names:
        raise InputError(
            f"the plans are of the bundles {sorted(found)}: expected those of {sorted(names)}. Name a folder for each "
            "bundle with --plans"
        )
    for bundle in bundles:
        folder = found[bundle.name]
        folder.check(bundle)
        if precision not in (None, folder.manifest.precision):
            raise InputError(
                f"precision {precision}: the plans in {folder.path} are {folder.manifest.precision}. Build others "
                f"with: twinspire tensorrt BUNDLE --precision {precision}"
            )
    return found
