"""Runs that a release left inside their second epoch, kept small, and what became of them there.

    python tests/regression/old_runs.py RELEASE      keep those of the code that stands here

A file of `runs/RELEASE` holds a run's config and its last checkpoint. Large tensors are kept by
shape alone and filled from a wave, so that a file has a few kilobytes; what the release then said
of the scores, and what it logged when it trained the run to its end, stands beside it.
"""

import argparse
import io
import json
import lzma
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "integration"), str(TESTS.parent)]

import torch  # noqa: E402
import yaml  # noqa: E402
from drive import call, changed, metrics  # noqa: E402
from torch import Tensor  # noqa: E402

from peas.data.synthetic import write_sounds  # noqa: E402

RUNS = Path(__file__).parent / "runs"
LARGE = 256
"""Elements from which on a tensor is kept by its shape alone."""
WAVE = "wave"


def wave(shape: tuple[int, ...], phase: int, *, squared: bool) -> Tensor:
    """Values that every machine makes alike, as large as weights are."""
    count = torch.Size(shape).numel()
    values = torch.sin(torch.arange(count, dtype=torch.float64) * 0.7391 + phase) * 0.05
    return (values.square() if squared else values).float().view(shape)


def thinned(value: Any, name: str = "") -> Any:
    """A checkpoint without its large tensors."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.numel() >= LARGE:
        squared = name == "exp_avg_sq"
        return {WAVE: [list(value.shape), sum(map(ord, name)) % 97, squared]}
    if isinstance(value, dict):
        return {key: thinned(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(thinned(item, name) for item in value)
    return value


def filled(value: Any) -> Any:
    """The checkpoint again, with waves for the large tensors."""
    if isinstance(value, dict) and list(value) == [WAVE]:
        shape, phase, squared = value[WAVE]
        return wave(tuple(shape), phase, squared=squared)
    if isinstance(value, dict):
        return {key: filled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(filled(item) for item in value)
    return value


def keep(run: dict[str, Any], file: Path) -> None:
    """Writes a run: its config, thinned checkpoint and figures."""
    content = io.BytesIO()
    torch.save(run, content)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(lzma.compress(content.getvalue(), preset=9))


def kept(file: Path) -> dict[str, Any]:
    """A run: `config`, `checkpoint` and the `figures` that the release found."""
    content = io.BytesIO(lzma.decompress(file.read_bytes()))
    run: dict[str, Any] = torch.load(content, weights_only=True)
    return run | {"checkpoint": filled(run["checkpoint"])}


def sounds(folder: Path) -> Path:
    """The clips that all of them were trained on."""
    return write_sounds(folder, classes=3, clips_per_class=10, seconds=0.64)


def figures(run: dict[str, Any], clips: Path, work: Path) -> dict[str, float]:
    """What the code that stands here makes of a run: validation as it is, and the run's end.

    Args:
        run: From `kept`.
        clips: From `sounds`.
        work: Empty folder.
    """
    config = changed(run["config"], {"data.init_args.root": str(clips)})
    path, checkpoint = work / "config.yaml", work / "old.ckpt"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    torch.save(run["checkpoint"], checkpoint)
    found: dict[str, float] = {}
    for verb in ("validate", "fit"):
        folder = work / verb
        argv = (verb, "--config", path, "--trainer.default_root_dir", folder)
        done = call(*argv, "--ckpt_path", checkpoint)
        assert done.code == 0, done.err
        (log,) = folder.glob("logs/version_*/metrics.csv")
        rows = [
            {key: float(value) for key, value in row.items() if "/" in key or key == "loss"}
            for row in metrics(log)
        ]
        for row in rows:
            found |= {f"{verb} {key}": value for key, value in row.items() if "per_s" not in key}
    return found


def make(release: str) -> None:
    """Keeps the runs of the code that stands here."""
    from forks import Forks
    from record import runs, stopped
    from test_ddp import _maps

    with tempfile.TemporaryDirectory() as scratch, Forks() as forks:
        work = Path(scratch)
        clips = sounds(work / "sounds")
        configs = runs(clips, _maps(clips, work), work)
        for name in ("ssast", "audiomae", "supmam", "peas", "peas_mae"):
            folder, path = work / name, work / f"{name}.yaml"
            path.write_text(yaml.safe_dump(configs[name]))
            stopped(forks, path, folder)
            last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
            run = {"config": configs[name], "checkpoint": thinned(last)}
            whole = run | {"checkpoint": filled(run["checkpoint"])}
            (work / f"again_{name}").mkdir()
            run["figures"] = figures(whole, clips, work / f"again_{name}")
            file = RUNS / release / f"{name}.pt.xz"
            keep(run, file)
            print(file.name, file.stat().st_size, json.dumps(run["figures"], indent=1))
            if name == "audiomae":
                # `peas_mae` starts from its weights.
                forks.fit(path, folder, 1, "fit", "--ckpt_path", "last")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("release")
    os.environ["OMP_NUM_THREADS"] = "1"
    make(parser.parse_args().release)
