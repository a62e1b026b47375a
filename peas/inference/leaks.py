"""What a checkpoint was trained on, and whether an evaluation's recordings are in it."""

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from peas.data.module import ClipDataModule
from peas.errors import DataError
from peas.models.weights.imagenet import PREFIX
from peas.utils.text import some

UNKNOWN = "not known"


class _Unknown(Exception):
    """Why recordings cannot be compared."""


def require_disjoint(checkpoint: str | Path, recordings: Iterable[str]) -> str:
    """What a checkpoint was trained on, when that shares no recording with an evaluation.

    The set is the one that RUN/config.yaml names, beside the folder of the checkpoint. Where it
    names `pretrained` weights, the set of their run is compared too, and so on.

    Args:
        checkpoint: RUN/checkpoints/last.ckpt, or RUN.
        recordings: Of the evaluation's clips; empty names are unknown ones.

    Returns:
        The sets, or why the recordings were not compared with all of them, which begins with
        "not known".

    Raises:
        DataError: The sets share recordings.
    """
    own = set(recordings) - {""}
    if not own:
        return f"{UNKNOWN} (the evaluation's set lists no recordings)"
    known: list[str] = []
    unknown: list[str] = []
    seen: set[Path] = set()
    path: Path | None = Path(checkpoint).expanduser()
    while path is not None:
        try:
            config = _config(path)
            if config in seen:
                break
            seen.add(config)
            content = _content(config)
        except _Unknown as why:
            unknown.append(f"{UNKNOWN} ({why})")
            break
        try:
            known.append(_compared(path, config, content, own))
        except _Unknown as why:
            unknown.append(f"{UNKNOWN} ({why})")
        try:
            path = _begun_with(config, content)
        except _Unknown as why:
            unknown.append(f"{UNKNOWN} ({why})")
            break
    return "; ".join(unknown + known)


def _config(path: Path) -> Path:
    """The config.yaml of a checkpoint's run."""
    configs = [run / "config.yaml" for run in (path, *list(path.parents)[:2])]
    config = next((file for file in configs if file.is_file()), None)
    if config is None:
        raise _Unknown(f"no config.yaml of the run of {path}")
    return config.resolve()


def _content(config: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _Unknown(f"{config} cannot be read: {_line(error)}") from None
    if not isinstance(content, Mapping):
        raise _Unknown(f"{config} holds no settings")
    return content


def _compared(path: Path, config: Path, content: Mapping[str, Any], own: set[str]) -> str:
    """The set of a run, which shares no recording with `own`."""
    data = content.get("data")
    if not isinstance(data, Mapping):
        raise _Unknown(f"{config} names no set")
    kind = _class(data.get("class_path"))
    try:
        module = kind(**(data.get("init_args") or {}))
        inventory = module.inventory()
    # The values are anyone's, and a set may fail on them in any way.
    except Exception as error:
        raise _Unknown(f"{kind.__name__} of {config} cannot be read: {_line(error)}") from None
    theirs = list(inventory.recordings or [])
    if not any(theirs):
        raise _Unknown(f"{kind.__name__} in {module.root} lists no recordings")
    shared = sorted(own & set(theirs))
    if shared:
        raise DataError(
            f"{path} was trained on {module.root}, which holds {len(shared)} recordings of the "
            f"clips to classify: {some(shared)}; train without them, or embed other clips"
        )
    return f"{kind.__name__} in {module.root}, {len(inventory.table)} clips, no shared recording"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _class(class_path: object) -> type[ClipDataModule]:
    """A set of `peas.data`: a config may come from anyone, and nothing else of it is called."""
    room, _, name = str(class_path).rpartition(".")
    found: object = None
    if f"{room}.".startswith("peas.data."):
        try:
            found = getattr(importlib.import_module(room), name, None)
        except ImportError:
            found = None
    if (
        not isinstance(found, type)
        or not issubclass(found, ClipDataModule)
        or not found.__module__.startswith("peas.data.")
    ):
        raise _Unknown(f"{class_path} is not a set of peas")
    return found


def _begun_with(config: Path, content: Mapping[str, Any]) -> Path | None:
    """The weights that a run began with; None if these have seen no sound of any set."""
    model = content.get("model") or {}
    settings = (model.get("init_args") or {}) if isinstance(model, Mapping) else None
    if not isinstance(settings, Mapping):
        raise _Unknown(f"{config} does not say which weights the run began with")
    pretrained = settings.get("pretrained")
    if not pretrained or str(pretrained).startswith(PREFIX):
        return None
    return Path(str(pretrained)).expanduser()
