"""What becomes of each setting that differs when a run goes on."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from toys import StandIn

from peas import recipes
from peas.audio.frontend import KaldiLogMel
from peas.callbacks import PEAS
from peas.callbacks.run_checks import ResumeCheck, changes, flat
from peas.data.module import ClipDataModule
from peas.errors import CheckpointError
from peas.models import SSAST, AudioMAE
from peas.tasks import Classification, Pretraining

DOCS = Path(__file__).parents[2] / "docs" / "running.md"
CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "config": ["a.yaml"],
    "ckpt_path": None,
    "trainer": {
        "default_root_dir": "runs/a",
        "accumulate_grad_batches": 1,
        "precision": "32-true",
        "callbacks": [
            {"class_path": "peas.callbacks.MaskPlots", "init_args": {"clips": 2}},
            {"class_path": "peas.callbacks.WeightAverage", "init_args": {"decay": 0.9}},
        ],
    },
    "masking": {"class_path": "peas.callbacks.PEAS", "init_args": {"n_time": 1}},
    "model": {
        "class_path": "peas.tasks.Classification",
        "init_args": {"lr": 1e-3, "betas": [0, 1]},
    },
    "data": {"class_path": "peas.data.ESC50", "init_args": {"root": "data", "batch_size": 8}},
}


def trainer(*callbacks: Any) -> Any:
    return StandIn(callbacks=list(callbacks), ckpt_path="last.ckpt")


def loops(*, inside: bool, last_batch: bool = True, ready: int = 4) -> dict[str, Any]:
    return {
        "fit_loop": {
            "epoch_progress": {"current": {"started": 2, "processed": 1 if inside else 2}},
            "epoch_loop.batch_progress": {"current": {"ready": ready}, "is_last_batch": last_batch},
        }
    }


def resumed(saved: dict[str, Any], now: dict[str, Any], *callbacks: Any, **parts: Any) -> None:
    """A run with some settings goes on from a checkpoint with others."""
    checkpoint = {"settings": flat(saved), "callbacks": {}, "loops": loops(inside=False), **parts}
    ResumeCheck(now).on_load_checkpoint(trainer(*callbacks), SimpleNamespace(), checkpoint)  # type: ignore[arg-type]


def test_keys_are_those_of_the_command_line() -> None:
    found = flat(CONFIG)
    assert found["model.init_args.lr"] == 1e-3
    assert found["masking.init_args.n_time"] == 1
    assert found["trainer.callbacks[MaskPlots].init_args.clips"] == 2
    assert found["data.class_path"] == "peas.data.ESC50"
    one = flat({"trainer": {"callbacks": CONFIG["trainer"]["callbacks"][0]}})
    assert one["trainer.callbacks[MaskPlots].init_args.clips"] == 2
    twice = flat({"callbacks": [{"class_path": "a.B"}, {"class_path": "c.B"}]})
    assert list(twice) == ["callbacks[B]", "callbacks[B 2]"]


def test_a_checkpoint_may_hold_the_settings(tmp_path: Path) -> None:
    odd = {"model": {"init_args": {"root": tmp_path, "sizes": (1, 2), "more": [{"a": tmp_path}]}}}
    torch.save(flat(odd), tmp_path / "settings")
    known = torch.load(tmp_path / "settings", weights_only=True)
    assert known == flat(odd)


def test_changes_tell_what_differs_and_no_more() -> None:
    now = {**flat(CONFIG), "model.init_args.lr": 5e-3, "trainer.default_root_dir": "runs/b"}
    now.pop("trainer.callbacks[MaskPlots]")
    now["trainer.callbacks[KNN]"] = "there"
    now["trainer.new_in_this_version"] = 1
    assert changes(flat(CONFIG), now) == {
        "model.init_args.lr": (1e-3, 5e-3),
        "trainer.callbacks[MaskPlots]": ("there", "gone"),
        "trainer.callbacks[KNN]": ("not there", "there"),
    }


def test_a_class_in_the_place_of_nothing_is_a_change() -> None:
    none = flat({"model": {"init_args": {"teacher": None}}, "trainer": {"logger": None}})
    some = flat(
        {
            "model": {"init_args": {"teacher": {"class_path": "peas.T", "init_args": {"a": 1}}}},
            "trainer": {"logger": {"class_path": "L"}},
        }
    )
    key = "model.init_args.teacher"
    assert changes(none, some) == {key: (None, "peas.T")}
    assert changes(some, none) == {key: ("peas.T", None)}


def test_how_a_run_was_begun_is_no_setting_of_it() -> None:
    assert changes(flat({**CONFIG, "new": True}), flat({**CONFIG, "new": False})) == {}


def test_changed_settings_are_told_by_key_with_both_values() -> None:
    now = {**CONFIG, "model": {**CONFIG["model"], "init_args": {"lr": 5e-3, "betas": [0, 1]}}}
    with pytest.warns(UserWarning, match=r"model\.init_args\.lr: 0\.001 → 0\.005"):
        resumed(CONFIG, now)


def test_the_same_settings_are_told_by_nothing(recwarn: pytest.WarningsRecorder) -> None:
    resumed(CONFIG, {**CONFIG, "config": ["b.yaml"], "ckpt_path": "last"})
    assert not recwarn.list


def test_another_seed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    with pytest.raises(CheckpointError, match=r"seed_everything` is 3.* 0: .*pretrained"):
        resumed(CONFIG, CONFIG)


def test_accumulation_changes_between_epochs_only() -> None:
    now = {**CONFIG, "trainer": {**CONFIG["trainer"], "accumulate_grad_batches": 2}}
    with pytest.raises(CheckpointError, match=r"accumulate_grad_batches` is 2.*inside an epoch"):
        resumed(CONFIG, now, loops=loops(inside=True))
    with pytest.warns(UserWarning, match="accumulate_grad_batches: 1 → 2"):
        resumed(CONFIG, now)


def test_pretrained_is_not_read_again() -> None:
    both = [{"model": {"class_path": "a.B", "init_args": {"pretrained": name}}} for name in "xy"]
    with pytest.warns(UserWarning, match="pretrained: y` is not read"):
        resumed(*both)


def test_an_older_checkpoint_goes_on_and_it_is_said(printed: pytest.LogCaptureFixture) -> None:
    checkpoint: dict[str, Any] = {"callbacks": {}, "loops": loops(inside=False)}
    ResumeCheck(CONFIG).on_load_checkpoint(trainer(), SimpleNamespace(), checkpoint)  # type: ignore[arg-type]
    assert "older version" in printed.text


@pytest.mark.parametrize("saved", [[], {1: 2}, "settings"])
def test_settings_that_are_none_are_refused(saved: Any) -> None:
    checkpoint = {"settings": saved, "callbacks": {}, "loops": loops(inside=False)}
    with pytest.raises(CheckpointError, match="settings"):
        ResumeCheck(CONFIG).on_load_checkpoint(trainer(), SimpleNamespace(), checkpoint)  # type: ignore[arg-type]


def test_an_average_cannot_be_left_behind(recwarn: pytest.WarningsRecorder) -> None:
    parts = {"current_model_state": {}, "averaging_state": {}}
    with pytest.raises(CheckpointError, match=r"average.*pretrained"):
        resumed(CONFIG, CONFIG, **parts)
    resumed(CONFIG, CONFIG, EMAWeightAveraging(decay=0.5), **parts)


def test_a_checkpoint_of_a_cut_epoch_says_so() -> None:
    with pytest.warns(UserWarning, match="after 3 batches"):
        resumed(CONFIG, CONFIG, loops=loops(inside=False, last_batch=False, ready=3))


def test_patience_is_that_of_the_settings() -> None:
    stopping = EarlyStopping("val/loss", patience=7)
    run, keeper = trainer(stopping), ResumeCheck(CONFIG)
    keeper.on_load_checkpoint(
        run,
        SimpleNamespace(),
        {"settings": flat(CONFIG), "callbacks": {}},  # type: ignore[arg-type]
    )
    stopping.load_state_dict({**stopping.state_dict(), "patience": 2, "wait_count": 1})
    keeper.on_train_start(run, SimpleNamespace())  # type: ignore[arg-type]
    assert (stopping.patience, stopping.wait_count) == (7, 1)


def test_errors_scored_by_other_settings_are_scored_anew() -> None:
    strategy = PEAS(1, 1, 20, 24)
    key = strategy.state_key
    for n_time, kept in ((1, 1), (2, 0)):
        state = {"cache": {"ids": ["a"], "time": torch.ones(1, 2), "freq": torch.ones(1, 2)}}
        now = flat(CONFIG) | {"masking.init_args.n_time": n_time}
        keeper = ResumeCheck(CONFIG)
        keeper.settings = now
        checkpoint = {"settings": flat(CONFIG), "callbacks": {key: state}}
        keeper.on_load_checkpoint(trainer(strategy), SimpleNamespace(), checkpoint)  # type: ignore[arg-type]
        assert len(state["cache"]["ids"]) == kept


def listed(n_time: int = 1, name: str = "peas.callbacks.PEAS") -> dict[str, Any]:
    """The settings of before the key `masking`, whose strategy stands in the list."""
    masks = {"class_path": name, "init_args": {"n_time": n_time}}
    room = {**CONFIG["trainer"], "callbacks": [*CONFIG["trainer"]["callbacks"], masks]}
    return {**{key: CONFIG[key] for key in CONFIG if key != "masking"}, "trainer": room}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("null", [{}, {"masking": None}])
def test_a_strategy_that_moved_to_its_key_is_no_change(
    turned: bool, null: dict[str, Any], recwarn: pytest.WarningsRecorder
) -> None:
    before, now = {**listed(), **null}, CONFIG
    strategy = PEAS(1, 1, 20, 24)
    state = {"cache": {"ids": ["a"], "time": torch.ones(1, 2), "freq": torch.ones(1, 2)}}
    resumed(
        *((now, before) if turned else (before, now)),
        strategy,
        callbacks={strategy.state_key: state},
    )
    assert not recwarn.list
    assert state["cache"]["ids"] == ["a"]


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (listed(n_time=2), r"\n  masking\.init_args\.n_time: 2 → 1$"),
        (listed(name="peas.callbacks.RandomMasking"), r"masking\.class_path: Random.* → PEAS"),
        ({**CONFIG, "masking": None}, r"masking: None → PEAS"),
        ({key: CONFIG[key] for key in CONFIG if key != "masking"}, r"masking: None → PEAS"),
    ],
)
def test_what_changed_beside_the_move_is_told(before: dict[str, Any], told: str) -> None:
    with pytest.warns(UserWarning, match=told):
        resumed(before, CONFIG)


KEY = re.compile(r"`((?:model|data|trainer|masking|seed_everything)[\w.]*)`")
ROW = re.compile(r"^\| (`.+?) \| (applied|refused|not read) \|", re.MULTILINE)
TABLE: dict[str, set[str]] = {}
for _keys, _what in ROW.findall(DOCS.read_text()):
    TABLE.setdefault(_what, set()).update(KEY.findall(_keys))
TASKS = (Classification, Pretraining)
PARTS: dict[str, list[type]] = {
    "encoder": [SSAST, AudioMAE],
    "front_end": [KaldiLogMel],
    "recipe": [
        *(recipes.SSASTRecipe, recipes.AudioMAERecipe),
        *(recipes.SSASTPretrainingRecipe, recipes.AudioMAEPretrainingRecipe),
    ],
}


def test_the_table_of_the_docs_has_every_key_of_the_tasks_and_of_the_data() -> None:
    told = set().union(*TABLE.values())
    for task in TASKS:
        for name in inspect.signature(task.__init__).parameters:
            if name != "self":
                assert f"model.init_args.{name}" in told, name
    for key, classes in PARTS.items():
        for cls in classes:
            for name in inspect.signature(cls.__init__).parameters:
                # Those of the filter bank are of the class: a checkpoint of others is another.
                if name not in ("self", "rate", "n_mels"):
                    assert f"model.init_args.{key}.init_args.{name}" in told, (key, name)
    for name in inspect.signature(ClipDataModule.__init__).parameters:
        # The last three are facts, which the task has by the same names.
        if name not in ("self", "mean", "std", "frames"):
            assert f"data.init_args.{name}" in told, name


def test_what_the_table_calls_refused_is_what_the_tasks_refuse() -> None:
    refused = {
        key.removeprefix("model.init_args.") for key in TABLE["refused"] if key.startswith("model")
    }
    theirs = {key for task in TASKS for key in (*task.info_keys, *task.shape_keys)}
    # Their names and classes.
    theirs |= {"objectives", *PARTS}
    for key in ("encoder", "front_end"):
        theirs |= {f"{key}.init_args.{name}" for cls in PARTS[key] for name in cls.fixed}
    assert refused == theirs | {key for task in TASKS for key in task.resume_keys}


@pytest.mark.parametrize("key", sorted(TABLE["applied"]))
def test_what_the_table_calls_applied_is_told_with_both_values(key: str) -> None:
    def config(value: Any) -> dict[str, Any]:
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        return {"seed_everything": 0, **nested}

    if key == "trainer.callbacks":
        old, new = [], [{"class_path": "peas.callbacks.MaskPlots"}]
        expected = r"trainer\.callbacks\[MaskPlots\]: not there → there"
    elif key == "masking":
        old, new = None, {"class_path": "peas.callbacks.SpecAugment"}
        expected = r"masking: None → SpecAugment"
    else:
        old, new = 1, 2
        expected = rf"\n  {re.escape(key)}: 1 → 2"
    with pytest.warns(UserWarning, match=expected):
        resumed(config(old), config(new))
