"""The two libraries that compute the provider `openvino`: onnxruntime's plugin, and OpenVINO's own runtime.

The plugin computes where it has a device, which it offers on Intel processors only; elsewhere, and where it is not
installed, the runtime does.
"""

from __future__ import annotations

import threading
from typing import Any

from twinspire.errors import BrokenDependencyError, MissingDependencyError
from twinspire.towers.onnxruntime_support import onnxruntime_library
from twinspire.towers.openvino_runtime import openvino_library

PLUGIN_NAME = "OpenVINOExecutionProvider"
_PLUGIN_PACKAGE = "onnxruntime-ep-openvino"
_NO_DEVICE = "The provider openvino, whose onnxruntime plugin supports Intel processors only,"
_registering = threading.Lock()


def uses_runtime() -> bool:
    """Whether OpenVINO's own runtime computes the provider here. Raises what loading the plugin raises."""
    return not _plugin_is_installed() or not plugin_devices()


def unavailable_reason() -> MissingDependencyError | BrokenDependencyError | str | None:
    """Return why the provider is unavailable, as `providers.unavailable_reason` does; None where it is available.

    A plugin that is installed and does not load is the reason even where the runtime could compute.
    """
    is_installed = _plugin_is_installed()
    try:
        if is_installed and plugin_devices():
            return None
    except Exception as error:  # a library that does not load, or one made for another onnxruntime
        return f"cannot be loaded ({error})"
    try:
        openvino_library(_NO_DEVICE if is_installed else "The provider openvino")
    except MissingDependencyError as error:
        return error if is_installed else MissingDependencyError(_PLUGIN_PACKAGE, "cpu", "The provider openvino")
    except BrokenDependencyError as error:
        return error
    return None


def plugin_devices() -> list[Any]:
    """Return the processors that the plugin offers. Registers it, once for this process; raises what that raises."""
    import onnxruntime_ep_openvino as plugin

    onnxruntime = onnxruntime_library()
    with _registering:
        try:
            onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
        except Exception as error:
            # onnxruntime has no way to ask, and does not list a plugin without devices.
            if "already registered" not in str(error):
                raise
    processor = onnxruntime.OrtHardwareDeviceType.CPU
    found = onnxruntime.get_ep_devices()
    return [device for device in found if device.ep_name == PLUGIN_NAME and device.device.type == processor]


def _plugin_is_installed() -> bool:
    try:
        import onnxruntime_ep_openvino  # noqa: F401
    except ImportError:
        return False
    return True
