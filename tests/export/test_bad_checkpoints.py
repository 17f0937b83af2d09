"""What cannot become a bundle gets a CheckpointError that says why, and leaves nothing."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the export needs torch")

import huggingface_hub.constants
import torch
from safetensors.torch import load_file, save_file

from twinspire.errors import CheckpointError
from twinspire_export import export_checkpoint

WEIGHTS = "model.safetensors"


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file by a function that is given its content."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a checkpoint by a function that is given them."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def refused(checkpoint: Path | str, tmp_path: Path) -> str:
    """Export, expect a CheckpointError and nothing left, and give its message."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert sorted(tmp_path.iterdir()) == before
    return str(caught.value)


def test_missing_tensor(checkpoint: Path, tmp_path: Path) -> None:
    """A missing tensor is named, not made up at random."""
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    edit_weights(checkpoint, lambda tensors: tensors.pop(name))
    assert name in refused(checkpoint, tmp_path)


def test_many_missing_tensors(checkpoint: Path, tmp_path: Path) -> None:
    """Of many missing tensors the message counts all and names some."""
    edit_weights(checkpoint, lambda tensors: [tensors.pop(name) for name in list(tensors) if "text_model" in name])
    message = refused(checkpoint, tmp_path)
    assert " 36 " in message
    assert " 28 " in message


def test_tensor_of_another_shape(checkpoint: Path, tmp_path: Path) -> None:
    """A tensor of another shape is named with both shapes."""
    edit_weights(checkpoint, lambda tensors: tensors.update({"text_projection.weight": torch.zeros(7, 32)}))
    message = refused(checkpoint, tmp_path)
    assert all(datum in message for datum in ("text_projection.weight", "(7, 32)", "(24, 32)"))


def test_superfluous_tensors_do_no_harm(checkpoint: Path, tmp_path: Path) -> None:
    """Buffers such as position_ids, which older checkpoints hold, are let pass."""
    ids = torch.arange(32)[None]
    edit_weights(checkpoint, lambda tensors: tensors.update({"text_model.embeddings.position_ids": ids}))
    assert export_checkpoint(checkpoint, tmp_path / "bundle").dim == 24


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(checkpoint: Path, tmp_path: Path, value: float) -> None:
    """Weights with NaN or infinities are refused: torch itself gives no embedding."""
    edit_weights(checkpoint, lambda tensors: tensors["visual_projection.weight"].fill_(value))
    assert "NaN" in refused(checkpoint, tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "clip.ckpt", "weights.pkl"])
