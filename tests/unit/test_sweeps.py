"""Every shipped sweep becomes commands that `peas fit` reads, and the local loop runs them."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from wandb import wandb_agent

from peas.__main__ import main
from peas.cli.fit import FitReader
from peas.cli.results import PointResult, read_point, write_points
from peas.cli.sweep_file import Measured, Sweep, read_sweep
from peas.cli.verbs import dispatch
from peas.data import ESC50, AudioFolder, Mixture, PackedSet
from peas.data.module import refuse_selection_on_test
from peas.errors import ConfigError, PeasError

pytestmark = [
    pytest.mark.needs_numpy1,
    pytest.mark.skipif(
        importlib.util.find_spec("sweeps") is None, reason="needs W&B's sweeps: make test-clap"
    ),
]

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
POINTS = {
    "esc10_peas": 6,
    "mam_clap_mask_ratio": 6,
    "objectives_mask_ratio": 12,
    "peas_scores": 18,
    "peas_strategies": 54,
    "supmam_mask_ratio_weight": 20,
    "finetune_rate_layer_decay": None,
    "peas_open_choices": None,
}
"""Points of a grid; None = sampled."""

BASE: dict[str, Any] = {
    "program": "peas",
    "command": ["${env}", "${program}", "fit", "--config", "x.yaml", "${args}"],
    "method": "grid",
    "metric": {"name": "val/accuracy", "goal": "maximize"},
    "parameters": {"a": {"values": [1, 2]}},
}


@pytest.fixture(scope="module")
def reader() -> FitReader:
    """The real parser; building it is slow."""
    return FitReader()


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps name configs from the project's folder; a run's variables reach no other test."""
    monkeypatch.chdir(ROOT)
    for name in ("WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "PEAS_RUN_DIR"):
        # Set first, so that the absence is restored as well.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(BASE | changes))
    return path


def drawn(sweep: Sweep) -> list[Any]:
    """Points of a sweep: a whole grid, or a draw of each of three seeds."""
    if sweep.config["method"] == "grid":
        return sweep.points(None)
    return [args for seed in (0, 1, 2) for args in read_sweep(sweep.file, seed).points(1)]


def agents_command(sweep: Sweep, args: Any, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """What wandb's own agent starts when the server sends it these values."""
    started: list[list[str]] = []

    def process(command: list[str], **_: Any) -> Any:
        started.append(command)
        return SimpleNamespace()

    monkeypatch.setattr(wandb_agent, "AgentProcess", process)
    monkeypatch.setenv("WANDB_DIR", str(folder))
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    # What it sets itself is taken back.
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "")
    agent: Any = wandb_agent.Agent.__new__(wandb_agent.Agent)
    agent._sweep_command = list(sweep.config["command"])
    agent._function, agent._in_jupyter, agent._forward_signals = None, False, False
    agent._run_processes, agent._log = {}, []
    answer = agent._process_command(
        {"type": "run", "run_id": "r", "program": sweep.config["program"], "args": args}
    )
    assert "exception" not in answer, answer
    return started[0]


# --- the files -------------------------------------------------------------------------------


def test_no_sweep_is_missing_and_none_is_too_many() -> None:
    assert [path.stem for path in SWEEPS] == sorted(POINTS)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_shipped_sweep_is_flat_and_bounded(path: Path) -> None:
    sweep = read_sweep(path)
    for name, how in sweep.config["parameters"].items():
        assert "parameters" not in how, f"{name}: a nested group arrives as one word"
        # A quantised uniform draws 2.0 where 2 is meant.
        assert not str(how.get("distribution", "")).startswith("q_")
    if sweep.config["method"] == "grid":
        assert len(sweep.points(None)) == POINTS[path.stem]
        assert len(sweep.points(2)) == 2
    else:
        assert POINTS[path.stem] is None
        assert sweep.count(None) == sweep.config["run_cap"]
        # More points begin with the same ones; another seed has others.
        assert sweep.points(3) == sweep.points(5)[:3]
        assert read_sweep(path, 1).points(3) != sweep.points(3)


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_command_is_the_agents_and_is_read(
    path: Path, reader: FitReader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Points that differ in the seed alone are read once, and each seed once."""
    sweep = read_sweep(path)
    read: set[str] = set()
    for args in drawn(sweep):
        words = sweep.command(args)
        assert words == agents_command(sweep, args, monkeypatch, tmp_path)
        assert words[:3] == ["/usr/bin/env", "peas", "fit"]
        others = {name: one for name, one in args.items() if name != "seed_everything"}
        marks = {json.dumps(others), f"seed {args.get('seed_everything')}"}
        if marks <= read:
            continue
        read |= marks
        config = reader.check(words)
        for name, given in args.items():
            _require(config, name, given["value"])
        if config.data.class_path.endswith("ESC50"):
            assert config.data.init_args.split == "3/1/1"
        # Else the server would never see the objective.
        assert config.trainer.logger[0].class_path.endswith(".WandbLogger")
        _require_logged(config, sweep)


def covers(got: Any, value: Any) -> bool:
    """Whether a parsed setting is what was given; beside it may stand defaults."""
    if isinstance(value, dict):
        return all(covers(got[key], item) for key, item in value.items())
    return bool(got == value)


def _require(config: Any, name: str, value: Any) -> None:
    """The value has arrived where its name says."""
    room: Any = config
    *path, last = name.split(".")
    for part in path:
        room = room[part]
        if isinstance(room, list):
            room = room[-1]
            if last not in room:
                room = room.init_args
    if isinstance(value, dict):
        for key, item in value.items():
            # A word in YAML.
            assert covers(room[last][key], None if item == "null" else item), key
    else:
        assert room[last] == value
        assert type(room[last]) is type(value)


def _require_logged(config: Any, sweep: Sweep) -> None:
    """The objective is what checkpoints are chosen by, or what the vote of neighbours logs."""
    if sweep.metric == "knn/accuracy":
        voters = [one for one in config.trainer.callbacks if one.class_path.endswith(".KNN")]
        # Of what it measures, nothing is a test clip.
        assert voters[0].init_args.split == "validation"
        assert voters[0].init_args.data.init_args.split == "3/1/1"
        assert sweep.maximise
        # The config's own callbacks stay.
        assert len(config.trainer.callbacks) == 2
        return
    from peas.tasks import Classification

    assert config.model.class_path.endswith(".Classification")
    goal = "max" if sweep.maximise else "min"
    assert Classification.monitor(multi_label=False) == (sweep.metric, goal)


def test_a_new_strategy_keeps_the_widths_of_the_masks(reader: FitReader) -> None:
    sweep = read_sweep(ROOT / "configs/sweeps/peas_strategies.yaml")
    masks = [reader.check(sweep.command(sweep.points(None)[at])).masking for at in (0, -1)]
    assert [mask.class_path for mask in masks] == [
        "peas.callbacks.RandomMasking",
        "peas.callbacks.PEAS",
    ]
    for mask in masks:
        kept = (mask.init_args.max_time, mask.init_args.max_freq, mask.init_args.final_phase)
        assert kept == (96, 24, 0.2)


# --- values on a command line ----------------------------------------------------------------

AUDIOMAE = ("fit", "--config", "configs/finetune/audiomae_esc50.yaml")


def arrived(reader: FitReader, tmp_path: Path, name: str, value: Any) -> Any:
    """Settings of a run of a sweep with one value."""
    config = "configs/finetune/audiomae_esc50.yaml"
    words = ["${env}", "${program}", "fit", "--config", config, "${args}"]
    parameters = {"data.init_args.split": {"value": "3/1/1"}, name: {"value": value}}
    sweep = read_sweep(write(tmp_path, command=words, parameters=parameters))
    return reader.check(sweep.command(sweep.points(None)[0]))


def test_small_numbers_arrive(reader: FitReader, tmp_path: Path) -> None:
    key = "model.init_args.recipe.init_args"

    def rate(name: str, value: Any) -> Any:
        return arrived(reader, tmp_path, f"{key}.{name}", value).model.init_args.recipe.init_args.lr

    # The agent writes 1e-05; YAML would take that for a word.
    assert rate("lr", 1e-5) == 1e-5
    # What YAML took for a word in the file arrives as the number that it looks like.
    assert rate("lr", "1e-5") == 1e-5
    # The server makes whole numbers of 1.0.
    assert rate("layer_decay", 1) == 1e-3


def test_a_fraction_is_no_number_of_epochs(reader: FitReader, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`trainer.max_epochs` is 2\.0: give int"):
        arrived(reader, tmp_path, "trainer.max_epochs", 2.0)


def test_nothing_is_the_text_null(reader: FitReader, tmp_path: Path) -> None:
    key = "model.init_args.pretrained"
    assert arrived(reader, tmp_path, key, "null").model.init_args.pretrained is None
    with pytest.raises(ConfigError, match=r'`model\.init_args\.pretrained` is null.*text "null"'):
        arrived(reader, tmp_path, key, None)
    # Else a file of that name would be looked for.
    words = [*AUDIOMAE, "--data.init_args.split=3/1/1", f"--{key}=None"]
    assert reader.check(words).model.init_args.pretrained == "None"


def test_booleans_and_a_nested_group_arrive(reader: FitReader, tmp_path: Path) -> None:
    key = "model.init_args.augmentation.noise_roll"
    assert arrived(reader, tmp_path, key, True).model.init_args.augmentation.noise_roll is True
    assert arrived(reader, tmp_path, key, False).model.init_args.augmentation.noise_roll is False
    words = [*BASE["command"]]
    words[4] = "configs/finetune/audiomae_esc50.yaml"
    group = {"recipe": {"parameters": {"init_args": {"parameters": {"lr": {"value": 0.5}}}}}}
    parameters = {
        "data.init_args.split": {"value": "3/1/1"},
        "model": {"parameters": {"init_args": {"parameters": group}}},
    }
    sweep = read_sweep(write(tmp_path, command=words, parameters=parameters))
    args = sweep.points(None)[0]
    # One word for the whole group: the reason why shipped files name each key.
    assert args["model"] == {"value": {"init_args": {"recipe": {"init_args": {"lr": 0.5}}}}}
    recipe = reader.check(sweep.command(args)).model.init_args.recipe.init_args
    assert (recipe.lr, recipe.layer_decay) == (0.5, 0.75)


# --- wrong files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"program": "train.py"}, "does not run `peas fit`"),
        ({"command": ["${env}", "${program}", "kfold", "${args}"]}, "does not run `peas fit`"),
        ({"command": ["${env}", "${program}", "fit", "--config", "x"]}, "does not run `peas fit`"),
        (
            {"command": ["${env}", "${program}", "fit", "${args}", "--config", "x"]},
            "put --config first",
        ),
        ({"method": "gird"}, "W&B refuses it: .*gird"),
        ({"parameters": {"a": {"min": 3.0, "max": 1.0}}, "method": "random"}, "W&B refuses it"),
        ({"metric": {"name": "val/accuracy"}}, "`metric` must have"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 3}}, "needs W&B's server.*wandb sw"),
    ],
)
def test_a_wrong_sweep_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_sweep(write(tmp_path, **changes))


def test_what_is_no_sweep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        read_sweep(tmp_path / "missing.yaml")
    for text in ("- 1", "a: [", ""):
        (tmp_path / "no.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"no\.yaml: not a sweep"):
            read_sweep(tmp_path / "no.yaml")
    monkeypatch.setitem(sys.modules, "sweeps", None)
    with pytest.raises(ConfigError, match=r"peas\[sweeps\].*wandb sweep"):
        read_sweep(SWEEPS[0])


def test_a_macro_that_peas_cannot_use_is_refused(tmp_path: Path) -> None:
    words = [*BASE["command"], "${args_json_file}"]
    sweep = read_sweep(write(tmp_path, command=words))
    with pytest.raises(ConfigError, match=r"command` has \$\{args_json_file\}"):
        sweep.command(sweep.points(None)[0])


def test_draws_need_a_number(tmp_path: Path) -> None:
    parameters = {"a": {"min": 0.0, "max": 1.0}}
    sweep = read_sweep(write(tmp_path, method="random", parameters=parameters))
    with pytest.raises(ConfigError, match="give `--count`"):
        sweep.count(None)
    assert sweep.count(7) == 7
    with pytest.raises(ConfigError, match="disallowed type with grid"):
        read_sweep(write(tmp_path, parameters=parameters)).points(None)


def test_a_search_by_results_goes_on_from_them(tmp_path: Path) -> None:
    parameters = {"a": {"min": 0.0, "max": 1.0}}
    sweep = read_sweep(write(tmp_path, method="bayes", parameters=parameters))
    assert sweep.sequential
    before: list[Measured] = []
    for _ in range(8):
        args = sweep.following(before)
        assert args == sweep.following(before)
        before.append(Measured(args, [-abs(args["a"]["value"] - 0.7)]))
    late = [abs(one.args["a"]["value"] - 0.7) for one in before[4:]]
    assert min(late) < 0.1
    with pytest.raises(ConfigError, match="several `wandb agent`"):
        dispatch(["sweep", str(sweep.file), "--count", "2", "--parallel", "2"])


# --- a choice by the test --------------------------------------------------------------------


def test_which_sets_select_on_the_test() -> None:
    def esc50(split: Any) -> ESC50:
        return ESC50("nowhere", split=split)

    assert esc50("official").selects_on_test
    assert not esc50("3/1/1").selects_on_test
    assert Mixture([esc50("3/1/1"), esc50("official")]).selects_on_test
    assert not Mixture([esc50("3/1/1")]).selects_on_test
    assert AudioFolder("nowhere", csv="a.csv", fold=1).selects_on_test
    assert not AudioFolder("nowhere", csv="a.csv", fold=1, split="3/1/1").selects_on_test
    assert not AudioFolder("nowhere").selects_on_test
    # The constructor reads the folder.
    packed = PackedSet.__new__(PackedSet)
    for packed.fold, packed.split, tested in (
        ("1", "official", True),
        ("1", "3/1/1", False),
        (None, "official", False),
    ):
        assert packed.selects_on_test == tested
    with pytest.raises(ConfigError, match=r"data\.init_args\.split to 3/1/1, or allow it with"):
        refuse_selection_on_test(esc50("official"))
    refuse_selection_on_test(esc50("official"), allowed=True)


def test_peas_sweep_refuses_before_any_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*BASE["command"]]
    words[4] = str(ROOT / "configs/finetune/esc50_peas_1x1.yaml")
    parameters = {"data.init_args.split": {"values": ["3/1/1", "official"]}}
    file = write(tmp_path, command=words, parameters=parameters)
    out = tmp_path / "out"
    # The second point alone is wrong, and the first one does not run either.
    assert main(["sweep", str(file), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "sweep.yaml, point 2: " in said
    assert not out.exists()
    assert main(["sweep", str(file), "--dry_run", "--allow_test_selection"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("--allow_test_selection=true" in line for line in lines)
    # The data are opened before the first point as well.
    missing = ["--data.init_args.root", str(tmp_path / "nowhere")]
    call = ["sweep", str(file), "--out", str(out), "--allow_test_selection", *missing]
    assert main(call) == 1
    assert "nowhere" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_fit_refuses_below_the_agent(
    sounds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["fit", "--config", str(tiny(tmp_path, sounds, split="official"))]
    words += ["--trainer.default_root_dir", str(tmp_path / "run")]
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert main(words) == 1
    assert "allow it with --allow_test_selection=true" in capsys.readouterr().err
    assert main([*words, "--allow_test_selection=true", "--trainer.limit_train_batches=1"]) == 0


# --- the loop --------------------------------------------------------------------------------


def tiny(folder: Path, sounds: Path, split: str = "3/1/1") -> Path:
    """Config of a run of seconds."""
    masks = {"max_time": 24, "max_freq": 24, "rounding": "stochastic"}
    data = {"root": str(sounds), "split": split, "frames": 64, "batch_size": 6, "num_workers": 0}
    config = {
        "seed_everything": 0,
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "num_sanity_val_steps": 0,
        },
        "masking": {"class_path": "peas.callbacks.PEAS", "init_args": masks},
        "model": {
            "class_path": "peas.tasks.Classification",
            "init_args": {"size": "tiny", "pretrained": None, "stride": [16, 16], "lr": 5e-4},
        },
        "data": {"class_path": "peas.data.ESC50", "init_args": {**data, "cache_dir": ""}},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_two_points_run_once(
    sounds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One of the two logs to W&B as well, offline."""
    monkeypatch.chdir(tmp_path)
    plain = tmp_path / "plain.yaml"
    plain.write_text("trainer: {logger: true}\n")
    words = [*BASE["command"]]
    words[4] = str(tiny(tmp_path, sounds))
    parameters = {
        "config": {"values": [str(ROOT / "configs/overlays/wandb.yaml"), str(plain)]},
        "masking.init_args.n_time": {"value": 2},
    }
    file = write(tmp_path, command=words, parameters=parameters)
    call = ["sweep", str(file), "--out", "out", "--model.init_args.recipe.init_args.lr=1e-4"]
    assert main(call) == 0
    first = capsys.readouterr().out

    config = yaml.safe_load((tmp_path / "out/point001/config.yaml").read_text())
    assert config["masking"]["init_args"]["n_time"] == 2
    assert config["model"]["init_args"]["recipe"]["init_args"]["lr"] == 1e-4
    sweep = read_sweep(file)
    (offline,) = (tmp_path / "out/point001/wandb").glob("offline-run-*")
    assert offline.name.endswith(f"{sweep.local_id}-001")
    with (tmp_path / "out/sweep.csv").open() as rows:
        table = list(csv.DictReader(rows))
    assert {row["point"] for row in table} == {"1", "2"}
    # Nothing but the logger differs.
    assert table[0]["val/accuracy best"] == table[1]["val/accuracy best"]
    assert first.endswith((tmp_path / "out/sweep.md").read_text())

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/*")}
    assert main(call) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/*")} == before
    # The same folder is not taken for another sweep's.
    assert main([*call, "--model.init_args.recipe.init_args.lr=1e-3"]) == 1
    assert "choose another --out" in capsys.readouterr().err


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Runs that only write a log: the metric is the value of `a`; 13 fails."""
    started: list[list[str]] = []

    def run(words: list[str], env: dict[str, str], stdout: Any, **_: Any) -> Any:
        started.append(words)
        assert env["WANDB_MODE"] == "offline"
        values = yaml.safe_load(Path(env["WANDB_SWEEP_PARAM_PATH"]).read_text())
        if values["a"]["value"] == 13:
            stdout.write("it broke\n")
            return SimpleNamespace(returncode=1)
        folder = Path(next(w for w in words if "root_dir" in w).partition("=")[2])
        log = folder / "logs" / "version_0"
        log.mkdir(parents=True)
        value = values["a"]["value"]
        log.joinpath("metrics.csv").write_text(
            f"epoch,step,val/accuracy\n0,9,{value}\n1,19,{value - 0.5}\n"
        )
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)

    class Reads:
        def __init__(self, *_: Any) -> None: ...

        def check(self, words: list[str]) -> None: ...

        def open_data(self, stage: str) -> None: ...

    monkeypatch.setattr("peas.cli.fit.FitReader", Reads)
    return started


def test_best_point_comes_first_and_a_failed_one_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fake: list[list[str]],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").touch()
    file = write(tmp_path, parameters={"a": {"values": [2, 13, 5]}, "b": {"value": "same"}})
    assert main(["sweep", str(file), "--out", "out", "--parallel", "1"]) == 1
    told = capsys.readouterr()
    assert "1 of 3 points failed" in told.err
    assert "it broke" in told.err
    rows = [line for line in Path("out/sweep.md").read_text().splitlines()]
    assert rows == [
        "| point | a | val/accuracy best | epoch | val/accuracy last |",
        "| --- | --- | --- | --- | --- |",
        "| 3 | 5 | 5.0000 | 1 | 4.5000 |",
        "| 1 | 2 | 2.0000 | 1 | 1.5000 |",
    ]
    assert len(fake) == 3
    # A point that was begun goes on from its checkpoint; finished ones are left alone.
    checkpoint = Path("out/point002/checkpoints/last.ckpt")
    checkpoint.parent.mkdir()
    checkpoint.touch()
    assert main(["sweep", str(file), "--out", "out"]) == 1
    assert len(fake) == 4
    assert fake[-1][-1] == "--ckpt_path=last"
    assert not any("--ckpt_path=last" in words for words in fake[:3])
    # Another config in the same place is another sweep.
    Path("x.yaml").write_text("seed_everything: 3\n")
    assert main(["sweep", str(file), "--out", "out"]) == 1
    assert len(fake) == 4


def test_a_first_point_that_never_trained_stops_the_others_and_frees_its_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fake: list[list[str]],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").touch()
    file = write(tmp_path, parameters={"a": {"values": [13, 2, 5]}})
    assert main(["sweep", str(file), "--out", "out"]) == 1
    assert "1 of 3 points failed, 2 were not started" in capsys.readouterr().err
    assert len(fake) == 1
    file = write(tmp_path, parameters={"a": {"values": [3, 2, 5]}})
    assert main(["sweep", str(file), "--out", "out"]) == 0
    assert len(fake) == 4
    assert "it broke" in Path("out/point001.failed1/fit.log").read_text()


def test_a_search_by_results_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: list[list[str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").touch()
    parameters = {"a": {"min": 0.0, "max": 1.0}}
    file = write(tmp_path, method="bayes", parameters=parameters)
    assert main(["sweep", str(file), "--out", "out", "--count", "2"]) == 0
    assert main(["sweep", str(file), "--out", "out", "--count", "4"]) == 0
    assert [words[-1][-8:] for words in fake] == [f"point00{n}" for n in (1, 2, 3, 4)]
    assert len({words[-2] for words in fake}) == 4


def test_results_of_a_run(tmp_path: Path) -> None:
    for version, rows in enumerate(["0,9,0.5\n1,19,nan\n", "1,19,0.25\n2,29,0.75\n"]):
        log = tmp_path / "logs" / f"version_{version}"
        log.mkdir(parents=True)
        (log / "metrics.csv").write_text("epoch,step,val/loss\n" + rows)
    result = read_point(tmp_path, 1, {}, "val/loss")
    assert result == PointResult(1, {}, [0.5, 0.25, 0.75], [1, 2, 3])
    assert result.best(maximise=False) == (0.25, 2)
    assert result.best(maximise=True) == (0.75, 3)
    with pytest.raises(PeasError, match=r"`metric.name` is val/mAP.*it logged epoch, step, val/lo"):
        read_point(tmp_path, 1, {}, "val/mAP")


def test_a_point_without_a_number_is_last(tmp_path: Path) -> None:
    sweep = read_sweep(write(tmp_path, metric={"name": "loss", "goal": "minimize"}))
    nan = float("nan")
    results = [
        PointResult(number, {"a": {"value": number}}, curve, [1, 2])
        for number, curve in ((1, [nan, nan]), (2, [0.5, nan]), (3, [0.4, 0.6]))
    ]
    lines = write_points(tmp_path, "loss", False, sweep.swept, results).splitlines()[2:]
    assert [line.split()[1] for line in lines] == ["3", "2", "1"]
    assert lines[1].split()[-2] == "nan"


@pytest.mark.parametrize("words", [["--parallel", "0"], ["--count", "0"]])
def test_numbers_of_the_command(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="give 1 or more"):
        dispatch(["sweep", str(SWEEPS[0]), *words])
