"""onnxruntime's execution providers: which are available, and sessions on exactly the one that was requested.

onnxruntime falls back to its CPU provider in five ways: a provider it does not know is dropped with a
warning; one whose libraries do not load is dropped with a line in the log; a plugin provider passed by name
is dropped without a word; a failing session is made again on the CPU; and operators that a provider does not
know go to the CPU one by one. Here each of them is an error.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from twinspire._arguments import as_member
from twinspire._freed_memory import return_freed_memory
from twinspire.errors import BrokenDependencyError, EngineError, MissingDependencyError, ProviderError, TwinspireError
from twinspire.towers import openvino_runtime, openvino_support
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
from twinspire.towers.openvino_runtime import OpenVinoSession
from twinspire.towers.signal_stack import kept_signal_stack


class Provider(StrEnum):
    """An execution provider of onnxruntime.

    `openvino` is OpenVINO's own runtime where that is installed, else onnxruntime's plugin.
    """

    CPU = "cpu"
    OPENVINO = "openvino"
    CUDA = "cuda"


class InferencePrecision(StrEnum):
    """The arithmetic of OpenVINO for float32 operators."""

    F32 = "f32"
    BF16 = "bf16"


@dataclass(frozen=True, kw_only=True)
class OpenVinoOptions:
    """Options of the OpenVINO provider; the others have none.

    `inference_precision` is the arithmetic of float32 operators, or its name: "bf16". OpenVINO's own default is bf16
    where the processor has it, which moves an embedding's components by up to 4e-4: here it must be requested. Raises
    InputError for an unknown name.
    """

    inference_precision: InferencePrecision = InferencePrecision.F32

    def __post_init__(self) -> None:
        chosen = as_member(self.inference_precision, InferencePrecision, "inference_precision")
        object.__setattr__(self, "inference_precision", chosen)


class Session(Protocol):
    """The part of onnxruntime's InferenceSession that is used. `run` may be called from several threads at once."""

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[Any]:
        """Return the named outputs, all where None."""

    def get_inputs(self) -> Sequence[Any]:
        """Return name, type and shape of each input."""

    def get_outputs(self) -> Sequence[Any]:
        """Return name, type and shape of each output."""

    def get_providers(self) -> Sequence[str]:
        """Return the providers by onnxruntime's names, the preferred one first."""

    def get_provider_graph_assignment_info(self) -> Sequence[Any]:
        """Return which operators were assigned to which provider."""


_NAMES = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.OPENVINO: openvino_support.PLUGIN_NAME,
    Provider.CUDA: CUDA_PROVIDER,
}
# Operators that mean a fallback where they are left to the CPU; others compute shapes. Found anywhere in the
# name, since onnxruntime fuses them: FusedMatMul, QLinearConv, MatMulInteger, MultiHeadAttention.
_HEAVY = ("MatMul", "Gemm", "Conv", "Attention")


@dataclass(frozen=True)
class Sessions:
    """The sessions of one engine: `whole` computes with all threads, `parts` in parallel with a share of them each."""

    whole: Session
    parts: tuple[Session, ...]

    @property
    def library(self) -> str:
        """The package that computes: onnxruntime, or openvino for OpenVINO's own runtime."""
        return openvino_runtime.PACKAGE if isinstance(self.whole, OpenVinoSession) else "onnxruntime"

    def pick(self, turn: int, *, whole: bool) -> Session:
        """Return the session for a call as a whole, or for a part: the sessions take turns."""
        return self.whole if whole else self.parts[turn % len(self.parts)]


def open_sessions(
    engine: Path, provider: Provider, *, threads: int, streams: int, openvino: OpenVinoOptions
) -> Sessions:
    """Open an engine on one provider for calls that may be split into `streams` parts.

    With several streams the engine is in memory twice or more: a session whose threads share one image cannot also
    compute parts in parallel. Raises what `open_session` raises, and ProviderError where the provider has no streams.
    """
    if streams > 1 and provider is Provider.CUDA:
        raise ProviderError(
            f"the provider {provider} computes in one stream, {streams} were requested: streams divide a processor's "
            "threads. Leave streams out, or name another provider",
            provider=provider,
            available=(Provider.CPU, Provider.OPENVINO),
        )
    whole = open_session(engine, provider, threads=threads, openvino=openvino)
    if streams == 1:
        return Sessions(whole, (whole,))
    if provider is Provider.OPENVINO:
        return Sessions(whole, (open_session(engine, provider, threads=threads, streams=streams, openvino=openvino),))
    share = threads // streams
    # Callers of one session share its threads and wait for each other; a session of one thread uses its caller's.
    needed = 1 if share == 1 else streams
    return Sessions(
        whole, tuple(open_session(engine, provider, threads=share, openvino=openvino) for _ in range(needed))
    )


def open_session(
    engine: Path, provider: Provider, *, threads: int, openvino: OpenVinoOptions, streams: int = 1
) -> Session:
    """Open an engine on one provider. `threads` is the number of threads of a call on the CPU.

    `streams` is the number of the OpenVINO provider's streams, which divide them. Raises MissingDependencyError or
    ProviderError where the provider is unavailable or does not support the engine, and EngineError where the engine
    cannot be loaded.
    """
    if (unavailable := unavailable_error(provider)) is not None:
        raise unavailable
    session = _open_session(engine, provider, threads=threads, openvino=openvino, streams=streams)
    return_freed_memory()  # SigLIP SO400M, int8 in two streams of OpenVINO: 1,573 MiB after loading, 1,160 with it
    return session


