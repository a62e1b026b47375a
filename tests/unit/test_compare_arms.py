"""`examples/compare_arms.py` on run folders as `peas kfold` leaves them."""

import copy
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from peas.errors import DataError

SCRIPT = Path(__file__).parents[2] / "examples" / "compare_arms.py"
SPEC = importlib.util.spec_from_file_location("compare_arms", SCRIPT)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)

MASK = {"n_time": 1, "n_freq": 1, "max_time": 96, "max_freq": 24, "final_phase": 0.2}
CONFIG = {
    "seed_everything": 0,
    "trainer": {
        "max_epochs": 3,
        "default_root_dir": "",
        "callbacks": [
            {"class_path": "peas.callbacks.MaskPlots", "init_args": {"clips": 2}},
        ],
    },
    "masking": {"class_path": "peas.callbacks.RandomMasking", "init_args": MASK},
    "model": {"class_path": "peas.tasks.Classification", "init_args": {"lr": 1e-3}},
    "data": {"class_path": "peas.data.ESC50", "init_args": {"fold": 1}},
}
# Two takes of each recording, two folds.
IDS = {
    fold: [f"{fold}-{fold}{n:02d}-{take}-{n % 3}.ogg" for n in range(20) for take in "AB"]
    for fold in (1, 2)
}


def write(folder, chance, seeds=(0, 1, 2), change=lambda config: None, draw=0, ids=IDS):
    """Runs of an arm whose clips are right with a chance."""
    for seed in seeds:
        for fold, names in ids.items():
            run = folder / f"fold{fold}_seed{seed}"
            (run / "logits").mkdir(parents=True)
            config = copy.deepcopy(CONFIG)
            config["seed_everything"], config["data"]["init_args"]["fold"] = seed, fold
            config["trainer"]["default_root_dir"] = str(run)
            change(config)
            (run / "config.yaml").write_text(yaml.safe_dump(config))
            versions = dict.fromkeys(("peas", "torch", "lightning", "timm", "numpy"), "1.0")
            facts = {"commit": "0123456789ab+", "versions": versions}
            (run / "environment.json").write_text(json.dumps(facts))
            (run / "done.json").write_text("{}")
            source = np.random.default_rng([seed, fold, draw])
            target = np.array([int(name[-5]) for name in names])
            right = source.random(len(names)) < chance
            logits = np.eye(3)[np.where(right, target, (target + 1) % 3)]
            save(run, ids=names, logits=logits, targets=np.eye(3)[target])
    return folder


def save(run, **arrays):
    file = run / "logits" / "val_last.npz"
    if file.exists():
        arrays = {**np.load(file), **arrays}
    np.savez(file, **{"epoch": 2, "labels": ["a", "b", "c"], **arrays})


def strategy(name, **settings):
    def change(config):
        config["masking"] = {
            "class_path": f"peas.callbacks.{name}",
            "init_args": {**MASK, **settings},
        }

    return change


@pytest.fixture
def arms(tmp_path):
    write(tmp_path / "random", 0.3)
    write(tmp_path / "peas", 1.0, change=strategy("PEAS", score="pred"), draw=1)
    write(tmp_path / "energy", 0.3, change=strategy("PEAS", score="energy"), draw=2)
    return tmp_path


def right_share(folder, seed):
    found = [np.load(folder / f"fold{fold}_seed{seed}/logits/val_last.npz") for fold in IDS]
    return np.mean([z["logits"].argmax(1) == z["targets"].argmax(1) for z in found])


def run(folder, *options, names=("random", "peas", "energy"), cluster="esc"):
    script.main([*(f"{name}={folder / name}" for name in names), "--cluster", cluster, *options])


