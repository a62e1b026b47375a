"""A run that goes on tells which of its settings changed, and refuses what it cannot follow."""

from collections.abc import Collection, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from peas.callbacks.masking import MaskingStrategy
from peas.callbacks.siblings import siblings
from peas.errors import CheckpointError
from peas.masking.peas.error_cache import ErrorCache
from peas.tasks.base import SETTINGS
from peas.training.randomness import run_seed

SEED = "seed_everything"
ACCUMULATE = "trainer.accumulate_grad_batches"
CALLBACK = "trainer.callbacks["
MASKING = "masking"
STRATEGIES = ("PEAS", "RandomMasking", "SpecAugment")
"""Strategies that runs of before the key `masking` have in `trainer.callbacks`."""
UNUSED = "model.init_args.pretrained"
"""Read when a run begins, and never again."""
SILENT = (
    "config",
    "ckpt_path",
    "new",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.enable_",
)
"""Beginnings of keys that decide where a run writes and what it shows."""


class Continuity(Callback):
    """Keeps a run's settings in its checkpoints, and compares them when it goes on.

    What the present settings say is what is trained with. Where a saved state would win over them,
    it is put right here; the optimiser's is in `peas.tasks.base`.

    Args:
        settings: Whole configuration of `fit`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = {**flat(settings), SEED: run_seed()}
        self._patience: list[tuple[EarlyStopping, int]] = []

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the settings."""
        checkpoint[SETTINGS] = self.settings

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Compares the settings, before any callback takes its state.

        Raises:
            CheckpointError: The run cannot go on with these settings.
        """
        where = str(trainer.ckpt_path)
        # Lightning restores it from the state.
        self._patience = [
            (stopping, stopping.patience) for stopping in siblings(trainer, EarlyStopping)
        ]
        _require_the_average(trainer, checkpoint, where)
        _tell_of_a_cut_epoch(checkpoint, where)
        saved = checkpoint.get(SETTINGS)
        if saved is None:
            rank_zero_info(
                f"{where} was written by an older version, which kept the settings of the model "
                "alone: changes of others are not told"
            )
            return
        if not isinstance(saved, dict) or not all(isinstance(key, str) for key in saved):
            raise CheckpointError(
                f"{where}: its `{SETTINGS}` are not those of a run: it is damaged"
            )
        # A strategy of the user's own has the same name in both places.
        names = {*STRATEGIES, *(type(one).__name__ for one in _strategies(trainer))}
        changed = changes(*(under_its_key(one, names) for one in (saved, self.settings)))
        if SEED in changed:
            old, new = changed[SEED]
            raise CheckpointError(
                f"`{SEED}` is {new}, and the run of {where} has {old}: order, masks and drop-out "
                f"would be of another run. Give `--{SEED} {old}`, or start a new run from these "
                "weights with `--model.init_args.pretrained`"
            )
        if ACCUMULATE in changed and inside_an_epoch(checkpoint):
            old, new = changed[ACCUMULATE]
            raise CheckpointError(
                f"`{ACCUMULATE}` is {new}, and {where} stands inside an epoch that was begun with "
                f"{old}: its batches would not fill the steps. Go on with {old} to the end of the "
                "epoch, or from a checkpoint of an epoch's end"
            )
        if UNUSED in changed:
            old, new = changed.pop(UNUSED)
            rank_zero_warn(
                f"`{UNUSED}: {new}` is not read: the weights are those of {where}. A new run "
                "starts from it, without `--ckpt_path`"
            )
        if changed:
            lines = (f"\n  {key}: {old} → {new}" for key, (old, new) in changed.items())
            rank_zero_warn(f"the run goes on with other settings than before:{''.join(lines)}")
        self._forget(trainer, changed, checkpoint)

    def _forget(self, trainer: Trainer, changed: Mapping[str, Any], checkpoint: Any) -> None:
        """Errors that other settings have scored are scored anew."""
        if not any(key.partition(".")[0] == MASKING for key in changed):
            return
        for strategy in _strategies(trainer):
            state = checkpoint.get("callbacks", {}).get(strategy.state_key)
            if isinstance(state, dict) and "cache" in state:
                state["cache"] = ErrorCache().state_dict()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives callbacks back the settings that their saved state has taken from them."""
        for stopping, patience in self._patience:
            stopping.patience = patience


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted key; a class in a list by its name, `trainer.callbacks[PEAS]`.

    Args:
        config: Nested configuration.
        prefix: Key that it stands under.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        items = value if isinstance(value, list) else [value]
        if isinstance(value, Mapping) and not (key == "callbacks" and "class_path" in value):
            found |= flat(value, f"{name}.")
        elif value and all(isinstance(item, Mapping) and "class_path" in item for item in items):
            counts: dict[str, int] = {}
            for item in items:
                kind = str(item["class_path"]).rsplit(".", 1)[-1]
                counts[kind] = counts.get(kind, 0) + 1
                place = f"{name}[{kind}]" if counts[kind] == 1 else f"{name}[{kind} {counts[kind]}]"
                found[place] = "there"
                found |= flat(item.get("init_args") or {}, f"{place}.init_args.")
        else:
            found[name] = _plain(value)
    return found


