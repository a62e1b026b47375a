"""Folders that `peas export --format hf` writes, read as the checkpoint of a run."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from peas.errors import CheckpointError
from peas.models.weights.checking import check_weights
from peas.utils.files import checksum

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
"""Version of the folder; a later one may not be read."""
PARTS = {"encoder.": "model.", "front_end.": "front_end."}
"""Prefixes of an `AudioModel`'s keys, and of those in a run's checkpoint."""


def exported_folder(path: Path) -> Path | None:
    """The exported folder that a path is, or whose weights it is; None if it is something else."""
    folder = path.parent if path.name == WEIGHTS and path.is_file() else path
    if not (folder / CONFIG).is_file():
        return None
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return (
        folder if isinstance(config, dict) and {"encoder", "front_end"} <= config.keys() else None
    )


def read_config(folder: Path, where: str) -> dict[str, Any]:
    """Settings of an exported model.

    Args:
        folder: With `config.json`.
        where: The folder, for errors.

    Raises:
        CheckpointError: They are not those of `peas export --format hf`.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: {CONFIG}: cannot be read ({error})") from error
    if not isinstance(config, dict) or not {"encoder", "front_end"} <= config.keys():
        raise CheckpointError(
            f"{where}: {CONFIG}: names no `encoder` and `front_end`, so it was not written by "
            "`peas export --format hf`"
        )
    labels = config.get("labels") or []
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f"{where}: {CONFIG}: labels is no list of names; get it again")
    if config.get("scores", "softmax") not in ("softmax", "sigmoid"):
        raise CheckpointError(f"{where}: {CONFIG}: scores is neither softmax nor sigmoid")
    if not isinstance(config.get("origin") or {}, dict):
        raise CheckpointError(f"{where}: {CONFIG}: origin is no table; get it again")
    written = config.get("peas")
    number = written.get("format") if isinstance(written, dict) else FORMAT
    if number != FORMAT:
        raise CheckpointError(
            f"{where}: {CONFIG}: has format {number!r}, and this release reads {FORMAT}: upgrade "
            "peas"
        )
    return config


def read_weights(folder: Path, where: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of an exported model, under the keys of `AudioModel`.

    Args:
        folder: With `model.safetensors`.
        where: The folder, for errors.
        config: Of `read_config`; where it has the file's checksum, that is compared.

    Raises:
        CheckpointError: The file is missing, damaged or changed.
    """
    file = folder / WEIGHTS
    try:
        tensors = load_file(file)
        written = config.get("peas") or {}
        changed = "checksum" in written and checksum(file) != written["checksum"]
    except (
        *(SafetensorError, OSError, ValueError, LookupError),
        *(TypeError, AttributeError, MemoryError, RuntimeError),
    ) as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{where}: {WEIGHTS}: cannot be read ({text}); export or download it again"
        ) from error
    if changed:
        raise CheckpointError(
            f"{where}: {WEIGHTS}: is not the file that was exported with {CONFIG} (another "
            "checksum); export or download both again"
        )
    check_weights(tensors, f"{where}: {WEIGHTS}", named=True)
    for key, value in tensors.items():
        if not key.startswith(tuple(PARTS)):
            raise CheckpointError(
                f"{where}: {WEIGHTS}: unexpected key {key} (shape {list(value.shape)}); export or "
                "download it again"
            )
    return tensors


def read_exported(folder: Path, where: str) -> dict[str, Any]:
    """An exported folder as the content of a run's checkpoint.

    Args:
        folder: Of `exported_folder`.
        where: As the user named it, for errors.

    Raises:
        CheckpointError: It cannot be read.
    """
    config = read_config(folder, where)
    state: dict[str, Tensor] = {}
    for key, value in read_weights(folder, where, config).items():
        prefix = next(prefix for prefix in PARTS if key.startswith(prefix))
        state[PARTS[prefix] + key.removeprefix(prefix)] = value
    sigmoid = config.get("scores") == "sigmoid"
    return {
        "state_dict": state,
        "hyper_parameters": {
            "_class_path": "peas.tasks.Classification",
            "encoder": config["encoder"],
            "front_end": config["front_end"],
            "labels": list(config.get("labels") or []),
            "loss": "bce" if sigmoid else "ce",
            "multi_label": sigmoid,
            "reconstruction": "head",
            "recipe": None,
        },
    }