def test_the_tables(arms, capsys):
    run(arms, "--out", str(arms / "new" / "table.md"))
    text = capsys.readouterr().out
    assert (arms / "new" / "table.md").read_text() == text
    assert (
        "80 clips of 40 source recordings, 2 folds, 3 seeds (0, 1, 2); the last of 3 epochs."
        in text
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    rows = [line for line in lines if line and line[0] in ("random", "peas", "energy")]
    # Gaps come before any result.
    assert [row[0] for row in rows] == [
        "peas",
        "energy",
        "random",
        "peas",
        "energy",
        "peas",
        "energy",
    ]
    by_arm = {
        name: 100 * np.array([right_share(arms / name, seed) for seed in (0, 1, 2)])
        for name in ("random", "peas", "energy")
    }
    for row in rows[2:5]:
        values = by_arm[row[0]]
        assert row[1] == f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
        assert row[2] == ", ".join(f"{value:.2f}" for value in values)
    for row in rows[5:]:
        assert row[1] == f"{(by_arm[row[0]] - by_arm['random']).mean():+.2f}"
    assert rows[5][-1] == "better"
    assert rows[6][-1] == "no significant difference"
    assert float(rows[0][1]) > 2.8 * float(rows[0][2]) > 0
    assert "commit 0123456+; peas 1.0" in text


def test_order_of_clips_and_arms_does_not_matter(arms, capsys):
    run(arms)
    text = capsys.readouterr().out
    job = arms / "peas" / "fold2_seed1"
    found = dict(np.load(job / "logits" / "val_last.npz"))
    order = np.random.default_rng(0).permutation(len(found["ids"]))
    save(job, **{key: found[key][order] for key in ("ids", "logits", "targets")})
    run(arms)
    assert capsys.readouterr().out == text
    run(arms, names=("peas", "random", "energy"))
    assert capsys.readouterr().out == text


def test_speakers(tmp_path, capsys):
    speakers = ["ann", "bob", "cid", "dan", "eve", "flo"]
    ids = {
        fold: [f"recordings/{digit}_{name}_{digit}.wav" for digit in range(3)]
        for fold, name in enumerate(speakers, 1)
    }
    for name, chance in (("random", 0.0), ("peas", 1.0), ("energy", 1.0)):
        write(tmp_path / name, chance, seeds=(0,), ids=ids)
    run(tmp_path, cluster="fsdd")
    text = capsys.readouterr().out
    assert "18 clips of 6 speakers, 6 folds, 1 seed (0)" in text
    assert "no p-value below 0.0312, and after Holm over 2 comparisons none below 0.0625" in text
    assert "| peas | none |" in text
    assert text.count("no significant difference") == 2
    assert "One seed: how seeds spread is not in it" in text
    run(tmp_path, "--test", "t", cluster="fsdd")
    assert capsys.readouterr().out.count("| better |") == 2


def test_unequal_seeds_and_clips_are_named(arms, capsys):
    write(arms / "short", 0.5, seeds=(0,))
    with pytest.raises(DataError, match=r"short has the seeds \[0\], random has \[0, 1, 2\]"):
        run(arms, names=("random", "short"))
    job = arms / "peas" / "fold2_seed1"
    found = dict(np.load(job / "logits" / "val_last.npz"))
    save(job, **{key: found[key][1:] for key in ("ids", "logits", "targets")})
    with pytest.raises(DataError, match=r"peas, seed 1 lacks 1 clips .* seed 0 has: 2-200-A-0.ogg"):
        run(arms)
    for seed in (0, 2):
        job = arms / "peas" / f"fold2_seed{seed}"
        save(job, **{key: found[key][1:] for key in ("ids", "logits", "targets")})
    with pytest.raises(DataError, match=r"peas lacks 1 clips that random has: 2-200-A-0.ogg"):
        run(arms)


def test_a_clip_in_two_folds(arms):
    job = arms / "peas" / "fold2_seed1"
    save(job, ids=[IDS[1][0], *IDS[2][1:]])
    with pytest.raises(DataError, match=r"1-100-A-0.ogg was scored in another fold of seed 1"):
        run(arms)


def test_runs_that_are_not_finished(arms):
    (arms / "energy" / "fold1_seed1" / "done.json").unlink()
    with pytest.raises(DataError, match="fold1_seed1 is not finished"):
        run(arms)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"epoch": 1}, "is of epoch 2 of 3: it is not the last one"),
        ({"logits": np.full((40, 3), np.nan)}, "this run has diverged"),
        ({"targets": np.ones((40, 3))}, "clips with several classes"),
    ],
)
def test_scores_that_do_not_count(arms, arrays, said):
    save(arms / "random" / "fold1_seed0", **arrays)
    with pytest.raises(DataError, match=said):
        run(arms)


def test_arms_that_differ_in_more_than_the_strategy(arms, capsys):
    def wider(config):
        strategy("PEAS", score="pred")(config)
        config["masking"]["init_args"]["max_time"] = 48

    def faster(config):
        config["model"]["init_args"]["lr"] = 2e-3

    write(arms / "wider", 0.5, change=wider)
    with pytest.raises(DataError, match="differ in max_time of the masks"):
        run(arms, names=("random", "wider"))
    write(arms / "faster", 0.5, change=faster)
    with pytest.raises(DataError, match=r"differ in model.init_args.lr"):
        run(arms, names=("random", "faster"))
    run(arms, "--may-differ", "model.init_args.lr", names=("random", "faster"))
    assert "| faster |" in capsys.readouterr().out


def test_runs_of_one_arm_with_other_settings(arms):
    file = arms / "peas" / "fold2_seed1" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["data"]["init_args"]["frames"] = 128
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(DataError, match="have other settings"):
        run(arms)


def test_other_targets(arms):
    job = arms / "peas" / "fold1_seed0"
    targets = np.load(job / "logits" / "val_last.npz")["targets"]
    save(job, targets=targets[:, [1, 0, 2]])
    with pytest.raises(DataError, match=r"peas and random have clips of another class: 1-1"):
        run(arms)


def test_names_of_another_set(arms):
    with pytest.raises(
        DataError, match=r"--cluster fsdd: 80 clips have other names: 1-100-A-0.ogg"
    ):
        run(arms, cluster="fsdd")


def test_wrong_command_lines(arms, tmp_path):
    with pytest.raises(SystemExit, match="--baseline is random"):
        run(arms, names=("peas", "energy"))
    with pytest.raises(SystemExit, match="NAME=FOLDER"):
        script.main(["peas", "--cluster", "esc"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no folder such as fold1_seed0"):
        run(arms, names=("random", "empty"))
