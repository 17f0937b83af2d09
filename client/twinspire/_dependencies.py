"""Optional packages that cannot be imported: not installed, or installed and broken."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from twinspire.errors import BrokenDependencyError, MissingDependencyError


def import_failure(
    error: Exception, module: str, packages: Mapping[str, str], purpose: str
) -> MissingDependencyError | BrokenDependencyError:
    """Return the error to raise, from `error`, where importing `module` raised it.

    `packages` are those that bring the module, each with twinspire's extra; the first is the one to install.
    """
    if isinstance(error, ModuleNotFoundError) and error.name == module:
        package, extra = next(iter(packages.items()))
        return MissingDependencyError(package, extra, purpose)
    installed = {package: version for package in packages if (version := package_version(package)) is not None}
    extra = packages[next(reversed(installed), next(iter(packages)))]
    named = " and ".join(f"{package} {version}" for package, version in installed.items()) or module
    return BrokenDependencyError(named, extra, purpose, " ".join(str(error).split()))


def package_version(package: str) -> str | None:
    """Return the version of an installed distribution, None where it is not installed. Imports nothing of it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
