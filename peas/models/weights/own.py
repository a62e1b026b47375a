"""Fill an encoder of any kind from a checkpoint of a run of its own."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from peas.errors import CheckpointError
from peas.models.encoder import Encoder
from peas.models.weights.checking import check_weights
from peas.models.weights.reading import ImportReport

PREFIX = "model."
CLASSIFIER = ("head.", "fc_norm.")
PROBE = "pixel_probe."


def load_own(model: Encoder, state: Mapping[str, Any], where: str) -> ImportReport:
    """Fill an encoder from a run's checkpoint, by the names of its weights.

    The classifier is taken when it has the model's shape and stays fresh otherwise. A pixel probe
    belongs to the encoder as it was and is left out.

    Args:
        model: Filled in place.
        state: Content of the file.
        where: The file, for errors.

    Raises:
        CheckpointError: It is no checkpoint of a run with this encoder. The model is unchanged.
    """
    found = state.get("state_dict")
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"{where}: holds no `state_dict`, and {type(model).__name__} reads checkpoints of its "
            "own runs alone: give RUN/checkpoints/last.ckpt"
        )
    check_weights(found, where)
    new = {key.removeprefix(PREFIX): v for key, v in found.items() if key.startswith(PREFIX)}
    report = ImportReport(where, f"checkpoint of {type(model).__name__}")
    report.ignored = {
        key: "belongs to the training run, not to the model"
        for key in found
        if not key.startswith(PREFIX)
    }
    if model.num_classes:
        model.adopt_heads(new)
    own: dict[str, Tensor] = model.state_dict()
    for key in list(new):
        other = key not in own or own[key].shape != new[key].shape
        if key.startswith(PROBE) or (key.startswith(CLASSIFIER) and other):
            report.ignored[PREFIX + key] = "belongs to the run that the file is of"
            del new[key]
        elif other:
            have = list(own[key].shape) if key in own else "no such weight"
            raise CheckpointError(
                f"{where}: {key} has shape {list(new[key].shape)}, and the model {have}: give a "
                "checkpoint of the same encoder with the same settings"
            )
    for key in own:
        if key in new:
            continue
        if not key.startswith(CLASSIFIER):
            raise CheckpointError(
                f"{where}: {key} is missing: give a checkpoint of the same encoder with the same "
                "settings"
            )
        report.missing[key] = "the classifier is new"
    model.load_state_dict(new, strict=False)
    report.used = [PREFIX + key for key in new]
    return report