def test_pickled_weights_are_never_opened(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """A checkpoint with pickled weights only is refused with the way to convert it; the pickle is not run."""
    (checkpoint / WEIGHTS).unlink()

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    (checkpoint / name).write_bytes(pickle.dumps(Bomb()))
    message = refused(checkpoint, tmp_path)
    assert name in message
    assert "save_pretrained" in message


def test_no_weights(checkpoint: Path, tmp_path: Path) -> None:
    """A folder without weights is refused by the name of the file that it lacks."""
    (checkpoint / WEIGHTS).unlink()
    assert WEIGHTS in refused(checkpoint, tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_weights(checkpoint: Path, tmp_path: Path, kept: int) -> None:
    """A safetensors file that was cut off is refused, wherever the cut is."""
    file = checkpoint / WEIGHTS
    file.write_bytes(file.read_bytes()[:kept])
    assert WEIGHTS in refused(checkpoint, tmp_path)


def test_missing_shard(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """A shard that the index names and the folder lacks is named."""
    checkpoint = make_checkpoint(tmp_path / "sharded", max_shard_size="50KB")
    shard = sorted(checkpoint.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refused(checkpoint, tmp_path)


@pytest.mark.parametrize("shard", ["pytorch_model-00001-of-00002.bin", "../outside.safetensors", 7])
def test_shards_that_are_no_safetensors_of_the_folder(checkpoint: Path, tmp_path: Path, shard: str | int) -> None:
    """An index may not lead to pickles nor out of the folder."""
    (checkpoint / WEIGHTS).rename(checkpoint.parent / "outside.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert str(shard) in refused(checkpoint, tmp_path)


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 1}'])
def test_malformed_index(checkpoint: Path, tmp_path: Path, index: str) -> None:
    """An index that names no shards is refused."""
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / "model.safetensors.index.json").write_text(index)
    assert "weight_map" in refused(checkpoint, tmp_path)


def test_tensor_in_two_shards(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """The same tensor in two shards is refused: it has no one value."""
    checkpoint = make_checkpoint(tmp_path / "sharded", max_shard_size="50KB")
    first, second = sorted(checkpoint.glob("model-*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second, {"format": "pt"})
    assert name in refused(checkpoint, tmp_path)


def test_unknown_architecture(checkpoint: Path, tmp_path: Path) -> None:
    """Another architecture is named together with those that are known."""
    edit_json(checkpoint / "config.json", lambda config: config.update(model_type="blip"))
    message = refused(checkpoint, tmp_path)
    assert "'blip'" in message
    assert " clip" in message


def test_one_tower_only(checkpoint: Path, tmp_path: Path) -> None:
    """A CLIP checkpoint of another head than the two towers is refused by its class."""
    edit_json(checkpoint / "config.json", lambda config: config.update(architectures=["CLIPForImageClassification"]))
    assert "CLIPForImageClassification" in refused(checkpoint, tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '"clip"'])
def test_malformed_config(checkpoint: Path, tmp_path: Path, content: str) -> None:
    """A config.json that is no JSON object is refused."""
    (checkpoint / "config.json").write_text(content)
    assert "config.json" in refused(checkpoint, tmp_path)


def test_config_that_transformers_cannot_use(checkpoint: Path, tmp_path: Path) -> None:
    """What transformers cannot build is refused with its own reason."""
    edit_json(checkpoint / "config.json", lambda config: config["text_config"].update(hidden_act="no_such_function"))
    assert "no_such_function" in refused(checkpoint, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_missing_file(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """A missing config, tokenizer or preprocessor file is named."""
    (checkpoint / name).unlink()
    assert name in refused(checkpoint, tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_malformed_file(checkpoint: Path, tmp_path: Path, name: str, content: str) -> None:
    """A tokenizer or preprocessor file that says nothing is refused, or that its defaults do not fit the model."""
    (checkpoint / name).write_text(content)
    refused(checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": {"height": 32, "width": 48}}, "'size'"),
        ({"size": {"longest_edge": 32}}, "'size'"),
        ({"size": {"height": 48, "width": 48}}, "'crop_size'"),
        ({"do_resize": False}, "'do_resize'"),
        ({"resample": 4}, "'resample'"),
        ({"do_center_crop": False}, "'do_center_crop'"),
        ({"crop_size": {"height": 32, "width": 48}}, "'crop_size'"),
        ({"crop_size": {"height": 24, "width": 24}}, " 24 "),
        ({"do_rescale": False}, "'do_rescale'"),
        ({"rescale_factor": 1 / 127.5}, "'rescale_factor'"),
        ({"image_std": [0.5, 0.0, 0.5]}, "'image_std'"),
        ({"image_mean": [0.5]}, "'image_mean'"),
        ({"image_mean": 0.5}, "malformed"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "malformed"),
        ({"size": {"shortest_edge": "large"}}, "malformed"),
        ({"resample": "bicubic"}, "'resample'"),
    ],
)
def test_preprocessing_that_a_bundle_cannot_express(
    checkpoint: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """Preprocessing beyond resizing to a square, 1/255 and normalisation is refused by the setting's name."""
    edit_json(checkpoint / "preprocessor_config.json", lambda config: config.update(change))
    assert said in refused(checkpoint, tmp_path)


def test_channels_other_than_rgb(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """A model of grey images is refused."""
    checkpoint = make_checkpoint(tmp_path / "grey", channels=1)
    assert " 1 " in refused(checkpoint, tmp_path)


def test_tokenizer_without_end_token(checkpoint: Path, tmp_path: Path) -> None:
    """A tokenizer that does not write the end token, where the tower is pooled, is refused."""
    edit_json(checkpoint / "tokenizer.json", lambda tokenizer: tokenizer.update(post_processor=None))
    assert "post-processor" in refused(checkpoint, tmp_path)


@pytest.mark.parametrize("eos_id", [49407, 0])
def test_pooling_at_another_token(checkpoint: Path, tmp_path: Path, eos_id: int) -> None:
    """A text tower that is pooled at another token than the tokenizer's end is refused, naming both."""
    edit_json(checkpoint / "config.json", lambda config: config["text_config"].update(eos_token_id=eos_id))
    message = refused(checkpoint, tmp_path)
    assert f" {eos_id} " in message
    assert "322" in message


def test_legacy_pooling_with_a_higher_id_than_the_end(checkpoint: Path, tmp_path: Path) -> None:
    """Legacy pooling, at the highest id, is refused where the end token has not the highest."""
    edit_json(checkpoint / "config.json", lambda config: config["text_config"].update(eos_token_id=2))

    edit_json(
        checkpoint / "tokenizer.json",
        lambda tokenizer: tokenizer["post_processor"].update(
            special_tokens={
                "<start>": {"id": "<start>", "ids": [322], "tokens": ["<end>"]},
                "<end>": {"id": "<end>", "ids": [321], "tokens": ["<start>"]},
            }
        ),
    )
    edit_json(
        checkpoint / "tokenizer_config.json", lambda config: config.update(bos_token="<end>", eos_token="<start>")
    )
    assert "highest" in refused(checkpoint, tmp_path)


def test_tokenizer_of_another_model(checkpoint: Path, tmp_path: Path) -> None:
    """A tokenizer with ids beyond the embeddings is refused."""
    edit_json(checkpoint / "config.json", lambda config: config["text_config"].update(vocab_size=300))
    edit_weights(
        checkpoint,
        lambda tensors: tensors.update(
            {
                "text_model.embeddings.token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"][
                    :300
                ].clone()
            }
        ),
    )
    assert "322" in refused(checkpoint, tmp_path)


def test_engine_larger_than_a_file(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tower that does not fit one ONNX file is refused with its size."""
    monkeypatch.setattr("twinspire_export.onnx_export.MAX_GRAPH_BYTES", 1000)
    assert "GiB" in refused(checkpoint, tmp_path)


def test_file_in_place_of_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    """A file is no checkpoint, not even one with weights."""
    assert " file" in refused(checkpoint / WEIGHTS, tmp_path)


@pytest.mark.parametrize("name", ["./no/such/folder", "/nowhere", "", "a/b/c", "https://huggingface.co/openai/clip"])
def test_no_such_checkpoint(tmp_path: Path, name: str) -> None:
    """What is neither a folder nor reads like a hub id is refused at once."""
    message = refused(name, tmp_path)
    assert repr(name) in message
    assert "reached" not in message


def test_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id that cannot be reached says so, and that a local folder would do."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path.parent / "empty-cache"))
    message = refused("twinspire-tests/no-such-model", tmp_path)
    assert "reached" in message
    assert "folder" in message


def test_revision_of_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    """A folder has no revisions."""
    with pytest.raises(CheckpointError, match="revision"):
        export_checkpoint(checkpoint, tmp_path / "bundle", revision="main")
