"""Process that reads pickled weights and can do little else: read files, allocate memory, write to its stdout.

`convert` runs this file as a script in Python's isolated mode; it imports torch and nothing of twinspire, so that all
it does stands here. Before it opens the first file, `confine` gives up the network, other processes and every way of
changing a file. The weights leave as one stream in the format of safetensors; the reason of a refusal goes to stderr.

Arguments: bytes of memory for the weights, seconds of processor time, files.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import re
import resource
import signal
import struct
import sys
import warnings
import zipfile
from typing import Any, BinaryIO

# Numbers of system calls on x86_64 (audit architecture, then calls) and aarch64, from Linux's unistd.h. All others fail
# with EPERM: no sockets, no programs or processes, no signals, no ptrace, no io_uring, no file is changed.
_OPENAT = {"x86_64": 257, "aarch64": 56}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CALLS: dict[str, dict[str, int]] = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "lseek": 8, "mmap": 9, "mprotect": 10,
        "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17,
        "writev": 20, "access": 21, "sched_yield": 24, "mremap": 25, "madvise": 28, "getpid": 39, "exit": 60,
        "uname": 63, "getcwd": 79, "readlink": 89, "gettimeofday": 96, "getrusage": 98, "sysinfo": 99,
        "sigaltstack": 131, "gettid": 186, "futex": 202, "sched_getaffinity": 204, "getdents64": 217,
        "restart_syscall": 219, "fadvise64": 221, "clock_gettime": 228, "exit_group": 231, "newfstatat": 262,
        "readlinkat": 267, "getrandom": 318, "statx": 332,
    },
    "aarch64": {
        "getcwd": 17, "faccessat": 48, "close": 57, "getdents64": 61, "lseek": 62, "read": 63, "write": 64,
        "writev": 66, "pread64": 67, "readlinkat": 78, "newfstatat": 79, "fstat": 80, "exit": 93, "exit_group": 94,
        "futex": 98, "clock_gettime": 113, "sched_getaffinity": 123, "sched_yield": 124, "restart_syscall": 128,
        "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "uname": 160,
        "getrusage": 165, "gettimeofday": 169, "getpid": 172, "gettid": 178, "sysinfo": 179, "brk": 214,
        "munmap": 215, "mremap": 216, "mmap": 222, "fadvise64": 223, "mprotect": 226, "madvise": 233,
        "getrandom": 278, "statx": 291,
    },
}  # fmt: skip
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_ALLOW, _KILL, _EPERM = 0x7FFF0000, 0x80000000, 0x00050001
_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
"""Opcodes of classic BPF: load a word, jump if equal, bitwise and, return."""
_NUMBER_AT, _ARCH_AT, _THIRD_ARGUMENT_AT = 0, 4, 32
"""Offsets in the kernel's `struct seccomp_data`."""

_MIN_TORCH = (2, 10)
"""Before it, a file could get around `weights_only` (CVE-2025-32434, CVE-2026-24747)."""
_NESTED = ("state_dict", "model_state_dict", "model", "module")
_PARALLEL_PREFIX = "module."
"""Before every name where the model was trained in `DistributedDataParallel`."""
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64",
    "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


class RefusedError(Exception):
    """The weights are not converted; the message says why."""


def confine(memory_bytes: int, cpu_seconds: int) -> None:
    """Give up, for good, what reading weights does not need. Raises RefusedError where the kernel forbids it.

    Afterwards the process may map `memory_bytes` more than it has, run for `cpu_seconds`, open files for reading only,
    and make no system call beyond `_CALLS` (seccomp, https://docs.kernel.org/userspace-api/seccomp_filter.html).
    """
    machine = os.uname().machine
    if machine not in _CALLS:
        raise RefusedError(f"no list of system calls for {machine}: convert on {' or '.join(_CALLS)}")
    if len(os.listdir("/proc/self/task")) != 1:  # noqa: PTH208 - the filter would bind this thread alone
        raise RefusedError("importing torch started threads, which could not be confined: please report it")
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123
        mapped = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, mapped + memory_bytes),
    ):
        resource.setrlimit(limit, (value, value))
    written = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    program = [(_LOAD, 0, 0, _ARCH_AT), (_EQUAL, 1, 0, _AUDIT_ARCH[machine]), (_RETURN, 0, 0, _KILL)]
    program += [(_LOAD, 0, 0, _NUMBER_AT)]
    for number in _CALLS[machine].values():
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    program += [(_EQUAL, 0, 4, _OPENAT[machine]), (_LOAD, 0, 0, _THIRD_ARGUMENT_AT), (_AND, 0, 0, written)]
    program += [(_EQUAL, 0, 1, 0), (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EPERM)]
    _set_filter(b"".join(struct.pack("=HBBI", *instruction) for instruction in program), len(program))


def _set_filter(code: bytes, length: int) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    libc = ctypes.CDLL(None, use_errno=True)
    program = Program(length, code)
    if (
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
        or libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0
    ):
        raise RefusedError(
            f"the kernel does not let a process give up the network and files ({os.strerror(ctypes.get_errno())}), and "
            "pickles are not read without: convert on Linux with seccomp filters"
        )


