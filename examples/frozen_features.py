"""What frozen encoders know of ESC-10: kNN and a linear probe over the five official folds.

Every clip is embedded once (`AudioModel.embed`: mean of the patch tokens after the encoder's last
norm, without padding), with the front end of the checkpoint and nothing trained. Then, for each
fold, on the other four:

- features are standardised by the training clips;
- kNN: the 10 nearest training clips by cosine distance, votes weighted by 1 / distance;
- linear probe: multinomial logistic regression, its C out of 0.0001 to 1 by leaving each of the
  four training folds out in turn. No choice sees the test fold.

All of that was fixed before the first result. Rows: `random`, the checkpoints' own architectures
with fresh weights; band statistics (`examples/linear_baseline.py`); the checkpoints, those of one
NAME being pretraining seeds (mean ± standard deviation over them); and with `--teacher` the
teacher's own embeddings.

A checkpoint is refused if the data set named in its RUN/config.yaml shares a recording with ESC-10,
or if its task was fine-tuning. The probes are those of `peas probe`, which scores any set that
`peas embed` embedded.

Commands:

    python examples/frozen_features.py ESC-10 ssast=runs/ssast/checkpoints/last.ckpt \
        supmam=runs/supmam_0/checkpoints/last.ckpt supmam=runs/supmam_1/checkpoints/last.ckpt \
        --teacher teacher_features/esc10.npz --out runs/frozen
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

import peas
from peas.data.clips import Inventory
from peas.data.esc50 import ESC50
from peas.errors import CheckpointError, DataError, PeasError
from peas.evaluation.probes import PROBES, ProbeSet, evaluate
from peas.inference import AudioModel
from peas.inference.leaks import require_disjoint
from peas.utils.text import some

Features = NDArray[np.float64]
FRAMES = 512
"""Frames of ESC-10's clips: 5 s and some padding."""
BATCH = 16


# --- features -------------------------------------------------------------------------------------


def open_checkpoint(path: Path, *, fresh: int | None = None) -> AudioModel:
    """The encoder of a pretraining run, for clips of five seconds.

    Args:
        path: RUN/checkpoints/last.ckpt.
        fresh: Seed of fresh weights in the place of the checkpoint's; None = the checkpoint's.

    Raises:
        CheckpointError: It is no checkpoint of a pretraining run of `peas`.
    """
    model = peas.load(path, input_frames=FRAMES)
    if model.origin.get("task") != "pretraining":
        raise CheckpointError(
            f"{path}: not a checkpoint of a pretraining run of peas: give its "
            "RUN/checkpoints/last.ckpt (a fine-tuned model may have seen the labels asked for here)"
        )
    if fresh is None:
        return model
    torch.manual_seed(fresh)
    return AudioModel(model.encoder.spec(), model.front_end.spec()).to(model.device)


def embed(model: AudioModel, inventory: Inventory) -> Features:
    """Embeddings `[N, D]` of all clips."""
    sounds = inventory.table.sounds
    rows = [
        model.embed([sounds.load(row) for row in range(first, min(first + BATCH, len(sounds)))])
        for first in range(0, len(sounds), BATCH)
    ]
    return torch.cat(rows).double().numpy()


def teacher_features(file: Path, inventory: Inventory) -> Features:
    """Embeddings `[N, D]` that a teacher made of the clips, by their names.

    Raises:
        DataError: Clips are missing in the file.
    """
    with np.load(file) as found:
        rows = {str(name): row for row, name in enumerate(found["ids"])}
        vectors: Features = found["embedding"].astype(np.float64)
    absent = [name for name in inventory.table.ids if name not in rows]
    if absent:
        raise DataError(f"{file} lacks {len(absent)} clips: {some(absent)}")
    return np.stack([vectors[rows[name]] for name in inventory.table.ids])


# --- scores ---------------------------------------------------------------------------------------


