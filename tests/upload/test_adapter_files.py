"""An adapter's files are found where trainers leave them; anything else says what to do."""

from pathlib import Path

import pytest

from app.domain.errors import Refused
from app.upload.adapter_files import AdapterFiles, adapter_files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def fill(directory: Path, *names: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).touch()
    return directory


def refusal(path: Path) -> str:
    with pytest.raises(Refused) as caught:
        adapter_files(path)
    assert caught.value.remedy
    return f"{caught.value.message} {caught.value.hint}"


def test_a_directory(tmp_path: Path) -> None:
    fill(tmp_path, CONFIG, WEIGHTS)
    assert adapter_files(tmp_path) == AdapterFiles(tmp_path / CONFIG, tmp_path / WEIGHTS)


def test_a_file_of_any_name_beside_its_configuration(tmp_path: Path) -> None:
    fill(tmp_path, CONFIG, "mine.safetensors")
    assert adapter_files(tmp_path / "mine.safetensors").config == tmp_path / CONFIG


def test_a_training_folder_with_one_checkpoint(tmp_path: Path) -> None:
    checkpoint = fill(tmp_path / "checkpoint-100", CONFIG, WEIGHTS)
    assert adapter_files(tmp_path).weights == checkpoint / WEIGHTS


def test_a_training_folder_that_holds_the_adapter_itself_besides(tmp_path: Path) -> None:
    fill(tmp_path / "checkpoint-100", CONFIG, WEIGHTS)
    fill(tmp_path, CONFIG, WEIGHTS)
    assert adapter_files(tmp_path).weights == tmp_path / WEIGHTS


def test_which_of_several_checkpoints_is_asked(tmp_path: Path) -> None:
    for step in (1000, 500, 50):
        fill(tmp_path / f"checkpoint-{step}", CONFIG, WEIGHTS)
    said = refusal(tmp_path)
    assert "checkpoint-50, checkpoint-500, checkpoint-1000" in said
    assert f"for example {tmp_path}/checkpoint-1000" in said


@pytest.mark.parametrize(
    ("names", "word"),
    [
        ((CONFIG, "adapter_model.bin"), "safe_serialization=True"),
        ((CONFIG, "adapters.safetensors"), "MLX"),
        (("params.json", "lora.safetensors"), "mistral-finetune"),
        (("config.json", "model.safetensors"), "whole model"),
        ((WEIGHTS,), CONFIG),
        ((CONFIG,), WEIGHTS),
    ],
)
def test_anything_else_says_what_to_do(tmp_path: Path, names: tuple[str, ...], word: str) -> None:
    assert word in refusal(fill(tmp_path / "a", *names))


def test_a_pickle_named_itself_and_nothing_at_all(tmp_path: Path) -> None:
    fill(tmp_path, "adapter_model.bin", "notes.txt")
    assert "pickle" in refusal(tmp_path / "adapter_model.bin")
    assert "not a .safetensors" in refusal(tmp_path / "notes.txt")
    assert "No such file" in refusal(tmp_path / "nothing")
