"""Fill an encoder from a file of weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peas.errors import CheckpointError
from peas.models.encoder import Encoder
from peas.models.weights.audiomae_keys import is_audiomae
from peas.models.weights.checking import malformed
from peas.models.weights.reading import ImportReport, read_state


def load_pretrained(model: Encoder, path: str | Path) -> ImportReport:
    """Fill an encoder from an official file of its family or a checkpoint of ours.

    Args:
        model: The encoder to fill, in place.
        path: The file.

    Raises:
        CheckpointError: The file cannot be used, or holds another encoder's weights.
    """
    state = read_state(path, pretrained=True)
    with malformed(str(path)):
        report: ImportReport = model.import_weights(state, str(path))
        return report


def require_family(state: Mapping[str, Any], where: str, ours: str) -> None:
    """Refuse official weights of the other family, whose keys would all be missing.

    Args:
        state: Content of the file.
        where: The file, for errors.
        ours: Class of the encoder.

    Raises:
        CheckpointError: They are of the other one.
    """
    inner = state.get("state_dict", state)
    found = "SSAST" if any(str(key).endswith("dist_token") for key in inner) else ""
    found = "AudioMAE" if is_audiomae(state) else found
    if found and found != ours:
        raise CheckpointError(
            f"{where}: holds {found} weights, and the model is {ours}'s: set "
            f"`model.init_args.encoder.class_path: peas.models.{found}`, or give a file of {ours}"
        )