def score(features: Features, inventory: Inventory) -> dict[str, Any]:
    """Accuracies of one set of features on each fold, and the C that its training folds chose."""
    table = inventory.table
    data = ProbeSet(
        "features",
        ids=table.ids,
        embeddings=torch.from_numpy(features)[None],
        layers=[0],
        targets=functional.one_hot(torch.from_numpy(table.targets.classes.astype(np.int64))).bool(),
        multi_label=False,
        split=[inventory.parts[number] for number in inventory.part],
        clusters=list(inventory.recordings or table.ids),
    )
    knn, linear = (evaluate(PROBES[name](), [data]) for name in ("knn", "linear"))
    return {"knn": knn.by_partition, "probe": linear.by_partition, "c": linear.chosen[0]}


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a row for each kind of features, whose seeds are averaged."""
    lines = [
        "| features | seeds | kNN, % | linear probe, % | linear probe by fold |",
        "|---|---:|---:|---:|---|",
    ]
    for name, seeds in rows.items():
        columns = []
        for kind in ("knn", "probe"):
            values = [100 * statistics.mean(seed[kind]) for seed in seeds]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            columns.append(f"{statistics.mean(values):.1f}{spread}")
        folds = 100 * np.mean([seed["probe"] for seed in seeds], axis=0)
        by_fold = ", ".join(f"{value:.1f}" for value in folds)
        lines.append(f"| {name} | {len(seeds)} | {columns[0]} | {columns[1]} | {by_fold} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Prints the table.

    Args:
        argv: The command line after the script's name.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("root", help="folder of ESC-10, in ESC-50's layout")
    add("checkpoints", nargs="*", metavar="NAME=CKPT", help="one NAME several times: its seeds")
    add("--random-seeds", type=int, default=3, help="fresh encoders of each family (default 3)")
    add("--teacher", type=Path, help="npz with ids and embedding, such as a teacher's of the clips")
    add("--out", type=Path, help="folder for frozen.md and frozen.json, beside printing")
    options = parser.parse_args(argv)
    named = [
        (name, Path(path)) for name, _, path in (t.partition("=") for t in options.checkpoints)
    ]
    if any(not name or path == Path() for name, path in named):
        sys.exit(f"give checkpoints as NAME=CKPT: {' '.join(options.checkpoints)}")
    module = ESC50(options.root, esc10=True, cache_dir="")
    module.setup("fit")
    inventory = module.inventory()
    recordings = list(inventory.recordings or [])
    pretrained_on = {str(path): require_disjoint(path, recordings) for _, path in named}
    rows: dict[str, list[dict[str, Any]]] = {}

    def add_row(name: str, features: Features, origin: str) -> None:
        found = {"origin": origin, "width": features.shape[1], **score(features, inventory)}
        rows.setdefault(name, []).append(found)
        mean = {kind: f"{statistics.mean(found[kind]):.1%}" for kind in ("knn", "probe")}
        print(f"{name} ({origin}): {mean}", file=sys.stderr, flush=True)

    for _, path in named:
        row = f"random {type(open_checkpoint(path).encoder).__name__.lower()}"
        if row not in rows:
            for seed in range(options.random_seeds):
                add_row(row, embed(open_checkpoint(path, fresh=seed), inventory), f"seed {seed}")
    # A script beside this one.
    statistics_of_bands = importlib.import_module("linear_baseline").features
    add_row("band statistics", statistics_of_bands(inventory.table, FRAMES), "linear_baseline.py")
    for name, path in named:
        add_row(name, embed(open_checkpoint(path), inventory), str(path))
    if options.teacher is not None:
        vectors = teacher_features(options.teacher, inventory)
        add_row("teacher alone", vectors, str(options.teacher))
    text = table(rows)
    print(text)
    for file, said in pretrained_on.items():
        print(f"{file}: pretrained on {said}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "frozen.md").write_text(text + "\n", encoding="utf-8")
        info = {"rows": rows, "pretrained_on": pretrained_on}
        (options.out / "frozen.json").write_text(json.dumps(info, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PeasError as error:
        sys.exit(str(error))
