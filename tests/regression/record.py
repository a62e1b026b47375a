"""Checksums of the final weights, and all logged numbers, of small runs of every kind.

    python tests/regression/record.py OUT.json            record
    python tests/regression/record.py OUT.json --against OLD.json

Recorded before a change and after it on one machine, it tells whether the change left every bit
as it was. Numbers of one machine mean nothing on another, so none are kept here.
"""

import argparse
import csv
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "integration"), str(TESTS.parent)]

import torch  # noqa: E402
import yaml  # noqa: E402
from drive import BASE, changed, part  # noqa: E402
from forks import Call, Forks  # noqa: E402
from test_ddp import SYSTEMS, _maps  # noqa: E402

from peas.data.synthetic import write_sounds  # noqa: E402

IGNORED = ("seconds", "per_s", "gpu", "memory")
"""Parts of the names of logged numbers that a clock or a machine decides."""


def masks(name: str, **settings: Any) -> dict[str, Any]:
    """`masking` with a strategy."""
    return {"class_path": f"peas.callbacks.{name}", "init_args": settings}


BLOCKS = {"n_time": 1, "n_freq": 1, "max_time": 16, "max_freq": 24}
MAE_FINETUNE = {
    "model.init_args.encoder": part("models.AudioMAE", size="mini", drop_path=0.1),
    "model.init_args.recipe": part(
        "recipes.AudioMAERecipe",
        lr=5.0e-4,
        base_batch_size=None,
        layer_decay=0.75,
        weight_decay=5e-7,
        betas=[0.9, 0.95],
        warmup_epochs=1.0,
    ),
}


def runs(clips: Path, cache: Path, work: Path) -> dict[str, dict[str, Any]]:
    """Config of each run, by its name."""
    data = {"data.init_args.root": str(clips), "data.init_args.batch_size": 6}
    base = changed(BASE, {**data, "trainer.log_every_n_steps": 1})
    pretraining = changed(base, {"masking": None, "data.init_args.mixup": 0.0})
    found: dict[str, dict[str, Any]] = {}
    for name in ("ssast", "audiomae", "mam_teacher", "supmam", "supmam_cache"):
        found[name] = changed(pretraining, {"model": dict(SYSTEMS[name])})
    parts = found["supmam_cache"]["model"]["init_args"]["objectives"]
    parts["distillation"]["init_args"]["targets"] = str(cache)
    found["conventional"] = changed(
        base, {"masking": masks("SpecAugment", max_time=16, max_freq=24)}
    )
    found["random"] = changed(base, {"masking": masks("RandomMasking", **BLOCKS)})
    found["peas"] = base
    weights = {"model.init_args.pretrained": str(work / "audiomae/checkpoints/last.ckpt")}
    found["peas_mae"] = changed(base, {**MAE_FINETUNE, **weights})
    found["probe"] = changed(base, {"model.init_args.reconstruction": "probe"})
    found["frozen"] = changed(base, {"model.init_args.freeze": "encoder", "masking": None})
    found["mixup_noise"] = changed(
        base, {"data.init_args.mixup": 0.6, "model.init_args.augmentation.roll_gain": "official"}
    )
    found["two_processes"] = changed(
        base,
        {"data.init_args.batch_size": 3, "trainer.devices": 2, "trainer.strategy": "ddp"},
    )
    found["two_processes"]["trainer"]["use_distributed_sampler"] = False
    found["resumed"] = base
    return found


def digest(tensors: Any) -> str:
    """Checksum of nested tensors and numbers."""
    total = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
            total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            total.update(flat.numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                add(f"{name}.{key}", value[key])
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                add(f"{name}.{number}", item)

    add("", tensors)
    return total.hexdigest()[:16]


def logged(folder: Path) -> dict[str, float]:
    """Every number of a run's logs by its name and step."""
    found: dict[str, float] = {}
    for log in sorted(folder.glob("logs/version_*/metrics.csv")):
        with log.open(newline="") as file:
            for row in csv.DictReader(file):
                for key, value in row.items():
                    if value and not any(part in key for part in IGNORED):
                        found[f"{key}@{row.get('epoch')}/{row.get('step')}"] = float(value)
    return found


def record(out: Path) -> None:
    """Trains all and writes what came of them."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, Forks() as forks:
        work = Path(scratch)
        clips = write_sounds(work / "sounds", classes=3, clips_per_class=10, seconds=0.64)
        for name, config in runs(clips, _maps(clips, work), work).items():
            folder, path = work / name, work / f"{name}.yaml"
            path.write_text(yaml.safe_dump(config, sort_keys=False))
            if name == "resumed":
                stopped(forks, path, folder)
            world = config["trainer"].get("devices", 1)
            forks.fit(path, folder, world, "fit", "--ckpt_path", "last")
            last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
            found[name] = {
                "weights": digest(last["state_dict"]),
                "optimizer": digest(last["optimizer_states"]),
                "logged": logged(folder),
            }
            print(name, found[name]["weights"], len(found[name]["logged"]), flush=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


def stopped(forks: Forks, config: Path, folder: Path) -> None:
    """Starts a run that a signal ends inside its second epoch."""
    text = yaml.safe_load(config.read_text())
    stop = {
        "class_path": "cli_recorder.Signaller",
        "init_args": {"name": "SIGTERM", "at": [1, 1]},
    }
    text["trainer"]["callbacks"] = [*text["trainer"]["callbacks"], stop]
    once = config.with_suffix(".stopped.yaml")
    once.write_text(yaml.safe_dump(text, sort_keys=False))
    argv = ["fit", "--config", str(once), "--trainer.default_root_dir", str(folder)]
    call = Call(argv, folder.with_suffix(".log"))
    codes = forks.run(call)
    assert codes == [143], call.log.read_text()


def compare(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Prints a line a run; returns whether all are equal."""
    equal = True
    for name in sorted({*new, *old}):
        a, b = new.get(name), old.get(name)
        if a is None or b is None:
            print(f"{name}: only in the {'old' if a is None else 'new'} record")
            equal = False
            continue
        numbers = {key for key in a["logged"].keys() & b["logged"].keys()}
        largest = max((abs(a["logged"][key] - b["logged"][key]) for key in numbers), default=0.0)
        same = [key for key in ("weights", "optimizer") if a[key] == b[key]]
        odd = sorted(a["logged"].keys() ^ b["logged"].keys())
        print(
            f"{name}: equal {', '.join(same) or 'nothing'}; {len(numbers)} numbers, largest "
            f"difference {largest:.3g}; in one record only: {len(odd)} {odd[:2]}"
        )
        equal &= len(same) == 2 and largest == 0
    return equal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    record(args.out)
    if args.against is None:
        return 0
    return not compare(json.loads(args.out.read_text()), json.loads(args.against.read_text()))


if __name__ == "__main__":
    sys.exit(main())
