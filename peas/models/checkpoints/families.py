"""Fill a model of either family from a file."""

from pathlib import Path
from typing import Any

from peas.errors import CheckpointError
from peas.models.checkpoints import audiomae, ssast
from peas.models.checkpoints.audiomae_keys import is_audiomae
from peas.models.checkpoints.checking import malformed
from peas.models.checkpoints.reading import ImportReport, read_state
from peas.models.mae import MaskedAutoencoder
from peas.models.masked import MaskedModel
from peas.models.ssast import SSAST


def load_pretrained(model: MaskedModel, path: str | Path) -> ImportReport:
    """Fill a model from an official file of its family or a checkpoint of ours.

    Args:
        model: The model to fill, in place.
        path: The file.

    Raises:
        CheckpointError: The file cannot be used, or holds the other family's weights.
    """
    state = read_state(path, pretrained=True)
    with malformed(str(path)):
        return _load(model, path, state)


def _load(model: MaskedModel, path: str | Path, state: dict[str, Any]) -> ImportReport:
    found = is_audiomae(state)
    if isinstance(model, SSAST):
        if found:
            raise CheckpointError(_other(path, "AudioMAE", "SSAST", "audiomae"))
        return ssast.load_pretrained(model, path, state)
    assert isinstance(model, MaskedAutoencoder)
    inner = state.get("state_dict", state)
    if not found and any(str(key).endswith("dist_token") for key in inner):
        raise CheckpointError(_other(path, "SSAST", "AudioMAE", "ssast"))
    return audiomae.load_pretrained(model, path, state)


def _other(path: str | Path, found: str, wanted: str, key: str) -> str:
    return (
        f"{path}: holds {found} weights, and the model is {wanted}'s: set "
        f"`model.init_args.encoder: {key}`, or give a file of {wanted}"
    )
