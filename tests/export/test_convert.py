"""Pickled weights become safetensors in a confined process; what is not weights is refused and runs nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the export needs torch")

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from twinspire.errors import CheckpointError, InputError
from twinspire_export import convert, convert_checkpoint

WEIGHTS = "model.safetensors"
PICKLED = "pytorch_model.bin"


def pickled(checkpoint: Path, name: str = PICKLED, wrap: Callable[[Any], Any] = dict, **saving: Any) -> dict[str, Any]:
    """Replace a checkpoint's safetensors by a pickle of what `wrap` makes of its tensors; give the tensors."""
    tensors = load_file(checkpoint / WEIGHTS)
    torch.save(wrap(tensors), checkpoint / name, **saving)
    (checkpoint / WEIGHTS).unlink()
    return tensors


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare names, dtypes, shapes and every bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(
            found[name].reshape(-1).view(torch.uint8), tensor.contiguous().reshape(-1).view(torch.uint8)
        ), name


def refused(checkpoint: Path, tmp_path: Path) -> str:
    """Convert, expect a CheckpointError and nothing left, and give its message."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(checkpoint, tmp_path / "converted")
    assert sorted(tmp_path.iterdir()) == before
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrap", "saving"),
    [
        (PICKLED, dict, {}),
        (PICKLED, dict, {"_use_new_zipfile_serialization": False}),
        ("clip.pt", lambda tensors: {"state_dict": tensors, "epoch": 3}, {}),
        ("clip.pth", lambda tensors: {"model": {f"module.{name}": tensors[name] for name in tensors}}, {}),
        (
            "clip.ckpt",
            lambda tensors: {name: torch.nn.Parameter(tensors[name]) for name in tensors},
            {"pickle_protocol": 2},
        ),
    ],
)
def test_equal_tensors(
    checkpoint: Path, tmp_path: Path, name: str, wrap: Callable[[Any], Any], saving: dict[str, Any]
) -> None:
    """Every layout gives the same tensors under the names of the model, with the other files beside them."""
    expected = pickled(checkpoint, name, wrap, **saving)
    assert convert_checkpoint(checkpoint, tmp_path / "converted") == tmp_path / "converted"
    assert_equal(load_file(tmp_path / "converted" / WEIGHTS), expected)
    assert {path.name for path in (tmp_path / "converted").iterdir()} == {
        path.name for path in checkpoint.iterdir() if path.name != name
    } | {WEIGHTS}


def test_tensors_of_every_kind(checkpoint: Path, tmp_path: Path) -> None:
    """Each dtype, scalars, empty, transposed and shared tensors keep dtype, shape and bits."""
    base = torch.randn(6, 4)
    tensors = {
        **{
            f"of.{dtype}": torch.arange(-3, 4).to(getattr(torch, dtype))
            for dtype in ("float64", "float16", "bfloat16", "float8_e4m3fn", "int64", "int16", "uint8", "bool")
        },
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "transposed": base.t(),
        "part": base[1:3],
        "tied": base,
        "文本": base,
    }
    (checkpoint / WEIGHTS).unlink()
    torch.save(tensors, checkpoint / PICKLED)
    convert_checkpoint(checkpoint, tmp_path / "converted")
    assert_equal(load_file(tmp_path / "converted" / WEIGHTS), tensors)
    with safe_open(tmp_path / "converted" / WEIGHTS, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def shards_of(checkpoint: Path) -> dict[str, Any]:
    """Split a checkpoint's weights into two pickles with an index; give the tensors."""
    tensors = load_file(checkpoint / WEIGHTS)
    (checkpoint / WEIGHTS).unlink()
    names = sorted(tensors)
    files = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for file, own in files.items():
        torch.save({name: tensors[name] for name in own}, checkpoint / file)
    weight_map = {name: file for file, own in files.items() for name in own}
    (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


@pytest.mark.slow
def test_shards_in_and_out(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are read by their index, and written with one above the size of a file; transformers loads them."""
    from transformers import CLIPModel

    expected = shards_of(checkpoint)
    monkeypatch.setattr(convert, "MAX_SHARD_BYTES", 50_000)
    folder = convert_checkpoint(checkpoint, tmp_path / "converted")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert not list(folder.glob("*.bin*"))
    assert_equal({name: tensor for file in files for name, tensor in load_file(file).items()}, expected)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert_equal(CLIPModel.from_pretrained(folder).state_dict(), expected)


@pytest.mark.slow
def test_open_clip(checkpoint: Path, tmp_path: Path) -> None:
    """OpenCLIP's file gets OpenCLIP's name."""
    expected = pickled(checkpoint, "open_clip_pytorch_model.bin")
    (checkpoint / "open_clip_config.json").write_text("{}")
    folder = convert_checkpoint(checkpoint, tmp_path / "converted")
    assert_equal(load_file(folder / "open_clip_model.safetensors"), expected)
    assert (folder / "open_clip_config.json").is_file()


@pytest.mark.slow
def test_no_code_and_no_pickles_are_copied(checkpoint: Path, tmp_path: Path) -> None:
    """Programs, pickles and the state of a training stay behind; the modules of sentence-transformers come along."""
    pickled(checkpoint)
    for name in ("modeling_clip.py", "optimizer.pt", "training_args.bin", "rng_state.pth", "1_Pooling/config.json"):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_bytes(b"{}")
    folder = convert_checkpoint(checkpoint, tmp_path / "converted")
    assert (folder / "1_Pooling" / "config.json").is_file()
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".txt", ".safetensors"}


@pytest.mark.slow
def test_same_bundle(checkpoint: Path, tmp_path: Path) -> None:
    """The converted checkpoint exports to the space and the embeddings of the safetensors that it came from."""
    from twinspire import Client
    from twinspire_export import export_checkpoint

    export_checkpoint(checkpoint, tmp_path / "before")
    pickled(checkpoint)
    export_checkpoint(convert_checkpoint(checkpoint, tmp_path / "converted"), tmp_path / "after", name="tiny-clip")
    texts, images = ["a red car", "一只猫", ""], [np.full((40, 30, 3), 90, np.uint8)]
    with Client.local(tmp_path / "before") as before, Client.local(tmp_path / "after") as after:
        assert before.bundle.space == after.bundle.space
        assert np.array_equal(before.encode_texts(texts), after.encode_texts(texts))
        assert np.array_equal(before.encode_images(images), after.encode_images(images))


class Call:
    """A pickle that calls `function` when a common unpickler reads it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def zipped(content: bytes, *, compression: int = zipfile.ZIP_STORED, **others: bytes) -> bytes:
    """Pack a pickle as torch.save packs one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
        for name, data in others.items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def marker_of(tmp_path: Path) -> Path:
    """Give the file that hostile pickles try to write."""
    return tmp_path.parent / f"{tmp_path.name}-executed"


HOSTILE: dict[str, Callable[[str], bytes]] = {
    "os.system": lambda command: pickle.dumps(Call(os.system, command), 2),
    "protocol 4": lambda command: pickle.dumps(Call(os.system, command), 4),
    "os.system in a zip": lambda command: zipped(pickle.dumps(Call(os.system, command), 2)),
    "nested": lambda command: zipped(pickle.dumps({"state_dict": {"a": [Call(os.system, command)]}}, 2)),
    "builtins.eval": lambda command: zipped(pickle.dumps(Call(eval, f"__import__('os').system({command!r})"), 2)),
    "builtins.getattr": lambda command: zipped(pickle.dumps(Call(getattr, command, "strip"), 2)),
    "subprocess": lambda command: zipped(pickle.dumps(Call(subprocess.getoutput, command), 2)),
    "torch.hub": lambda command: zipped(f"ctorch.hub\nload\n(V{command}\ntR.".encode()),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_code_is_not_executed(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    """A pickle that calls a function is refused; the function is not called and nothing is left behind."""
    (checkpoint / WEIGHTS).unlink()
    content = HOSTILE[kind](f"touch {marker_of(tmp_path)}")
    (checkpoint / PICKLED).write_bytes(content)
    message = refused(checkpoint, tmp_path)
    assert PICKLED in message
    assert "state dict" not in message, "the pickle was read to its end"
    assert "weights_only" not in message, "torch's advice to load the file in an unsafe way was passed on"
    assert not marker_of(tmp_path).exists()


def test_the_hostile_pickles_are_hostile(tmp_path: Path) -> None:
    """The pickle of the test above does call its function where Python's own unpickler reads it."""
    pickle.loads(HOSTILE["os.system"](f"touch {marker_of(tmp_path)}"))
    assert marker_of(tmp_path).exists()


def tuples_within_tuples() -> bytes:
    """Give a dict whose key, tuples of twice the same to a depth of 60, takes 2**60 steps to hash."""
    doubled = b"".join(struct.pack("<BBBBB", 0x71, level, 0x68, level, 0x86) for level in range(60))
    return b"\x80\x02}K\x01" + doubled + b"K\x01s."


def allocation_of(count: int) -> bytes:
    """Give a dict with a bytearray of `count` bytes, which weights_only allows."""
    return b"\x80\x02}X\x01\x00\x00\x00ac__builtin__\nbytearray\n\x8a\x08" + struct.pack("<q", count) + b"\x85Rs."


@pytest.mark.slow
@pytest.mark.parametrize("count", [1 << 29, 1 << 40])
def test_memory_is_bounded(checkpoint: Path, tmp_path: Path, count: int) -> None:
    """A file of a hundred bytes that asks for half a GiB, or a TiB, is refused for it."""
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / PICKLED).write_bytes(zipped(allocation_of(count)))
    assert "more memory" in refused(checkpoint, tmp_path)


def test_storage_larger_than_the_file(checkpoint: Path, tmp_path: Path) -> None:
    """A tensor whose file says that it has a billion numbers, and holds few, is refused for its memory."""
    (checkpoint / WEIGHTS).unlink()
    torch.save({"a": torch.zeros(70_001)}, checkpoint / PICKLED, _use_new_zipfile_serialization=False)
    content = (checkpoint / PICKLED).read_bytes()
    stated, huge = (b"J" + struct.pack("<i", count) for count in (70_001, 1 << 30))
    assert stated in content
    (checkpoint / PICKLED).write_bytes(content.replace(stated, huge))
    assert "more memory" in refused(checkpoint, tmp_path)


@pytest.mark.slow
def test_memory_of_the_bound_is_there(checkpoint: Path, tmp_path: Path) -> None:
    """The same file with an allocation below the bound is read, and refused for what it holds."""
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / PICKLED).write_bytes(zipped(allocation_of(convert.MEMORY_BYTES // 2)))
    assert "state dict" in refused(checkpoint, tmp_path)


@pytest.mark.slow
def test_compressed_pickle(checkpoint: Path, tmp_path: Path) -> None:
    """A zip whose pickle unpacks to a thousand times its size is refused for the memory that it takes."""
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / PICKLED).write_bytes(zipped(bytes(1 << 29), compression=zipfile.ZIP_DEFLATED))
    assert (checkpoint / PICKLED).stat().st_size < 1 << 20
    assert "more memory" in refused(checkpoint, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1 << 20, 1 << 40])
def test_tensor_larger_than_the_file(checkpoint: Path, tmp_path: Path, count: int) -> None:
    """A tensor that repeats one number a million times, or more than memory holds, is refused by its size."""
    (checkpoint / WEIGHTS).unlink()
    torch.save({"a": torch.zeros(1).expand(count)}, checkpoint / PICKLED)
    assert "bytes" in refused(checkpoint, tmp_path)


@pytest.mark.slow
def test_time_is_bounded(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that takes for ever to read is refused when its time is over."""
    monkeypatch.setattr(convert, "TIME_S", 8.0)
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / PICKLED).write_bytes(zipped(tuples_within_tuples()))
    assert "longer" in refused(checkpoint, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kept", [0, 3, 1000, 0.5, -1])
def test_truncated_file(checkpoint: Path, tmp_path: Path, kept: float, old: bool) -> None:
    """A file that was cut off is refused by its name, wherever the cut is."""
    pickled(checkpoint, _use_new_zipfile_serialization=not old)
    content = (checkpoint / PICKLED).read_bytes()
    (checkpoint / PICKLED).write_bytes(content[: int(len(content) * kept) if kept == 0.5 else int(kept)])
    assert PICKLED in refused(checkpoint, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"epoch": 3}, "state dict"),
        ([torch.zeros(2)], "state dict"),
        (torch.zeros(2), "state dict"),
        ({}, "state dict"),
        ({"a": torch.zeros(2), "b": 3}, "'b'"),
        ({7: torch.zeros(2)}, "int"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "complex64"),
        ({"a": torch.eye(3).to_sparse()}, "sparse"),
        ({"a": torch.zeros(2, device="meta")}, "'a'"),
    ],
)
def test_other_than_a_state_dict(checkpoint: Path, tmp_path: Path, content: Any, named: str) -> None:
    """Data other than dense tensors by name is refused for what it is."""
    (checkpoint / WEIGHTS).unlink()
    torch.save(content, checkpoint / PICKLED)
    assert named in refused(checkpoint, tmp_path)


@pytest.mark.slow
def test_torchscript(checkpoint: Path, tmp_path: Path) -> None:
    """A TorchScript archive, as OpenAI published CLIP, is refused as a program, with where to get its weights."""
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / "ViT-B-32.pt").write_bytes(zipped(b"\x80\x02}.", **{"constants.pkl": b"\x80\x02)."}))
    message = refused(checkpoint, tmp_path)
    assert "TorchScript" in message
    assert "openai/clip-vit-base-patch32" in message


@pytest.mark.parametrize(
    ("files", "named"),
    [((), "no pickled weights"), (("a.pt", "b.pt"), "b.pt"), ((WEIGHTS, PICKLED), "export it")],
)
def test_which_file(checkpoint: Path, tmp_path: Path, files: tuple[str, ...], named: str) -> None:
    """A folder without pickles, with several of no known name, or with safetensors is refused."""
    (checkpoint / WEIGHTS).unlink()
    for file in files:
        (checkpoint / file).touch()
    assert named in refused(checkpoint, tmp_path)


def test_missing_and_doubled_shards(checkpoint: Path, tmp_path: Path) -> None:
    """A shard that the index names and the folder lacks is named, and so is a tensor in two shards."""
    name = min(shards_of(checkpoint))
    first, second = sorted(checkpoint.glob("*.bin"))
    torch.save({name: torch.zeros(2)}, second)
    assert name in refused(checkpoint, tmp_path)
    first.unlink()
    assert first.name in refused(checkpoint, tmp_path)


def test_destination(checkpoint: Path, tmp_path: Path) -> None:
    """A destination that exists or has no parent is an InputError before anything is read."""
    for output in (checkpoint, tmp_path / "no" / "such"):
        with pytest.raises(InputError) as caught:
            convert_checkpoint(checkpoint, output)
        assert caught.value.option == "output"


@pytest.mark.slow
def test_disk_that_is_full(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk is full nothing is left behind."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    pickled(checkpoint)
    monkeypatch.setattr(convert, "_copy_others", full)
    assert "space" in refused(checkpoint, tmp_path)


def run_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, result: str) -> None:
    """Let the worker run `code` in place of opening `file`, and refuse with `result` between two `=`."""
    script = tmp_path / "worker.py"
    script.write_text(
        f"""
import importlib.util, os, signal, socket, subprocess
spec = importlib.util.spec_from_file_location("worker", {str(convert.WORKER)!r})
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
def load(file):
{code}
    raise worker.RefusedError(f"={{{result}}}=")
worker._load = load
worker.main()
"""
    )
    monkeypatch.setattr(convert, "WORKER", script)


ATTEMPTS = (
    "socket.create_connection(('127.0.0.1', PORT), timeout=5)",
    "socket.socket(socket.AF_UNIX)",
    "socket.socketpair()",
    "os.fork()",
    "subprocess.run(['/bin/true'])",
    "os.execv('/no/such/program', ['program'])",
    "open(MARKER, 'w')",
    "open(MARKER, 'a')",
    "os.mkdir(MARKER)",
    "os.unlink(file)",
    "os.rename(file, MARKER)",
    "os.truncate(file, 0)",
    "os.chmod(file, 0o777)",
    "os.symlink(file, MARKER)",
    "os.kill(os.getppid(), signal.SIGCONT)",
    "os.memfd_create('code')",
    "os.setuid(0)",
)


def test_process_that_reads_is_confined(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code in the place of the unpickler has no network, starts and signals no process, and changes no file."""
    pickled(checkpoint)
    with socket.create_server(("127.0.0.1", 0)) as server:
        names = f"PORT, MARKER = {server.getsockname()[1]}, {str(marker_of(tmp_path))!r}"
        tried = [f"    try: {attempt}\n    except PermissionError: prevented += 1" for attempt in ATTEMPTS]
        run_instead(tmp_path, monkeypatch, "\n".join([f"    {names}; prevented = 0", *tried]), "prevented")
        assert f"={len(ATTEMPTS)}=" in refused(checkpoint, tmp_path)
    assert not marker_of(tmp_path).exists()
    assert (checkpoint / PICKLED).stat().st_size > 0


@pytest.mark.slow
def test_environment_is_not_passed_on(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that reads has none of the caller's variables, such as credentials."""
    pickled(checkpoint)
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    run_instead(tmp_path, monkeypatch, "", "' '.join(sorted(os.environ))")
    message = refused(checkpoint, tmp_path)
    assert "OMP_NUM_THREADS" in message
    assert "SECRET_TOKEN" not in message


@pytest.mark.slow
def test_limits(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that reads dumps no core, writes no byte to a file, and has a bound on its processor time."""
    pickled(checkpoint)
    limits = "' '.join(line[:40].strip() for line in open('/proc/self/limits') if line.split()[-3] == '0')"
    run_instead(tmp_path, monkeypatch, "", limits)
    message = refused(checkpoint, tmp_path)
    assert "Max core file size" in message
    assert "Max file size" in message


@pytest.mark.slow
def test_process_ends_with_the_command(checkpoint: Path, tmp_path: Path) -> None:
    """Where the command is killed, the process that reads ends too, in the middle of a file that takes for ever."""
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / PICKLED).write_bytes(zipped(tuples_within_tuples()))
    code = (
        f"import twinspire_export; twinspire_export.convert_checkpoint({str(checkpoint)!r}, {str(tmp_path / 'new')!r})"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    command = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
    try:
        wait_until(lambda: children.read_text().split())
        reader = Path("/proc", children.read_text().split()[0])
        wait_until(lambda: "Seccomp:\t2" in (reader / "status").read_text())
    finally:
        command.kill()
        command.wait()
    wait_until(lambda: not reader.exists() or "State:\tZ" in (reader / "status").read_text())


def wait_until(holds: Callable[[], Any]) -> None:
    """Wait until something holds."""
    end_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.05)


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        struct.pack("<Q", 1 << 40),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{}",
        b'\x4a\0\0\0\0\0\0\0{"__metadata__":{},"a":{"dtype":"F32","shape":[9],"data_offsets":[0,-8]}}  ',
        b'\x50\0\0\0\0\0\0\0{"__metadata__":{},"a":{"dtype":"F32","shape":[9],"data_offsets":[0,99999999999]}}  ',
        b'\x48\0\0\0\0\0\0\0{"__metadata__":{},"a":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}}' + bytes(8),
        b'\x48\0\0\0\0\0\0\0{"__metadata__":{},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}' + bytes(9),
    ],
)
def test_what_the_process_sends_is_checked(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bytes
) -> None:
    """A process that was taken over and sends other than safetensors is refused, without a traceback."""
    pickled(checkpoint)
    script = tmp_path / "worker.py"
    script.write_text(f"import sys; sys.stdout.buffer.write({stream!r})")
    monkeypatch.setattr(convert, "WORKER", script)
    refused(checkpoint, tmp_path)


def test_imports_of_the_worker() -> None:
    """The process that reads imports nothing of twinspire, and torch only when it runs."""
    code = f"import runpy, sys; runpy.run_path({str(convert.WORKER)!r}); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "twinspire", "twinspire_export"} & set(modules.split())
