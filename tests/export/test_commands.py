"""`twinspire export` and `twinspire quantize` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

pytest.importorskip("torch", reason="the export needs torch")
pytest.importorskip("nncf", reason="quantizing needs nncf")

import torch
from PIL import Image
from safetensors.torch import load_file

import twinspire_export
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.cli import app as cli
from twinspire.errors import InputError
from twinspire_export.calibration import MAX_SAMPLES, read_captions, scene_captions, scene_images
from twinspire_export.commands import register
from twinspire_export.families import FAMILIES


@pytest.fixture(autouse=True)
def _only_these_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the root have this package's commands, whether or not the distribution is installed."""

    def application() -> typer.Typer:
        app = typer.Typer(pretty_exceptions_enable=False)
        register(app)
        return app

    monkeypatch.setattr(cli, "application", application)


def twinspire(*arguments: str | Path) -> int:
    """Run the command line and give its exit status."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.mark.slow
def test_export_then_quantize(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The two commands make bundles and report each engine; nothing of torch's or nncf's is shown."""
    assert twinspire("export", checkpoint, "-o", tmp_path / "fp32", "--name", "mine") == 0
    said = capsys.readouterr()
    assert all(line.startswith("export: ") for line in said.err.splitlines())
    reported = said.out.splitlines()
    assert len(reported) == 3
    assert "'mine'" in reported[0]
    assert "1.000000" in reported[1]

    pictures, captions = tmp_path / "pictures", tmp_path / "captions.txt"
    (pictures / "below").mkdir(parents=True)
    for name, colour in (("a.jpg", "red"), ("b.PNG", "blue"), ("below/c.webp", "green")):
        Image.new("RGB", (50, 40), colour).save(pictures / name)
    (pictures / "notes.txt").write_text("no picture")
    captions.write_text("a red car\n\n  一只猫  \n", encoding="utf-8")
    arguments = ("quantize", tmp_path / "fp32", "-o", tmp_path / "int8", "--min-cosine", "0")
    assert twinspire(*arguments, "--images", pictures, "--captions", captions) == 0
    said = capsys.readouterr()
    assert [line.partition(" ")[0] for line in said.err.splitlines()] == ["quantize:"] * 7
    reported = said.out.splitlines()
    assert len(reported) == 5
    assert " 3 " in reported[2]
    assert " 2 " in reported[4]
    assert Bundle.open(tmp_path / "int8").precisions(Tower.IMAGE) == (Precision.FP32, Precision.INT8)

    arguments = ("quantize", tmp_path / "fp32", "-o", tmp_path / "exact", "--min-cosine", "1")
    assert twinspire(*arguments, "--images", pictures, "--captions", captions) == 0
    named = [line for line in capsys.readouterr().out.splitlines() if "mlp-up:1" in line]
    assert len(named) == 2, "the layers that stay in float are named for both towers"


def test_choice_of_rewrites(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--rewrites` takes all, none or names; an unknown name ends with status 2 and the known ones."""
    assert twinspire("export", checkpoint, "-o", tmp_path / "some", "--rewrites", "qkv,norms") == 0
    assert "1.000000" in capsys.readouterr().out
    assert twinspire("export", checkpoint, "-o", tmp_path / "bundle", "--rewrites", "qvk") == 2
    assert "end-token" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_error_ends_with_status_2(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that cannot be exported ends with status 2 and its message on stderr; nothing is left."""
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    assert twinspire("export", checkpoint, "-o", tmp_path / "bundle") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "error: " in said.err
    assert "pickled" in said.err
    assert "Traceback" not in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-clip"]


def test_convert_then_export(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`convert` lists the files that it wrote; refusals end with status 2, one line on stderr and nothing left."""
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    assert twinspire("convert", checkpoint, "-o", tmp_path / "safe") == 0
    printed = capsys.readouterr()
    assert all(line.startswith("convert: ") for line in printed.err.splitlines())
    assert f"{tmp_path / 'safe' / 'model.safetensors'}  " in printed.out
    assert twinspire("convert", tmp_path / "safe", "-o", tmp_path / "again") == 2
    assert "model.safetensors" in capsys.readouterr().err.splitlines()[-1]
    assert twinspire("convert", checkpoint, "-o", tmp_path / "safe") == 2
    assert "exists" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_list_of_families(capsys: pytest.CaptureFixture[str]) -> None:
    """`--list` needs no checkpoint and prints a row for each family of the registry, with its examples."""
    assert twinspire("export", "--list") == 0
    printed = " ".join(capsys.readouterr().out.split())
    for family in FAMILIES.values():
        for word in (family.model_type, family.architecture, *family.examples):
            assert word in printed
    assert FAMILIES["clip"].examples
    assert twinspire("export") == 2
    assert "CHECKPOINT" in capsys.readouterr().err


def test_quantize_of_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is no bundle ends with status 2."""
    assert twinspire("quantize", tmp_path, "-o", tmp_path / "bundle") == 2
    assert "bundle.json" in capsys.readouterr().err


@pytest.mark.parametrize("missing", [True, False])
def test_folder_without_images(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: bool
) -> None:
    """A folder that is not there or has no images ends with status 2."""
    assert twinspire("export", checkpoint, "-o", tmp_path / "fp32") == 0
    folder = tmp_path / "pictures"
    if not missing:
        folder.mkdir()
        (folder / "notes.txt").touch()
    assert twinspire("quantize", tmp_path / "fp32", "-o", tmp_path / "int8", "--images", folder) == 2
    assert str(folder) in capsys.readouterr().err
    assert not (tmp_path / "int8").exists()


def test_captions_in_cocos_form(tmp_path: Path) -> None:
    """A .json file gives the captions of a data set in COCO's form."""
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"images": [], "annotations": [{"caption": "a cat", "id": 1}, {"caption": " 一只猫"}]}))
    assert read_captions(file) == ["a cat", "一只猫"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.txt", b"\n  \n"),
        ("latin.txt", "né".encode("latin-1")),
        ("list.json", b"[]"),
        ("cut.json", b'{"annotations": ['),
        ("other.json", b'{"annotations": [{"text": "a cat"}]}'),
        ("missing.txt", None),
    ],
)
def test_captions_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None) -> None:
    """A file without captions, of another encoding or form, or that is not there is an InputError that names it."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_captions(tmp_path / name)


@pytest.mark.slow
def test_drawn_scenes_are_the_default() -> None:
    """Where nothing is given there are 320 drawn images and as many captions, half of them Chinese."""
    captions = scene_captions()
    assert len(scene_images()) == len(captions) == MAX_SAMPLES
    assert sum(any("\u4e00" <= character <= "\u9fff" for character in text) for text in captions) == MAX_SAMPLES // 2


def test_public_names() -> None:
    """The package exports three functions, and knows no others."""
    assert twinspire_export.__all__ == ["convert_checkpoint", "export_checkpoint", "quantize_bundle"]
    assert all(callable(getattr(twinspire_export, name)) for name in twinspire_export.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = twinspire_export.no_such_name
