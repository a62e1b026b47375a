"""Whether a run is the work of the paper's row that its config names.

A config is copied, laid under an overlay and overridden on the command line, and its `paper` block
stays. `paper.requires` holds the settings of the row, by their whole keys: where the run differs,
the paper's figure has no place beside its own.
"""

from typing import Any

CLIPS = "clips"
"""Key in `paper.requires` of the scored clips, all folds together."""

UNLIMITED: dict[str, Any] = {
    "data.init_args.label_fraction": 1.0,
    "trainer.limit_train_batches": None,
    "trainer.limit_val_batches": None,
    "trainer.limit_test_batches": None,
    "trainer.max_steps": -1,
    "trainer.max_time": None,
    "trainer.overfit_batches": 0.0,
    "trainer.fast_dev_run": False,
}
"""Of every row: all of its clips train, in all of its epochs, and are scored."""


def differences(config: dict[str, Any], clips: int) -> list[str]:
    """What makes a run other work than its row.

    Args:
        config: Whole config of the run.
        clips: Clips that were scored, all folds together.

    Returns:
        A phrase for each setting that differs; empty where the paper's figure may be printed.
    """
    required: dict[str, Any] | None = (config.get("paper") or {}).get("requires")
    if not required:
        return ["`paper.requires` does not say which settings the row has"]
    found = []
    for key, wanted in required.items():
        value = clips if key == CLIPS else _value(config, key, None)
        if _plain(key, value) != _plain(key, wanted):
            found.append(f"{key} is {_plain(key, value)}, the row's {_plain(key, wanted)}")
    for key, usual in UNLIMITED.items():
        value = _value(config, key, usual)
        # Lightning's own defaults reach a saved config as null.
        if key not in required and value is not None and value != usual:
            found.append(f"{key} is {value}")
    return found


def _value(config: dict[str, Any], key: str, default: Any) -> Any:
    room: Any = config
    for part in key.split("."):
        if not isinstance(room, dict) or part not in room:
            return default
        room = room[part]
    return room


def _plain(key: str, value: Any) -> Any:
    """A value without what says only where a class or a file lies."""
    if value is None:
        return "null"
    if key.endswith("class_path"):
        return str(value).rpartition(".")[2]
    if key.endswith("pretrained") and not str(value).startswith("timm:"):
        parts = str(value).replace("\\", "/").split("/")
        # The checkpoints of all runs have one name: the run's folder says which pretraining it was.
        return "/".join(parts[-3:] if parts[-2:-1] == ["checkpoints"] else parts[-1:])
    return list(value) if isinstance(value, tuple) else value
