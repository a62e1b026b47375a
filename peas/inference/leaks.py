"""What a checkpoint was trained on, and whether an evaluation's recordings are in it."""

import importlib
from collections.abc import Iterable
from pathlib import Path

import yaml

from peas.data.module import ClipDataModule
from peas.errors import ConfigError, DataError
from peas.utils.text import some


def require_disjoint(checkpoint: str | Path, recordings: Iterable[str]) -> str:
    """What a checkpoint was trained on, when that shares no recording with an evaluation.

    The set is the one that RUN/config.yaml names, beside the folder of the checkpoint.

    Args:
        checkpoint: RUN/checkpoints/last.ckpt, or RUN.
        recordings: Of the evaluation's clips; empty names are unknown ones.

    Returns:
        The set, or why the recordings were not compared, which begins with "not known".

    Raises:
        DataError: The sets share recordings.
    """
    path = Path(checkpoint).expanduser()
    own = set(recordings) - {""}
    if not own:
        return "not known (the evaluation's set lists no recordings)"
    configs = [run / "config.yaml" for run in (path, *list(path.parents)[:2])]
    config = next((file for file in configs if file.is_file()), None)
    if config is None:
        return "not known (no config.yaml of its run)"
    data = yaml.safe_load(config.read_text(encoding="utf-8")).get("data") or {}
    room, _, name = str(data.get("class_path")).rpartition(".")
    if not room.startswith("peas."):
        return f"not known ({data.get('class_path')} is not a set of peas)"
    module: ClipDataModule = getattr(importlib.import_module(room), name)(**data["init_args"])
    try:
        inventory = module.inventory()
    except (ConfigError, DataError) as error:
        return f"not known ({name} of {config} cannot be read: {error})"
    theirs = list(inventory.recordings or [])
    if not any(theirs):
        return f"not known ({name} in {module.root} lists no recordings)"
    shared = sorted(own & set(theirs))
    if shared:
        raise DataError(
            f"{path} was trained on {module.root}, which holds {len(shared)} recordings of the "
            f"clips to classify: {some(shared)}; train without them, or embed other clips"
        )
    return f"{name} in {module.root}, {len(inventory.table)} clips, no shared recording"
