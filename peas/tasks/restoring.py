"""Settings that a task leaves open: filled from the data before `fit`, or from a checkpoint.

A task is built from a run's file (`restore`), or compared with it when the run is resumed.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.pytorch.utilities import rank_zero_warn

from peas.audio.frontend import FrontEnd
from peas.errors import CheckpointError, ConfigError
from peas.models.encoder import Encoder
from peas.models.weights.checking import malformed
from peas.objectives import Objective
from peas.parts import make_parts, plain

if TYPE_CHECKING:
    from peas.tasks.base import BaseTask

Task = TypeVar("Task", bound="BaseTask")
MEASURED = ("mean", "std")
"""Settings of the front end that a data set may measure over its training clips."""


def restore(
    cls: type[Task],
    content: dict[str, Any],
    where: str,
    *,
    modules: Sequence[str] = (),
    **settings: Any,
) -> Task:
    """A task with its weights, from a checkpoint's content; see `BaseTask.restore`."""
    saved = content.get("hyper_parameters") or {}
    accepted = inspect.signature(cls).parameters
    arguments = make_parts(
        {key: saved[key] for key in saved if key in accepted},
        cls.part_bases,
        where=f"{where}: hyper_parameters",
        modules=modules,
    )
    try:
        with malformed(where):
            task = cls(**{**arguments, **settings})
            task.on_load_checkpoint(content)
            task.load_state_dict(content["state_dict"])
    except ConfigError as error:
        # The key is the file's: the user has no config.
        raise CheckpointError(f"{where}: {error}") from error
    return task


def fill_from_data(task: "BaseTask", data: Any) -> None:
    """Take settings that are null from a data module, and build the front end.

    Args:
        task: Not built.
        data: The trainer's data module, or None.

    Raises:
        ConfigError: A setting is null and unknown, or the data has another sampling rate.
    """
    info = getattr(data, "info", None)
    front_end = task.front_end
    if getattr(data, "measures", False):
        task.measured = frozenset(key for key in MEASURED if front_end.setting(key) is None)
    rate = getattr(data, "rate", front_end.rate)
    if rate != front_end.rate:
        raise ConfigError(
            f"`model.init_args.front_end`: {type(front_end).__name__} takes sound of "
            f"{front_end.rate} Hz, and the data gives {rate} Hz: let its `rate` be {rate}, and "
            "resample in `forward`"
        )
    fixed = [key for key in front_end.fixed if key != "channels"]
    missing = [key for key in fixed if front_end.setting(key) is None]
    unknown = [key for key in MEASURED if key in missing]
    if unknown and not front_end.data_statistics:
        raise ConfigError(
            f"`model.init_args.front_end.init_args`: {' and '.join(unknown)} of "
            f"{type(front_end).__name__} are null, and data sets know only those of KaldiLogMel: "
            "give its own, over the log-mels of the training clips"
        )
    open_keys = [key for key in task.info_keys if task.hparams[key] is None]
    if info is None and (open_keys or missing):
        key = open_keys[0] if open_keys else f"front_end.init_args.{missing[0]}"
        raise ConfigError(
            f"`model.init_args.{key}` is null and there is no data module to take it from: give "
            "`data`, or set the key"
        )
    for key in open_keys:
        value = getattr(info, key)
        task.hparams[key] = list(value) if isinstance(value, tuple) else value
    if info is not None and front_end.setting("channels") is None:
        missing.append("channels")
    front_end.build(**{key: getattr(info, key) for key in missing})


def agree_on_settings(task: "BaseTask", saved: dict[str, Any], where: str, resuming: bool) -> None:
    """Take what the task's settings leave open from a checkpoint, and refuse contradictions.

    Args:
        task: Not necessarily built.
        saved: The checkpoint's hyperparameters.
        where: The file, for errors.
        resuming: Whether training continues.

    Raises:
        CheckpointError: A setting differs that the weights depend on; it names the key.
    """
    keys = (*task.info_keys, *task.shape_keys)
    needed = (*keys, "encoder", "front_end", "recipe", *task.own_keys)
    if any(key not in saved for key in needed):
        raise CheckpointError(
            f"{where}: has no settings of {type(task).__name__} "
            f"(`hyper_parameters` with {', '.join(needed)}): this task did not write it. For "
            "weights of another origin use `--model.init_args.pretrained`."
        )
    task.require_labels(saved["labels"], where)
    for key in keys:
        if task.hparams[key] is None:
            task.hparams[key] = saved[key]
        else:
            _require_equal(key, task.hparams[key], saved[key], where)
    agree_on_part(task, "front_end", task.front_end, saved, where, resuming)
    agree_on_part(task, "encoder", task.model, saved, where, resuming)
    task.note_parts()
    if resuming:
        for key in task.resume_keys:
            _require_equal(key, task.hparams[key], saved.get(key, task.hparams[key]), where)
        own, theirs = (h["recipe"]["class_path"] for h in (task.hparams, saved))
        _require_equal("recipe.class_path", own, theirs, where)


