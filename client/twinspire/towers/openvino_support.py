"""The two libraries that compute the provider `openvino`: OpenVINO's own runtime, and onnxruntime's plugin.

The runtime computes where it is installed, else the plugin, which has a device on Intel processors only. ViT-B/16 int8,
two cores of a Xeon with AMX: the runtime, which splits stacked projections, 1.19 times the images/s of the engine as it
is in float32, 1.05 in bf16.
"""

from __future__ import annotations

import threading
from typing import Any

from twinspire.errors import BrokenDependencyError, MissingDependencyError
from twinspire.towers.onnxruntime_support import onnxruntime_library
from twinspire.towers.openvino_runtime import EXTRA, PACKAGE, openvino_library
from twinspire.towers.signal_stack import kept_signal_stack

PLUGIN_NAME = "OpenVINOExecutionProvider"
_PLUGIN_PACKAGE = "onnxruntime-ep-openvino"
_NO_DEVICE = "The provider openvino, whose onnxruntime plugin supports Intel processors only,"
_registering = threading.Lock()


def uses_runtime() -> bool:
    """Whether OpenVINO's own runtime computes the provider here: it is installed. Raises BrokenDependencyError."""
    try:
        openvino_library("The provider openvino")
    except MissingDependencyError:
        return False
    return True


def needs_runtime() -> bool:
    """Whether the provider, which is available, could not compute here without OpenVINO's own runtime."""
    if not uses_runtime():
        return False
    try:
        return not _plugin_is_installed() or not plugin_devices()
    except Exception:  # a library that does not load: the runtime computes all the same
        return True


def unavailable_reason() -> MissingDependencyError | BrokenDependencyError | str | None:
    """Return why the provider is unavailable, as `providers.unavailable_reason` does; None where it is available.

    A runtime that is installed and cannot be imported is the reason even where the plugin could compute.
    """
    try:
        if uses_runtime():
            return None
    except BrokenDependencyError as error:
        return error
    if not _plugin_is_installed():
        return MissingDependencyError(_PLUGIN_PACKAGE, "cpu", "The provider openvino")
    try:
        has_device = bool(plugin_devices())
    except Exception as error:  # a library that does not load, or one made for another onnxruntime
        return f"cannot be loaded ({error})"
    return None if has_device else MissingDependencyError(PACKAGE, EXTRA, _NO_DEVICE)


def plugin_devices() -> list[Any]:
    """Return the processors that the plugin offers. Registers it, once for this process; raises what that raises."""
    import onnxruntime_ep_openvino as plugin

    onnxruntime = onnxruntime_library()
    with _registering, kept_signal_stack():
        try:
            onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
        except Exception as error:
            # onnxruntime has no way to ask, and does not list a plugin without devices.
            if "already registered" not in str(error):
                raise
        found = onnxruntime.get_ep_devices()
    processor = onnxruntime.OrtHardwareDeviceType.CPU
    return [device for device in found if device.ep_name == PLUGIN_NAME and device.device.type == processor]


def _plugin_is_installed() -> bool:
    try:
        import onnxruntime_ep_openvino  # noqa: F401
    except ImportError:
        return False
    return True
