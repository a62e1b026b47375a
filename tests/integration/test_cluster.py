"""Clusters: two hosts by torchrun, SLURM's signal and requeue by stand-ins, ranks that disagree."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from drive import BASE, Run, Write, call, changed, metrics
from forks import free_port
from slurm_stand_in import environment, submitted
from two_hosts import TwoHosts, ended

CLUSTER = Path(__file__).parents[2] / "configs" / "cluster"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    with TwoHosts(tmp_path) as pair:
        yield pair


def on_both(hosts: TwoHosts, folder: Path, *argv: str, **variables: str) -> list[tuple[int, str]]:
    """Status and errors of `configs/cluster/torchrun.sh` on both hosts, and what the first said."""
    command = ["bash", str(CLUSTER / "torchrun.sh"), *argv]
    given = {"NODES": "2", "GPUS": "1", "HEAD": "alpha:29500", "OVERLAY": "", **variables}
    started = [hosts.start(host, command, folder, **given) for host in (0, 1)]
    return [(code, out + err) for code, out, err in ended(started, 120)]


@pytest.mark.slow
def test_two_hosts_see_the_same_and_train_as_one(
    hosts: TwoHosts, write: Write, tmp_path: Path
) -> None:
    changes = {
        "masking": None,
        "trainer.max_epochs": 2,
        "model.init_args.encoder.init_args.drop_path": 0.0,
    }
    one = write("one.yaml", changes=changes)
    both = {"trainer.devices": 1, "trainer.num_nodes": 2, "trainer.strategy": "ddp"}
    both |= {"trainer.use_distributed_sampler": False, "data.init_args.batch_size": 3}
    two = write("two.yaml", changes={**changes, **both})
    job = {"CONFIGS": str(two), "RUN": str(tmp_path / "two")}
    (code, first), (other, second) = on_both(hosts, tmp_path, **job, DOCTOR="1")
    assert (code, other) == (0, 0), first + second
    # Either may be the first rank, and only that one speaks.
    told = first + second
    assert told.count("2 rank(s) on 2 host(s) agree") == 1
    lines = [line.split() for line in told.splitlines() if line[:2] in ("0 ", "1 ")]
    assert {line[1] for line in lines} == {"alpha", "beta"}
    assert lines[0][-2:] == lines[1][-2:]
    assert lines[0][-2] == "24+6+6"
    assert not (tmp_path / "two").exists()

    (code, first), (other, second) = on_both(hosts, tmp_path, **job)
    assert (code, other) == (0, 0), first + second
    assert call("fit", "--config", one, "--trainer.default_root_dir", tmp_path / "one").code == 0
    # One log, of the first rank, with the losses of one process that takes the whole batch.
    logs = [metrics(tmp_path / name / "logs/version_0/metrics.csv") for name in ("two", "one")]
    compared = 0
    for ours, alone in zip(*logs, strict=True):
        for key in ("train/loss", "val/loss"):
            assert (key in ours) == (key in alone)
            if key in ours:
                assert float(ours[key]) == pytest.approx(float(alone[key]), abs=1e-5)
                compared += 1
    assert compared >= 4
    assert list((tmp_path / "two" / "logs").iterdir()) == [tmp_path / "two" / "logs/version_0"]


@pytest.mark.slow
def test_a_run_that_slurm_warns_goes_on_as_if_nothing_had_happened(
    trained: Run, sounds: Path, tmp_path: Path
) -> None:
    masks, run = tmp_path / "masks.jsonl", tmp_path / "run"
    settings = changed(BASE, {"data.init_args.root": str(sounds)})
    pause = {"folder": str(tmp_path), "at": [1, 1]}
    settings["trainer"]["callbacks"] += [
        {"class_path": "cli_recorder.Recorder", "init_args": {"path": str(masks)}},
        {"class_path": "slurm_stand_in.Pause", "init_args": pause},
    ]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    job = {"CONFIGS": str(config), "RUN": str(run), "OVERLAY": ""}
    code, log, starts = submitted(tmp_path, **job)
    assert (code, starts) == (0, 2), log
    assert "Traceback" not in log
    # The step that was being taken is in it, and nothing after it: four batches an epoch.
    left = torch.load(run / "hpc_ckpt_1.ckpt", weights_only=True)
    assert left["global_step"] == 6
    assert f"resuming from {run / 'hpc_ckpt_1.ckpt'}" in log
    assert masks.read_text() == trained.masks.read_text()
    ours, unbroken = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (run, trained.folder)
    )
    assert ours["global_step"] == unbroken["global_step"] == 12
    assert ours["state_dict"].keys() == unbroken["state_dict"].keys()
    for key, value in unbroken["state_dict"].items():
        assert torch.equal(ours["state_dict"][key], value), key


# --- the scripts --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slurm.sh", "torchrun.sh"])
def test_scripts_parse_and_say_what_they_miss(name: str, tmp_path: Path) -> None:
    script = str(CLUSTER / name)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    env = {key: value for key, value in os.environ.items() if key not in ("CONFIGS", "RUN")}
    done = subprocess.run(["bash", script], env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "CONFIGS: names no config" in done.stderr
    done = subprocess.run(
        ["bash", script], env={**env, "CONFIGS": "x"}, capture_output=True, text=True
    )
    assert "RUN: names no folder" in done.stderr


def printed(tmp_path: Path, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What the SLURM script would start, printed by the stand-in."""
    env = environment(tmp_path, PEAS="echo", **variables)
    command = ["bash", str(CLUSTER / "slurm.sh"), *argv]
    return subprocess.run(command, env=env, cwd=CLUSTER.parents[1], capture_output=True, text=True)


