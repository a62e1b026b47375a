"""Checks before training: monitored metrics exist, and a resumed run has the same settings."""

from collections.abc import Collection, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from peas.callbacks.masking import MaskingStrategy
from peas.errors import CheckpointError, ConfigError
from peas.masking.peas.error_cache import ErrorCache
from peas.tasks.base import SETTINGS, BaseTask
from peas.training.randomness import run_seed
from peas.training.trainer import callbacks_of

PACKAGES = ("peas", "lightning")
"""Packages whose callbacks log only metrics that are listed here."""
GROUPS = ("mask", "peas", "knn", "linear", "rank", "data", "grad", "lr")
"""First parts of the names that callbacks and the optimizer log."""
COUNTS = ("epoch", "step")
"""What Lightning also lets a ModelCheckpoint monitor."""

SEED = "seed_everything"
ACCUMULATE = "trainer.accumulate_grad_batches"
CALLBACK = "trainer.callbacks["
MASKING = "masking"
STRATEGIES = ("PEAS", "RandomMasking", "SpecAugment")
"""Strategies that runs from before the key `masking` have in `trainer.callbacks`."""
PRETRAINED = "model.init_args.pretrained"
"""Read when a run starts, and never again."""
IGNORED = (
    "config",
    "ckpt_path",
    "new",
    "defaults",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.enable_",
)
"""Prefixes of keys that only decide what a run writes and prints."""


class MonitorCheck(Callback):
    """Refuses a callback whose `monitor` is not a metric of the run, before the first epoch."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares each monitor with what the task logs.

        Raises:
            ConfigError: No metric has that name.
        """
        names = logged(pl_module)
        callbacks = callbacks_of(trainer, Callback)
        # What a user's own class logs is not known here.
        foreign = any(type(c).__module__.split(".")[0] not in PACKAGES for c in callbacks)
        if names is None or foreign:
            return
        for callback in callbacks:
            name = getattr(callback, "monitor", None)
            if not isinstance(name, str) or getattr(callback, "strict", True) is False:
                continue
            group = name.partition("/")[0]
            if isinstance(callback, ModelCheckpoint) and name in COUNTS:
                continue
            unvalidated = group == "val" and not trainer.enable_validation
            if isinstance(callback, EarlyStopping) and unvalidated:
                raise ConfigError(
                    f"`trainer.callbacks`: EarlyStopping's `monitor` is {name!r}, and this run has "
                    "no validation (`trainer.limit_val_batches: 0`): give a metric of training, "
                    "such as 'train/loss'"
                )
            if name not in names and group not in GROUPS:
                raise ConfigError(
                    f"`trainer.callbacks`: {type(callback).__name__}'s `monitor` is {name!r}, "
                    f"which this run does not log: give one of {', '.join(sorted(names))}"
                )


def logged(task: LightningModule) -> set[str] | None:
    """Names of a built task's metrics in a run with validation; None for another class.

    Args:
        task: The task.
    """
    if not isinstance(task, BaseTask):
        return None
    train, val, step = task.metric_names()
    if task.recipe.on_nonfinite == "skip":
        train = train | {"skipped_steps"}
    return {f"train/{name}" for name in train} | {f"val/{name}" for name in val} | step


