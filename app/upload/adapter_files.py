"""Adapter on disk: the two files that are sent, found in the places where trainers leave them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.errors import BAD_SAFETENSORS, MISSING_PART, Refused

_PICKLED: Final = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin")
_OTHERS: Final = {
    "adapters.safetensors": "MLX's files: mlx-lm writes another layout than PEFT's, whose factors are transposed",
    "lora.safetensors": "mistral-finetune's file: its heads are in another order than Hugging Face's; train with PEFT",
}


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """Paths of adapter_config.json and of the weights."""

    config: Path
    weights: Path


def adapter_files(path: Path) -> AdapterFiles:
    """Return the files of an adapter at `path`: a directory, a `.safetensors` file beside its configuration, or a training
    output folder with one `checkpoint-*` in it. Raises Refused MISSING_PART or BAD_SAFETENSORS with what to do."""
    if path.is_file():
        return _beside(path)
    if not path.exists():
        raise Refused(MISSING_PART, f"{path}: No such file or directory", remedy="Name the adapter's directory.")
    weights = path / WEIGHTS_FILE
    if weights.is_file():
        return _beside(weights)
    checkpoints = sorted(path.glob(f"checkpoint-*/{WEIGHTS_FILE}"), key=_step)
    if len(checkpoints) == 1:
        return _beside(checkpoints[0])
    if checkpoints:
        names = ", ".join(one.parent.name for one in checkpoints)
        remedy = f"Name the one you mean, for example {checkpoints[-1].parent}."
        raise Refused(MISSING_PART, f"{path} holds several checkpoints: {names}", remedy=remedy)
    raise _without_weights(path)


def _step(checkpoint: Path) -> tuple[int, str]:
    number = checkpoint.parent.name.partition("-")[2]
    return (int(number) if number.isdecimal() else 0, number)


def _beside(weights: Path) -> AdapterFiles:
    if weights.suffix != ".safetensors":
        raise _pickled(weights) if weights.suffix in (".bin", ".pt", ".pth") else _not_weights(weights)
    config = weights.parent / CONFIG_FILE
    if not config.is_file():
        remedy = f"Put the {CONFIG_FILE} that PEFT wrote beside the weights."
        raise Refused(MISSING_PART, f"{config}: No such file or directory", remedy=remedy)
    return AdapterFiles(config, weights)


def _not_weights(path: Path) -> Refused:
    return Refused(MISSING_PART, f"{path} is not a .safetensors file", remedy="Name the adapter's directory.")


def _pickled(path: Path) -> Refused:
    remedy = (
        "Convert it: PeftModel.from_pretrained(base, directory).save_pretrained(new_directory, safe_serialization=True). "
        "Load only pickles of people whom you trust."
    )
    return Refused(BAD_SAFETENSORS, f"{path}: a pickle, which may run code when it is read", remedy=remedy)


def _without_weights(directory: Path) -> Refused:
    for name in _PICKLED:
        if (directory / name).is_file():
            return _pickled(directory / name)
    for name, what in _OTHERS.items():
        if (directory / name).is_file():
            return Refused(
                MISSING_PART, f"{directory / name}: {what}", remedy="docs/adapters.md lists what is accepted."
            )
    if (directory / "config.json").is_file():
        remedy = "Save the adapter with PEFT's save_pretrained before it is merged."
        return Refused(MISSING_PART, f"{directory} holds a whole model, not an adapter", remedy=remedy)
    message = f"{directory / WEIGHTS_FILE}: No such file or directory"
    return Refused(MISSING_PART, message, remedy="Name the directory that PEFT's save_pretrained wrote.")