def _open_session(
    engine: Path, provider: Provider, *, threads: int, openvino: OpenVinoOptions, streams: int
) -> Session:
    """Open an engine on a provider that is available."""
    if provider is Provider.OPENVINO and openvino_support.uses_runtime():
        properties = _openvino_properties(threads=threads, streams=streams, openvino=openvino)
        try:
            return OpenVinoSession(engine, properties)
        except Exception as error:  # OpenVINO's exceptions share no base below Exception
            message = f"{engine} cannot be opened by OpenVINO's runtime: {failure_cause(error)}"
            raise EngineError(message, path=engine) from error
    onnxruntime = onnxruntime_library()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ONLY_FATAL
    options.inter_op_num_threads = 1
    # The other providers do not compute in onnxruntime's own threads.
    options.intra_op_num_threads = threads if provider is Provider.CPU else 1
    # Threads that spin between operators compete with those that decode the next images: 76 photographs,
    # ViT-B/32 int8, two busy cores, took 5.4 to 7.9 s with spinning, 3.6 to 5.9 s without; one image 67 ms and 59 ms.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        settings = _settings(provider, threads=threads, streams=streams, openvino=openvino)
        devices = openvino_support.plugin_devices() if provider is Provider.OPENVINO else []
        if devices:
            options.add_provider_for_devices(devices[:1], settings)
        with kept_signal_stack():
            session: Session = onnxruntime.InferenceSession(
                str(engine),
                sess_options=options,
                providers=None if devices else [(_NAMES[provider], settings)],
                enable_fallback=0,
            )
    except Exception as error:  # onnxruntime's exceptions share no base below Exception
        message = f"{engine} cannot be opened on the provider {provider}: {failure_cause(error)}"
        raise EngineError(message, path=engine) from error
    _check_assignment(session, engine, provider)
    return session


def require_computing(session: Session, inputs: Mapping[str, Any], engine: Path, provider: Provider) -> None:
    """Run a session once. Raises ProviderError, with the cause, where it cannot compute.

    onnxruntime opens CUDA sessions without cuDNN, which it loads at the first convolution
    (https://github.com/microsoft/onnxruntime/pull/29252), and on GPUs that its kernels were not compiled for.
    """
    try:
        session.run(None, inputs)
    except Exception as error:  # onnxruntime's exceptions share no base below Exception
        raise ProviderError(
            f"the provider {provider} opens {engine.name} and cannot compute it: {failure_cause(error)}. CUDA's and "
            f"cuDNN's libraries come with the extra gpu: {INSTALL_GPU}; the driver must be as new as they are",
            provider=provider,
        ) from error


def available() -> tuple[Provider, ...]:
    """Return the providers that are installed and have a device here. Loads onnxruntime and the plugin."""
    return tuple(provider for provider in Provider if unavailable_reason(provider) is None)


def unavailable_error(provider: Provider) -> TwinspireError | None:
    """Return the error to raise where a provider is unavailable, None where it is available."""
    reason = unavailable_reason(provider)
    if isinstance(reason, str):
        return _provider_error(f"the provider {provider} {reason}", provider)
    return reason


def unavailable_reason(provider: Provider) -> TwinspireError | str | None:
    """Return why a provider is unavailable, as the end of "the provider cuda ..."; None where it is available.

    Where its package is missing or broken, that is the error.
    """
    try:
        onnxruntime_library()
    except (MissingDependencyError, BrokenDependencyError) as error:
        return error
    if provider is Provider.OPENVINO:
        return openvino_support.unavailable_reason()
    return cuda_unavailable_reason() if provider is Provider.CUDA else None


def _settings(provider: Provider, *, threads: int, streams: int, openvino: OpenVinoOptions) -> dict[str, str]:
    """Return the provider's own options. float32 is computed as float32 unless the caller requested otherwise."""
    if provider is Provider.OPENVINO:
        properties = _openvino_properties(threads=threads, streams=streams, openvino=openvino)
        return {"load_config": json.dumps({"CPU": properties})}
    if provider is Provider.CUDA:
        load_cuda_libraries()
        return {"use_tf32": "0"}
    return {}


def _openvino_properties(*, threads: int, streams: int, openvino: OpenVinoOptions) -> dict[str, str]:
    """Return the properties of OpenVINO's CPU device: nothing of them is left to its defaults."""
    return {
        "INFERENCE_PRECISION_HINT": str(openvino.inference_precision),
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": str(streams),
    }


def _check_assignment(session: Session, engine: Path, provider: Provider) -> None:
    """Raise ProviderError where onnxruntime dropped the provider or assigned heavy operators to another."""
    name = _NAMES[provider]
    if name not in session.get_providers():
        cause = cuda_library_error() if provider is Provider.CUDA else "its libraries or its device are missing"
        raise ProviderError(
            f"onnxruntime dropped the provider {provider} for {engine.name}: {cause}", provider=provider
        )
    left = Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != name
        for node in part.get_nodes()
    )
    heavy = {operator: count for operator, count in left.items() if any(part in operator for part in _HEAVY)}
    if heavy:
        counts = ", ".join(f"{count} {operator}" for operator, count in heavy.items())
        raise _provider_error(
            f"the provider {provider} does not support {counts} of {engine.name}, which would run on the CPU. "
            "Choose another precision or provider",
            provider,
        )


def _provider_error(text: str, provider: Provider) -> ProviderError:
    usable = available()
    return ProviderError(f"{text}. Available here: {', '.join(usable)}", provider=provider, available=usable)
