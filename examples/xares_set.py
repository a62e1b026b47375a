"""Scores a set in ESC-50's layout by X-ARES's own kNN and MLP, on embeddings that peas makes.

X-ARES downloads its sets and decodes them by torchcodec and FFmpeg. This script needs neither: it
writes what X-ARES's stage 2 reads, with the set's own folds. DIR then holds

    peas_encoder.py             the encoder, for X-ARES
    NAME_task.py                the task
    env/NAME/embeddings/CLASS   a tar of embeddings [T, D] and classes for each fold
    NAME.npz                    ids, folds, classes and each clip's mean over time, for other tools

Commands:

    python examples/xares_set.py ESC-50 DIR --checkpoint runs/mine --esc10 --name esc10
    cd DIR && python -m xares.run peas_encoder.py esc10_task.py --from-stage 2 --max-jobs 0
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peas.suites.xares import PeasEncoder, encoder

BATCH = 16
ENCODER = """from peas.suites.xares import encoder


def SetEncoder():
    return encoder({path!r}, layer={layer!r}, bands={bands!r})
"""
TASK = """from xares.task import TaskConfig


def {name}_config(encoder):
    config = TaskConfig(
        encoder=encoder,
        name={name!r},
        k_fold_splits={folds!r},
        output_dim={classes},
        eval_weight={clips},
        label_processor=lambda label: label["label"],
    )
    config.encoded_tar_name_of_split = {{
        fold: f"wds-encoded-fold-{{fold}}-*.tar" for fold in config.k_fold_splits
    }}
    return config
"""


def rows_of(root: Path, esc10: bool) -> list[dict[str, str]]:
    """Rows of the set's list, in its order."""
    with (root / "meta" / "esc50.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if row["esc10"] == "True" or not esc10]


def embeddings(model: PeasEncoder, files: Sequence[Path]) -> Iterator[NDArray[np.float32]]:
    """`[T, D]` of each file, without padding."""
    for start in range(0, len(files), BATCH):
        found, times = model.model.frames(
            files[start : start + BATCH], layers=model.layer, bands=model.bands
        )
        for clip, time in zip(found, times, strict=True):
            yield clip[time.isfinite()].numpy()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file to a tar."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def write(root: Path, out: Path, model: PeasEncoder, name: str, esc10: bool) -> None:
    """Writes embeddings and the task."""
    rows = rows_of(root, esc10)
    labels = sorted({row["category"] for row in rows})
    classes = [labels.index(row["category"]) for row in rows]
    folds = [int(row["fold"]) for row in rows]
    folder = out / "env" / name / "embeddings" / type(model).__name__
    folder.mkdir(parents=True, exist_ok=True)
    means = []
    files = [root / "audio" / row["filename"] for row in rows]
    with ExitStack() as stack:
        tars = {
            fold: stack.enter_context(
                tarfile.open(folder / f"wds-encoded-fold-{fold}-000000.tar", "w")
            )
            for fold in sorted(set(folds))
        }
        for number, frames in enumerate(embeddings(model, files)):
            key, tar = files[number].stem.replace(".", "_"), tars[folds[number]]
            array = io.BytesIO()
            np.save(array, frames)
            add(tar, f"{key}.npy", array.getvalue())
            add(tar, f"{key}.json", json.dumps({"label": classes[number]}).encode())
            means.append(frames.mean(axis=0, dtype=np.float64).astype(np.float32))
    task = TASK.format(name=name, folds=list(tars), classes=len(labels), clips=len(rows))
    (out / f"{name}_task.py").write_text(task, encoding="utf-8")
    np.savez(
        out / f"{name}.npz",
        ids=[file.stem for file in files],
        folds=folds,
        classes=classes,
        labels=labels,
        embeddings=np.stack(means),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Writes DIR and prints the command for X-ARES."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder of ESC-50, or of a set in its layout")
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--checkpoint", required=True, help="whatever `peas.load` takes")
    parser.add_argument("--name", default="own_set", help="of the task; an identifier in Python")
    parser.add_argument("--esc10", action="store_true", help="only the clips of ESC-10")
    parser.add_argument("--layer", type=int, help="layer of the embeddings; default: the output")
    parser.add_argument("--bands", choices=["concat", "mean"], default="concat")
    options = parser.parse_args(argv)
    if not options.name.isidentifier():
        parser.error(f"--name {options.name}: give letters, digits and _")
    checkpoint = options.checkpoint
    if Path(checkpoint).exists():
        # X-ARES is run in DIR.
        checkpoint = str(Path(checkpoint).resolve())
    settings = {"layer": options.layer, "bands": options.bands}
    write(options.root, options.out, encoder(checkpoint, **settings), options.name, options.esc10)
    source = ENCODER.format(path=checkpoint, **settings)
    (options.out / "peas_encoder.py").write_text(source, encoding="utf-8")
    print(
        f"cd {options.out} && python -m xares.run peas_encoder.py {options.name}_task.py "
        "--from-stage 2 --max-jobs 0"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