def test_an_array_is_folds_times_seeds_in_the_folders_of_kfold(tmp_path: Path) -> None:
    given = {"CONFIGS": "a.yaml b.yaml", "RUN": "runs/x", "FOLDS": "2 5", "SEEDS": "0 3 7"}
    jobs = [(fold, seed) for seed in (0, 3, 7) for fold in (2, 5)]
    for task, (fold, seed) in enumerate(jobs):
        argv = ("--data.init_args.root", "E")
        done = printed(tmp_path, *argv, SLURM_ARRAY_TASK_ID=str(task), **given)
        words = shlex.split(done.stdout)
        assert words[:5] == ["fit", "--config", "a.yaml", "--config", "b.yaml"]
        options = dict(zip(words[5::2], words[6::2], strict=True))
        assert options["--data.init_args.root"] == "E"
        assert options["--data.init_args.fold"] == str(fold)
        assert options["--seed_everything"] == str(seed)
        assert options["--trainer.default_root_dir"] == f"runs/x/fold{fold}_seed{seed}"
        assert options["--ckpt_path"] == "last"
    done = printed(tmp_path, SLURM_ARRAY_TASK_ID="6", **given)
    assert done.returncode == 1
    assert "--array 0-5" in done.stderr
    # Without an array one job would train the first fold, and look like all.
    assert "sbatch --array" in printed(tmp_path, **given).stderr
    alone = printed(tmp_path, SLURM_ARRAY_TASK_ID="1", CONFIGS="a.yaml", RUN="r", SEEDS="4 9")
    assert "--seed_everything 9 --trainer.default_root_dir r/seed9 " in alone.stdout
    assert "fold" not in alone.stdout