def read_tensors(files: list[str]) -> dict[str, Any]:
    """Read the tensors of the state dicts in `files`, by name. Raises RefusedError."""
    tensors: dict[str, Any] = {}
    for file in files:
        for name, tensor in _state_dict(_load(file)).items():
            if name in tensors:
                raise RefusedError(f"two files hold the tensor {name!r}")
            tensors[name] = tensor
    if all(name.startswith(_PARALLEL_PREFIX) for name in tensors):
        tensors = {name.removeprefix(_PARALLEL_PREFIX): tensor for name, tensor in tensors.items()}
    return tensors


def _load(file: str) -> Any:  # noqa: ANN401 - what a file holds
    import torch

    with open(file, "rb") as stream:  # noqa: PTH123
        # In a zip the tensors are mapped and not copied; files of torch before 1.6 are pickles one after the other.
        is_zip = stream.read(4) == b"PK\x03\x04"
    if is_zip:
        try:
            with zipfile.ZipFile(file) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise RefusedError(
                        "a TorchScript archive: a program with its weights, which cannot be read without loading the "
                        "program. Take the same weights in transformers' format (openai/clip-vit-base-patch32 for "
                        "OpenAI's ViT-B-32.pt) or, where you trust the file, save torch.jit.load(FILE).state_dict() "
                        "with torch.save and convert that"
                    )
        except zipfile.BadZipFile as exc:
            raise RefusedError(f"not an intact zip archive ({exc}): copy or download it again") from exc
    return torch.load(file, map_location="cpu", mmap=is_zip, weights_only=True)


def _state_dict(loaded: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the state dict in `loaded`, which may stand under a key of `_NESTED`, with or without others beside it."""
    import torch

    for _ in _NESTED:
        if isinstance(loaded, dict):
            loaded = next((loaded[key] for key in _NESTED if isinstance(loaded.get(key), dict)), loaded)
    if not isinstance(loaded, dict) or not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise RefusedError(
            f"no state dict: expected tensors by name, or these under {' or '.join(map(repr, _NESTED))}. Save the "
            "model's state_dict() with torch.save"
        )
    for name, tensor in loaded.items():
        if not isinstance(name, str):
            raise RefusedError(f"a name in its state dict is a {type(name).__name__}: expected a str")
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise RefusedError(f"{name!r} in its state dict is a {type(tensor).__name__}: expected a tensor")
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise RefusedError(
                f"the tensor {name!r} is sparse, quantized or empty: safetensors holds dense tensors only"
            )
        if _dtype(tensor) not in _DTYPES:
            raise RefusedError(f"the tensor {name!r} is of {_dtype(tensor)}: expected one of {', '.join(_DTYPES)}")
    return loaded


def _dtype(tensor: Any) -> str:  # noqa: ANN401 - a torch.Tensor
    return str(tensor.dtype).removeprefix("torch.")


def write_tensors(tensors: dict[str, Any], output: BinaryIO, *, max_bytes: int) -> None:
    """Write tensors in the format of safetensors, the widest first so that all are aligned. Raises RefusedError.

    Tensors that share memory are each written in full: which of them a model ties is known to its code alone.
    """
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in order:
        begin, end = end, end + tensors[name].numel() * tensors[name].element_size()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _DTYPES[_dtype(tensors[name])], "shape": shape, "data_offsets": [begin, end]}
    if end > max_bytes:
        raise RefusedError(f"its tensors have {end:,} bytes, more than twice the size of its files")
    encoded = json.dumps(header, ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    output.write(struct.pack("<Q", len(encoded)) + encoded)
    for name in order:
        flat = tensors[name].detach().contiguous().reshape(-1).view(torch.uint8)
        output.write(memoryview(flat.numpy()))
    output.flush()


def _refusal(exc: Exception) -> str:
    """Return the reason in an error of torch.load, without its advice to load the file in an unsafe way."""
    message = str(exc)
    if isinstance(exc, MemoryError) or "allocate memory" in message or "bad_alloc" in message:
        return "reading it takes more memory than weights of its size need"
    if named := re.search(r"GLOBAL (\S+)", message):
        return (
            f"it refers to {named[1]}, which is code or an object of a program, not a tensor. Where you trust the "
            "file, load it and save its state_dict() alone with torch.save, and convert that"
        )
    if isinstance(exc, pickle.UnpicklingError):  # the rest of whose message is that advice
        message = "".join(re.findall(r"WeightsUnpickler error: (.*)", message))
    first_line = (message.strip() or "no message").splitlines()[0]
    return f"not a file of torch.save that can be read ({type(exc).__name__}: {first_line}). Copy or download it again"


def main() -> None:
    """Convert the files of the command line to a stream on stdout."""
    memory_bytes, cpu_seconds, max_bytes, *files = sys.argv[1:]
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # ends with the process that started it
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints may come into the stream
    warnings.simplefilter("ignore")
    try:
        import torch

        if tuple(map(int, torch.__version__.split(".")[:2])) < _MIN_TORCH:
            raise RefusedError(
                f"torch {torch.__version__} reads pickles unsafely: expected {'.'.join(map(str, _MIN_TORCH))} or later"
            )
        torch.set_num_threads(1)
        confine(int(memory_bytes), int(cpu_seconds))
        write_tensors(read_tensors(files), output, max_bytes=int(max_bytes))
    except RefusedError as exc:
        sys.exit(str(exc))
    except Exception as exc:  # torch.load promises no set of errors
        sys.exit(_refusal(exc))


if __name__ == "__main__":
    main()
