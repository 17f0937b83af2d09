"""Options of a repository that `twinspire tune` chooses: instances, batch and queue, and the record of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from twinspire.errors import InputError
from twinspire_server.repository import build_repository
from twinspire_server.repository.config import read_config


def parameters(model: Path) -> dict[str, str]:
    """Return the parameters of a model's configuration."""
    return {name: value.string_value for name, value in read_config(model).parameters.items()}


def test_instances_batch_and_queue_are_in_the_configuration(tiny: Any, tmp_path: Path) -> None:
    """Triton makes the processes and the batches, model.py the queue; without the options all is as before."""
    build_repository([tiny.bundle.path], tmp_path / "models", instances=2, max_batch=8, queue_batches=3)
    build_repository([tiny.bundle.path], tmp_path / "default")
    for tower in ("image", "text"):
        config = read_config(tmp_path / "models" / f"tiny_{tower}")
        assert (config.max_batch_size, config.instance_group[0].count) == (8, 2)
        assert parameters(tmp_path / "models" / f"tiny_{tower}")["queue_batches"] == "3"
        assert "queue_batches" not in parameters(tmp_path / "default" / f"tiny_{tower}")
        assert read_config(tmp_path / "default" / f"tiny_{tower}").instance_group[0].count == 1


@pytest.mark.parametrize("name", ["instances", "max_batch", "queue_batches"])
def test_bad_numbers_and_the_container_are_refused(tiny: Any, tmp_path: Path, name: str) -> None:
    """Numbers below 1 and absurd ones, and options that the container has no use for, name the option."""
    for options in ({name: 0}, {name: 10**6}, {name: 2, "runtime": "container"}):
        with pytest.raises(InputError) as caught:
            build_repository([tiny.bundle.path], tmp_path / "models", **options)  # type: ignore[arg-type]
        assert caught.value.option == name
    assert not (tmp_path / "models").exists()


def test_a_record_of_tuning_gives_the_options_that_are_not_given(tiny: Any, tmp_path: Path) -> None:
    """The choice of the record is used, an option that is given wins, and the file is in the models."""
    record = tmp_path / "chosen.json"
    record.write_text(json.dumps({"results": {"options": {"max_batch": 8, "queue_batches": 2}}}))
    build_repository([tiny.bundle.path], tmp_path / "models", tuning=record, queue_batches=5)
    model = tmp_path / "models" / "tiny_image"
    assert read_config(model).max_batch_size == 8
    assert (parameters(model)["queue_batches"], parameters(model)["tuning"]) == ("5", "tuning.json")
    assert (model / "1" / "tuning.json").read_text() == record.read_text()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"results": 1}', '{"results": {"options": {"threads": "two"}}}', "\x00"]
)
def test_a_file_that_is_no_record_of_tuning_is_refused(tiny: Any, tmp_path: Path, text: str) -> None:
    """Whatever else the file holds is an `InputError` with its path, and so is none."""
    record = tmp_path / "record.json"
    record.write_text(text)
    for path in (record, tmp_path / "missing.json"):
        with pytest.raises(InputError) as caught:
            build_repository([tiny.bundle.path], tmp_path / "models", tuning=path)
        assert caught.value.path == path
    assert not (tmp_path / "models").exists()
