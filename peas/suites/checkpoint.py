"""What all adapters need: the model that is measured, and a name for it."""

import hashlib
import json
import os

import torch

from peas.errors import ConfigError
from peas.inference.loading import load
from peas.inference.model import AudioModel, Bands

CHECKPOINT = "PEAS_CHECKPOINT"
"""Environment variable with the path for suites that pass none."""


def checkpoint(path: str = "") -> AudioModel:
    """The model of a path, or else of the environment variable `PEAS_CHECKPOINT`.

    Args:
        path: Whatever `peas.load` takes.

    Raises:
        ConfigError: Neither is given.
    """
    path = path or os.environ.get(CHECKPOINT, "")
    if not path:
        raise ConfigError(
            f"{CHECKPOINT} is not set and no path is given, so there is no model to measure: set "
            "it to a checkpoint, a run's folder, an exported folder or hf://owner/name"
        )
    return load(path)


def frame_dim(model: AudioModel, bands: Bands) -> int:
    """Width D' of an embedding over time, as `AudioModel.frames` gives it."""
    return model.dim * (model.encoder.grid[0] if bands == "concat" else 1)


def digest(model: AudioModel, **options: object) -> str:
    """Hex digits that change with the weights, the front end and the options.

    Suites find finished embeddings and scores by a model's name. Two checkpoints of one name would
    share them.
    """
    settings = [model.encoder.spec(), model.front_end.spec(), options]
    content = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:10]