class ResumeCheck(Callback):
    """Keeps a run's settings in its checkpoints, and compares them when it resumes.

    Training follows the present settings; where a saved state would override them, it is corrected
    here (the optimizer's in `peas.tasks.base`).

    Args:
        settings: The complete configuration of `fit`.
        compare: Whether to compare them; False = only keep them in checkpoints.
    """

    def __init__(self, settings: Mapping[str, Any], *, compare: bool = True) -> None:
        self.settings = {**flat(settings), SEED: run_seed()}
        self.compare = compare
        self._patience: list[tuple[EarlyStopping, int]] = []

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the settings."""
        checkpoint[SETTINGS] = self.settings

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Compares the settings, before any callback restores its state.

        Raises:
            CheckpointError: The run cannot resume with these settings.
        """
        file = str(trainer.ckpt_path)
        # Lightning restores it from the state.
        self._patience = [
            (stopping, stopping.patience) for stopping in callbacks_of(trainer, EarlyStopping)
        ]
        _require_average(trainer, checkpoint, file)
        if not self.compare:
            return
        _warn_of_partial_epoch(checkpoint, file)
        saved = checkpoint.get(SETTINGS)
        if saved is None:
            rank_zero_info(
                f"{file} was written by an older version, which kept the settings of the model "
                "only: changes of other settings are not reported"
            )
            return
        if not isinstance(saved, dict) or not all(isinstance(key, str) for key in saved):
            raise CheckpointError(f"{file}: `{SETTINGS}` is not a run's settings: it is damaged")
        # A user's own strategy has the same name in both places.
        names = {*STRATEGIES, *(type(one).__name__ for one in _strategies(trainer))}
        changed = changes(*(under_its_key(one, names) for one in (saved, self.settings)))
        self._require_resumable(changed, checkpoint, file)
        if PRETRAINED in changed:
            _, new = changed.pop(PRETRAINED)
            rank_zero_warn(
                f"`{PRETRAINED}: {new}` is not read: the weights are those of {file}. A new run "
                "starts from it, without `--ckpt_path`"
            )
        if changed:
            lines = (f"\n  {key}: {old} → {new}" for key, (old, new) in changed.items())
            rank_zero_warn(f"the run resumes with changed settings:{''.join(lines)}")
        # Errors scored under other settings are scored again.
        if any(key.partition(".")[0] == MASKING for key in changed):
            for strategy in _strategies(trainer):
                state = checkpoint.get("callbacks", {}).get(strategy.state_key)
                if isinstance(state, dict) and "cache" in state:
                    state["cache"] = ErrorCache().state_dict()

    @staticmethod
    def _require_resumable(
        changed: Mapping[str, tuple[Any, Any]], checkpoint: Mapping[str, Any], file: str
    ) -> None:
        """Refuses another seed, and another accumulation inside an epoch."""
        if SEED in changed:
            old, new = changed[SEED]
            raise CheckpointError(
                f"`{SEED}` is {new}, and the run of {file} has {old}: order, masks and dropout "
                f"would be those of another run. Give `--{SEED} {old}`, or start a new run from "
                "these weights with `--model.init_args.pretrained`"
            )
        if ACCUMULATE in changed and inside_an_epoch(checkpoint):
            old, new = changed[ACCUMULATE]
            raise CheckpointError(
                f"`{ACCUMULATE}` is {new}, and {file} is inside an epoch that started with "
                f"{old}: its batches would not fill the steps. Resume with {old} up to the end of "
                "the epoch, or from a checkpoint of an epoch's end"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives callbacks back the settings that their saved state has overridden."""
        for stopping, patience in self._patience:
            stopping.patience = patience


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted key; a class in a list by its name, `trainer.callbacks[PEAS]`.

    Args:
        config: Nested configuration.
        prefix: Key that it is under.
    """
    settings: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        items = value if isinstance(value, list) else [value]
        if isinstance(value, Mapping) and not (key == "callbacks" and "class_path" in value):
            settings |= flat(value, f"{name}.")
        elif value and all(isinstance(item, Mapping) and "class_path" in item for item in items):
            counts: dict[str, int] = {}
            for item in items:
                kind = str(item["class_path"]).rsplit(".", 1)[-1]
                counts[kind] = counts.get(kind, 0) + 1
                entry = f"{name}[{kind}]" if counts[kind] == 1 else f"{name}[{kind} {counts[kind]}]"
                settings[entry] = "there"
                settings |= flat(item.get("init_args") or {}, f"{entry}.init_args.")
        else:
            settings[name] = _plain(value)
    return settings


def under_its_key(settings: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Settings with the masking strategy under `masking`, where they have it in the list.

    Args:
        settings: As `flat` returns them.
        names: Classes of strategies, without their modules.
    """
    entries = {f"{CALLBACK}{name}]": name for name in names}
    listed = next((entry for entry in entries if entry in settings), None)
    moved: dict[str, Any] = {}
    for key, value in settings.items():
        if listed is not None and key == listed:
            moved[f"{MASKING}.class_path"] = entries[listed]
        elif listed is not None and key.startswith(f"{listed}."):
            moved[f"{MASKING}{key.removeprefix(listed)}"] = value
        elif key == f"{MASKING}.class_path":
            moved[key] = str(value).rsplit(".", 1)[-1]
        elif key != MASKING:
            moved[key] = value
    if f"{MASKING}.class_path" not in moved:
        moved[MASKING] = None
    return moved


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Old and new value of each key that differs.

    A key that only one of them has belongs to another version or class; an added or removed
    callback is reported by its own key.
    """
    changed = {
        key: (before[key], now[key])
        for key in now
        if key in before and before[key] != now[key] and not key.startswith(IGNORED)
    }
    # A key that holds a class in one of them, and null in the other.
    for one, other, reverse in ((before, now, False), (now, before, True)):
        for key, value in one.items():
            kind = other.get(f"{key}.class_path")
            if value is None and kind is not None and not key.startswith(IGNORED):
                changed[key] = (kind, None) if reverse else (None, kind)
    callbacks = [key for key in (*before, *now) if key.startswith(CALLBACK) and key.endswith("]")]
    for key in callbacks:
        if (key in before) != (key in now):
            changed[key] = ("there", "gone") if key in before else ("not there", "there")
    return changed


def _strategies(trainer: Trainer) -> list[MaskingStrategy]:
    return callbacks_of(trainer, MaskingStrategy)  # type: ignore[type-abstract]


def inside_an_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's epoch has started and is not finished."""
    try:
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        return bool(progress["started"] > progress["processed"])
    except (KeyError, TypeError):
        return False


def _warn_of_partial_epoch(checkpoint: Mapping[str, Any], file: str) -> None:
    try:
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        partial = not batches["is_last_batch"] and not inside_an_epoch(checkpoint)
        count = batches["current"]["ready"]
    except (KeyError, TypeError):
        return
    if partial and count:
        rank_zero_warn(
            f"{file} was written where its epoch was ended after {count} batches: the rest of "
            "that epoch is not trained. last.ckpt of the same step resumes inside it"
        )


def _require_average(trainer: Trainer, checkpoint: Mapping[str, Any], file: str) -> None:
    # Lightning's callback, or another that writes the same keys.
    averages = any("WeightAverag" in type(c).__name__ for c in callbacks_of(trainer, Callback))
    if "current_model_state" in checkpoint and not averages:
        raise CheckpointError(
            f"{file} holds an average of the weights beside the weights, and no callback of this "
            "run averages: training would resume from the average. Give the run's averaging "
            "callback again (overlays/ema.yaml), or start a new run from the average with "
            "`--model.init_args.pretrained`"
        )


def _plain(value: Any) -> Any:
    """What may be in a checkpoint that executes nothing."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)