def agree_on_part(
    task: "BaseTask",
    name: str,
    part: Encoder | FrontEnd,
    saved: dict[str, Any],
    where: str,
    resuming: bool,
) -> None:
    """`agree_on_settings` of one part, whose settings that are null take the checkpoint's."""
    own, theirs = task.hparams[name]["class_path"], saved[name]["class_path"]
    _require_equal(f"{name}.class_path", own, theirs, where)
    taken: dict[str, Any] = {}
    for key in part.fixed:
        own, theirs = part.setting(key), saved[name]["init_args"].get(key)
        # Null on both sides is a default of the part's own.
        if theirs is None or plain(own) == plain(theirs):
            continue
        if own is None:
            taken[key] = theirs
        elif key in task.measured and resuming:
            # The clips changed, which is reported elsewhere. The front end is the checkpoint's.
            rank_zero_warn(
                f"{key} of the training clips is {own:.6g} now; the run keeps "
                f"`model.init_args.{name}.init_args.{key}: {theirs:.6g}`, which its weights "
                "were trained with"
            )
            taken[key] = theirs
        else:
            _require_equal(f"{name}.init_args.{key}", own, theirs, where)
    if isinstance(part, FrontEnd):
        part.build(**taken)
    else:
        part.settle(**taken)


def require_labels_of_data(task: "BaseTask", saved: list[str], where: str) -> None:
    """Refuse to score a model on data whose classes are not its own.

    Raises:
        CheckpointError: The first class that differs is named.
    """
    if task._trainer is None or not (task.trainer.validating or task.trainer.testing):
        return
    data: Any = getattr(task.trainer, "datamodule", None)
    # Not its metadata: that may have to be measured, over training clips that are not there.
    if not hasattr(data, "take_labels") or data.take_labels(list(saved)):
        return
    labels = list(data.labels)
    pairs = zip(saved, labels, strict=False)
    first = next((pair for pair in pairs if pair[0] != pair[1]), None)
    difference = f"; the first that differs: {first[0]!r} and {first[1]!r}" if first else ""
    raise CheckpointError(
        f"{where} was trained on {len(saved)} classes, and the data has {len(labels)} "
        f"classes{difference}: scores would be of the wrong classes. Give the data set that the "
        "checkpoint was trained on (its run's config.yaml), or use `peas predict`."
    )


def agree_on_objectives(
    objectives: Mapping[str, Objective], before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Refuse to resume a run with other objectives.

    Args:
        objectives: Of the task.
        before: Class paths and settings of the checkpoint's.
        now: Those of the task's.

    Raises:
        CheckpointError: It names the objective or its setting.
    """
    for name in sorted(before.keys() ^ now.keys()):
        raise CheckpointError(_changed(name, before.get(name), now.get(name)))
    for name, part in objectives.items():
        if before[name]["class_path"] != now[name]["class_path"]:
            raise CheckpointError(_changed(name, before[name], now[name]))
        for key in part.fixed:
            old, new = (spec[name]["init_args"].get(key) for spec in (before, now))
            if old != new:
                raise CheckpointError(_changed(f"{name}.init_args.{key}", old, new))


def require_equal_teachers(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse features of another teacher.

    Args:
        saved: Fingerprints of the checkpoint, by objective.
        own: Those of the task.

    Raises:
        CheckpointError: It names the objective.
    """
    for name in saved.keys() & own.keys():
        if saved[name] != own[name]:
            raise CheckpointError(
                f"`model.init_args.objectives.{name}`: the run was trained with {saved[name]}, "
                f"and this teacher gives {own[name]}: use the same teacher or cache"
            )


def differences(before: Any, now: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Settings that both have and that differ, by their dotted keys."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return {} if before == now else {key: (before, now)}
    differing: dict[str, tuple[Any, Any]] = {}
    for name in sorted(before.keys() & now.keys()):
        differing |= differences(before[name], now[name], f"{key}.{name}" if key else name)
    return differing


def _require_equal(key: str, own: Any, theirs: Any, where: str) -> None:
    if plain(own) == plain(theirs):
        return
    raise CheckpointError(
        f"`model.init_args.{key}` is {_short(own)}, but {where} was trained with "
        f"{_short(theirs)}: use the run's own config.yaml with its checkpoint. "
        "To start a new run from these weights use `--model.init_args.pretrained`."
    )


def _changed(key: str, before: Any, now: Any) -> str:
    return (
        f"`model.init_args.objectives.{key}` is {now}, but the run had {before}: this cannot "
        "change in a run. Use its own config.yaml with its checkpoint. To start a new run from "
        "these weights use `--model.init_args.pretrained`."
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(value)} items)"
