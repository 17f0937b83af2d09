"""onnxruntime's execution providers: which are there, and a session on exactly the one that was asked for.

onnxruntime falls back to its CPU provider in five ways: a provider it does not know is dropped with a
warning; one whose libraries do not load is dropped with a line in the log; a plugin provider passed by name
is dropped without a word; a failing session is made again on the CPU; and operators that a provider does not
know go to the CPU one by one. Here each of them is an error.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from twinspire._arguments import as_member
from twinspire.errors import (
    BrokenDependencyError,
    EngineError,
    MissingDependencyError,
    ProviderError,
    TwinspireError,
)
from twinspire.towers.onnxruntime_support import (
    CUDA_PROVIDER,
    INSTALL_GPU,
    ONLY_FATAL,
    cuda_library_error,
    cuda_unavailable_reason,
    failure_cause,
    load_cuda_libraries,
    onnxruntime_library,
)


class Provider(StrEnum):
    """What runs an engine inside onnxruntime."""

    CPU = "cpu"
    OPENVINO = "openvino"
    CUDA = "cuda"


class InferencePrecision(StrEnum):
    """What OpenVINO computes in where the engine says float32."""

    F32 = "f32"
    BF16 = "bf16"


@dataclass(frozen=True, kw_only=True)
class OpenVinoOptions:
    """Settings of the OpenVINO provider; the others take none.

    `inference_precision` is what float32 operators are computed in. Left to itself OpenVINO takes bf16 where
    the processor has it, which moves an embedding's components by up to 4e-4: here that must be asked for. It may be
    given by name: "bf16". Raises InputError for another.
    """

    inference_precision: InferencePrecision = InferencePrecision.F32

    def __post_init__(self) -> None:
        chosen = as_member(self.inference_precision, InferencePrecision, "inference_precision")
        object.__setattr__(self, "inference_precision", chosen)


class Session(Protocol):
    """What is used of onnxruntime's InferenceSession. `run` may be called from several threads at once."""

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[Any]:
        """Compute the named outputs, all where None."""

    def get_inputs(self) -> Sequence[Any]:
        """Give name, type and shape of each input."""

    def get_outputs(self) -> Sequence[Any]:
        """Give name, type and shape of each output."""

    def get_providers(self) -> Sequence[str]:
        """List the providers by onnxruntime's names, the first one preferred."""

    def get_provider_graph_assignment_info(self) -> Sequence[Any]:
        """Tell which operators went to which provider."""


_NAMES = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.OPENVINO: "OpenVINOExecutionProvider",
    Provider.CUDA: CUDA_PROVIDER,
}
# Operators of which one left on the CPU is a fallback, not a shape computation. Looked for anywhere in the
# name, since onnxruntime fuses them: FusedMatMul, QLinearConv, MatMulInteger, MultiHeadAttention.
_HEAVY = ("MatMul", "Gemm", "Conv", "Attention")
_registering = threading.Lock()


@dataclass(frozen=True)
class Sessions:
    """One engine, opened to be computed as a whole, with all threads, or in parts side by side that share them."""

    whole: Session
    parts: tuple[Session, ...]

    def pick(self, turn: int, *, whole: bool) -> Session:
        """Return what computes a call as a whole, or else the part of that number."""
        return self.whole if whole else self.parts[turn % len(self.parts)]


def open_sessions(
    engine: Path, provider: Provider, *, threads: int, streams: int, openvino: OpenVinoOptions
) -> Sessions:
    """Open an engine on one provider for calls that are cut into `streams` parts, if they can be.

    With several streams the engine is in memory twice or more: threads that divide a single image among them are no
    use to parts side by side. Raises what `open_session` raises, and ProviderError where the provider has no streams.
    """
    if streams > 1 and provider is Provider.CUDA:
        raise ProviderError(
            f"the provider {provider} computes in one stream, {streams} were asked for: streams divide a processor's "
            "threads. Leave them out, or name another provider"
        )
    whole = open_session(engine, provider, threads=threads, openvino=openvino)
    if streams == 1:
        return Sessions(whole, (whole,))
    if provider is Provider.OPENVINO:
        return Sessions(whole, (open_session(engine, provider, threads=threads, streams=streams, openvino=openvino),))
    share = threads // streams
    # Callers of one session share its threads and wait for each other; the thread of a session of one is its caller's.
    needed = 1 if share == 1 else streams
    return Sessions(
        whole, tuple(open_session(engine, provider, threads=share, openvino=openvino) for _ in range(needed))
    )


def open_session(
    engine: Path, provider: Provider, *, threads: int, openvino: OpenVinoOptions, streams: int = 1
) -> Session:
    """Open an engine on one provider. `threads` is how many a call computes with on the CPU.

    `streams` is into how many the OpenVINO provider divides them. Raises MissingDependencyError or ProviderError where
    the provider is not there or does not take the engine, and EngineError where the engine cannot be loaded.
    """
    absent = unavailable_error(provider)
    if absent is not None:
        raise absent
    onnxruntime = onnxruntime_library()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ONLY_FATAL
    options.inter_op_num_threads = 1
    # The others compute outside onnxruntime's own threads.
    options.intra_op_num_threads = threads if provider is Provider.CPU else 1
    # Threads that spin between operators take the processors from those that decode the next images: 76 photographs,
    # ViT-B/32 int8, two busy cores, took 5.4 to 7.9 s with and 3.6 to 5.9 s without; one image 67 ms and 59 ms.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        settings = _settings(provider, threads=threads, streams=streams, openvino=openvino)
        devices = [] if provider is Provider.CPU else _devices(provider)
        if devices:
            options.add_provider_for_devices(devices[:1], settings)
        session: Session = onnxruntime.InferenceSession(
            str(engine),
            sess_options=options,
            providers=None if devices else [(_NAMES[provider], settings)],
            enable_fallback=0,
        )
    except Exception as error:  # onnxruntime's exceptions share no base below Exception
        raise EngineError(f"{engine} cannot be opened on the provider {provider}: {failure_cause(error)}") from error
    _check_assignment(session, engine, provider)
    return session