def under_its_key(settings: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Settings with the masking strategy under `masking`, where they have it in the list.

    Args:
        settings: As `flat` gives them.
        names: Classes of strategies, without their modules.
    """
    places = {f"{CALLBACK}{name}]": name for name in names}
    listed = next((place for place in places if place in settings), None)
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if listed is not None and key == listed:
            found[f"{MASKING}.class_path"] = places[listed]
        elif listed is not None and key.startswith(f"{listed}."):
            found[f"{MASKING}{key.removeprefix(listed)}"] = value
        elif key == f"{MASKING}.class_path":
            found[key] = str(value).rsplit(".", 1)[-1]
        elif key != MASKING:
            found[key] = value
    if f"{MASKING}.class_path" not in found:
        found[MASKING] = None
    return found


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Old and new value of each key that differs.

    A key that only one of them knows belongs to another version or class; a callback that came or
    went is told by its own key.
    """
    found = {
        key: (before[key], now[key])
        for key in now
        if key in before and before[key] != now[key] and not key.startswith(SILENT)
    }
    # A key that holds a class, or none.
    for some, other, turned in ((before, now, False), (now, before, True)):
        for key, value in some.items():
            kind = other.get(f"{key}.class_path")
            if value is None and kind is not None and not key.startswith(SILENT):
                found[key] = (kind, None) if turned else (None, kind)
    callbacks = [key for key in (*before, *now) if key.startswith(CALLBACK) and key.endswith("]")]
    for key in callbacks:
        if (key in before) != (key in now):
            found[key] = ("there", "gone") if key in before else ("not there", "there")
    return found


def _strategies(trainer: Trainer) -> list[MaskingStrategy]:
    return siblings(trainer, MaskingStrategy)  # type: ignore[type-abstract]


def inside_an_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's epoch has begun and is not over."""
    try:
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        return bool(progress["started"] > progress["processed"])
    except (KeyError, TypeError):
        return False


def _tell_of_a_cut_epoch(checkpoint: Mapping[str, Any], where: str) -> None:
    try:
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        cut = not batches["is_last_batch"] and not inside_an_epoch(checkpoint)
        count = batches["current"]["ready"]
    except (KeyError, TypeError):
        return
    if cut and count:
        rank_zero_warn(
            f"{where} was written where its epoch was ended after {count} batches: the rest of "
            "that epoch is not trained. last.ckpt of the same step goes on inside it"
        )


def _require_the_average(trainer: Trainer, checkpoint: Mapping[str, Any], where: str) -> None:
    # Lightning's, or another that writes the same keys.
    averages = any("WeightAverag" in type(one).__name__ for one in siblings(trainer, Callback))
    if "current_model_state" in checkpoint and not averages:
        raise CheckpointError(
            f"{where} holds an average of the weights beside the weights, and no callback of this "
            "run averages: training would go on from the average. Give the run's averaging "
            "callback again (overlays/ema.yaml), or start a new run from the average with "
            "`--model.init_args.pretrained`"
        )


def _plain(value: Any) -> Any:
    """What may stand in a checkpoint that executes nothing."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)