def test_the_overlay_takes_the_jobs_numbers(tmp_path: Path, write: Write) -> None:
    config = write(changes={"trainer.accelerator-": None})
    sizes = {"SLURM_NNODES": "3", "SLURM_NTASKS_PER_NODE": "4"}
    done = printed(tmp_path, CONFIGS=str(config), RUN="runs/x", **sizes)
    *words, last, value = shlex.split(done.stdout)
    assert (last, value) == ("--ckpt_path", "last")
    shown = call(*words, "--print_config")
    trainer = yaml.safe_load(shown.out)["trainer"]
    # The parser leaves `devices` the text that it may be; Lightning reads the number in it.
    wanted = {"num_nodes": 3, "devices": "4", "strategy": "ddp", "accelerator": "gpu"}
    assert {key: trainer[key] for key in wanted} == wanted
    assert trainer["use_distributed_sampler"] is False


def test_the_script_asks_slurm_for_requeue_and_warning() -> None:
    asked = [
        line.removeprefix("#SBATCH ").strip()
        for line in (CLUSTER / "slurm.sh").read_text().splitlines()
        if line.startswith("#SBATCH")
    ]
    assert {"--requeue", "--open-mode=append", "--signal=SIGUSR1@300"} <= set(asked)
    numbers = dict(option.split("=", 1) for option in asked if "=" in option)
    assert numbers["--ntasks-per-node"] == numbers["--gpus-per-node"]


# --- peas doctor --cluster ----------------------------------------------------------------------


@pytest.mark.slow
def test_ranks_that_disagree_all_end_with_1(sounds: Path, tmp_path: Path) -> None:
    for rank in (0, 1):
        shutil.copytree(sounds, tmp_path / f"data{rank}")
        (tmp_path / f"run{rank}").mkdir()
    table = tmp_path / "data1" / "meta" / "esc50.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    doctor = 'peas doctor --cluster --data esc50 "$0/data$R" --run_dir "$0/run$R"'
    each = f'R=$SLURM_PROCID; {doctor}; echo "rank $R: status $?" >&2'
    env = environment(tmp_path, SLURM_NTASKS="2", SLURM_NTASKS_PER_NODE="2")
    done = subprocess.run(
        ["srun", "sh", "-c", each, str(tmp_path)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    for rank in (0, 1):
        assert f"rank {rank}: status 1" in done.stderr
    assert done.stderr.count("peas doctor: error: the ranks disagree") == 1
    assert re.search(r"clips of \w+: \d+ on rank 0 \(.+\), \d+ on rank 1 \(", done.stderr)
    assert f"{tmp_path / 'run1'} is not the folder that rank 0" in done.stderr
    assert not list(tmp_path.glob("run?/.doctor*"))


def test_a_rank_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = environment(tmp_path, SLURM_NTASKS="3", SLURM_NTASKS_PER_NODE="3", SLURM_LOCALID="0")
    for name, value in given.items():
        if name.startswith(("SLURM", "MASTER")):
            monkeypatch.setenv(name, value)
    # Set first, so that the absence is restored as well.
    monkeypatch.setenv("SLURM_PROCID", "")
    monkeypatch.delenv("SLURM_PROCID")
    monkeypatch.setenv("MASTER_PORT", free_port())
    asked = ("doctor", "--cluster", "--timeout", "1")
    assert "no variable SLURM_PROCID" in call(*asked).message
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("MASTER_PORT", free_port())
    assert "ranks 1-2 of 3 did not answer within 1 s" in call(*asked).message
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("MASTER_PORT", free_port())
    message = call(*asked).message
    assert f"rank 0 at 127.0.0.1:{os.environ['MASTER_PORT']}" in message


def test_alone_it_is_one_rank(write: Write, tmp_path: Path) -> None:
    argv = ["--config", write(), "--trainer.default_root_dir", tmp_path / "run"]
    done = call("doctor", "--cluster", *argv, "--ckpt_path", "last")
    assert done.code == 0, done.err
    assert "1 rank(s) on 1 host(s) agree" in done.out
    assert str(tmp_path / "run") in done.out
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").touch()
    done = call("doctor", "--cluster", *argv[:2], "--run_dir", tmp_path / "file" / "run")
    assert "cannot be written" in done.message
    done = call("doctor", "--cluster", "--data", "esc50", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in done.message