def require_computing(session: Session, inputs: Mapping[str, Any], engine: Path, provider: Provider) -> None:
    """Run a session once. Raises ProviderError, with the cause, where it cannot compute.

    onnxruntime opens a CUDA session without cuDNN, which it loads for the first convolution
    (https://github.com/microsoft/onnxruntime/pull/29252), and on a GPU that its kernels were not compiled for.
    """
    try:
        session.run(None, inputs)
    except Exception as error:  # onnxruntime's exceptions share no base below Exception
        raise ProviderError(
            f"the provider {provider} opens {engine.name} and cannot compute it: {failure_cause(error)}. CUDA's and "
            f"cuDNN's libraries come with the extra gpu: {INSTALL_GPU}; the driver must be as new as they are"
        ) from error


def available() -> tuple[Provider, ...]:
    """List the providers that are installed and offer a device here. Loads onnxruntime and the plugin."""
    return tuple(provider for provider in Provider if unavailable_reason(provider) is None)


def unavailable_error(provider: Provider) -> TwinspireError | None:
    """Return the error to raise where a provider is not there, None where it is."""
    cause = unavailable_reason(provider)
    if isinstance(cause, str):
        return ProviderError(f"the provider {provider} {cause}. {_there_is()}")
    return cause


def unavailable_reason(provider: Provider) -> TwinspireError | str | None:
    """Say why a provider is not there, as the end of a sentence that begins with it; None where it is."""
    try:
        onnxruntime_library()
    except (MissingDependencyError, BrokenDependencyError) as error:
        return error
    if provider is Provider.OPENVINO:
        return _openvino_problem()
    return cuda_unavailable_reason() if provider is Provider.CUDA else None


def _openvino_problem() -> MissingDependencyError | str | None:
    try:
        import onnxruntime_ep_openvino  # noqa: F401
    except ImportError:
        return MissingDependencyError("onnxruntime-ep-openvino", "cpu", "The provider openvino")
    try:
        _register_openvino()
        devices = _devices(Provider.OPENVINO)
    except Exception as error:  # a library that does not load, or one made for another onnxruntime
        return f"cannot be loaded ({error})"
    return None if devices else "is installed but offers no processor here: its plugin serves Intel's alone"


def _register_openvino() -> None:
    """Register the plugin in this process, where nobody has yet."""
    import onnxruntime_ep_openvino as plugin

    onnxruntime = onnxruntime_library()
    with _registering:
        try:
            onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
        except Exception as error:
            # The library gives no way to ask, and one that offers no device here is not listed either.
            if "already registered" not in str(error):
                raise


def _devices(provider: Provider) -> list[Any]:
    """List the devices that a plugin provider offers; none for one that is built in."""
    onnxruntime = onnxruntime_library()
    found = [device for device in onnxruntime.get_ep_devices() if device.ep_name == _NAMES[provider]]
    if provider is Provider.OPENVINO:
        cpu = onnxruntime.OrtHardwareDeviceType.CPU
        return [device for device in found if device.device.type == cpu]
    return found


def _settings(provider: Provider, *, threads: int, streams: int, openvino: OpenVinoOptions) -> dict[str, str]:
    """Return the provider's own options. float32 is computed as float32 unless the caller said otherwise."""
    if provider is Provider.OPENVINO:
        cpu = {
            "INFERENCE_PRECISION_HINT": str(openvino.inference_precision),
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": str(streams),
        }
        return {"load_config": json.dumps({"CPU": cpu})}
    if provider is Provider.CUDA:
        load_cuda_libraries()
        return {"use_tf32": "0"}
    return {}


def _check_assignment(session: Session, engine: Path, provider: Provider) -> None:
    """Raise ProviderError where the provider was dropped or heavy operators were left to another."""
    name = _NAMES[provider]
    if name not in session.get_providers():
        cause = cuda_library_error() if provider is Provider.CUDA else "its libraries or its device are missing"
        raise ProviderError(f"onnxruntime dropped the provider {provider} for {engine.name}: {cause}")
    left = Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != name
        for node in part.get_nodes()
    )
    heavy = {kind: count for kind, count in left.items() if any(word in kind for word in _HEAVY)}
    if heavy:
        counts = ", ".join(f"{count} {kind}" for kind, count in heavy.items())
        raise ProviderError(
            f"the provider {provider} does not take {counts} of {engine.name}, which would run on the CPU. "
            f"Choose another precision or provider. {_there_is()}"
        )


def _there_is() -> str:
    return f"Available here: {', '.join(available())}"
