"""Makes a multi-label set in AudioSet's layout from real clips of ESC-10 (or ESC-50).

Each mixture is two clips of one fold, of different classes and different source recordings (the
Freesound id in the file name). Both are brought to the same loudness (root mean square where there
is sound), then apart by a difference uniform in -5 to 5 dB, added from their starts, and
scaled to a peak of 0.9. All random numbers follow from `--seed`. One fold is the evaluation set
and the others are for training, so no recording is in both. DIR then holds

    audio/<id>.flac                 mono, 16 kHz
    balanced_train_segments.csv     lists in AudioSet's form, read with `subset: as20k`
    eval_segments.csv
    class_labels_indices.csv        the classes' numbers, ids and names
    mixtures.csv                    of which clips, at which difference each one is

The licence of the clips is that of the mixtures: CC BY 3.0 for ESC-10, CC BY-NC 3.0 for ESC-50.

Commands:

    python examples/esc10_mixtures.py ESC-50 DIR
    peas data verify audioset DIR --subset as20k --class_labels class_labels_indices.csv
    peas fit --config configs/examples/esc10_mixtures_tiny.yaml --data.init_args.root DIR
"""

from __future__ import annotations

import argparse
import csv
import sys
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from peas.data.clips import Inventory
from peas.data.esc50 import ESC50
from peas.data.module import RATE
from peas.errors import PeasError
from peas.training.randomness import stable_hash

LOUDER = 5.0
"""Largest difference of the two clips' loudness in dB."""
PEAK = 0.9
SECONDS = 5.0
"""Mixtures are cut here; ESC's clips are not longer."""


class Mixture(NamedTuple):
    """A mixture to be made.

    Attributes:
        name: Eleven characters, as YouTube's ids have.
        fold: Number of its fold.
        first: Row of one clip in the inventory's table.
        second: Row of the other.
        gain: Loudness of the first above the second, in dB.
    """

    name: str
    fold: int
    first: int
    second: int
    gain: float


def draw(inventory: Inventory, per_fold: int, seed: int) -> list[Mixture]:
    """Mixtures of every fold; a pair of clips is mixed once at most.

    Args:
        inventory: The clips, by fold.
        per_fold: Mixtures of a fold.
        seed: Of all random numbers.
    """
    table = inventory.table
    classes = table.targets.classes
    # A clip whose name tells no recording is one of its own.
    known = inventory.recordings or [""] * len(table)
    origins = np.array([known[row] or table.ids[row] for row in range(len(table))])
    mixtures = []
    for part, name in enumerate(inventory.parts):
        rows = np.flatnonzero(inventory.part == part)
        first, second = (rows[places] for places in np.triu_indices(len(rows), 1))
        apart = (classes[first] != classes[second]) & (origins[first] != origins[second])
        pairs = np.stack([first[apart], second[apart]], axis=1)
        if len(pairs) < per_fold:
            sys.exit(f"{name} allows {len(pairs)} mixtures: give --per-fold {len(pairs)} or less")
        source = np.random.default_rng(stable_hash(seed, "mixtures", name))
        fold = int(name.split()[-1])
        for number, place in enumerate(source.permutation(len(pairs))[:per_fold]):
            # Either clip may be the louder one.
            gain = float(source.uniform(-LOUDER, LOUDER))
            one, other = pairs[place].tolist()
            mixtures.append(Mixture(f"mix{fold}{number:07d}", fold, one, other, gain))
    return mixtures


def mixed(inventory: Inventory, mixture: Mixture) -> NDArray[np.float32]:
    """Waveform of a mixture, `[S]` at 16 kHz."""
    parts = []
    for row, gain in ((mixture.first, mixture.gain / 2), (mixture.second, -mixture.gain / 2)):
        waveform = inventory.table.sounds.load(row).numpy()
        # Clips are filled up to five seconds with zeros, which say nothing about their loudness.
        sound = waveform[waveform != 0]
        loudness = float(np.sqrt(np.square(sound, dtype=np.float64).mean())) if len(sound) else 1.0
        parts.append(waveform * (10 ** (gain / 20) / loudness))
    total = np.zeros(min(max(map(len, parts)), round(SECONDS * RATE)), dtype=np.float32)
    for part in parts:
        total[: len(part)] += part[: len(total)]
    return total * (PEAK / max(float(np.abs(total).max()), 1e-9))


def machine_ids(labels: list[str]) -> list[str]:
    """Ids of classes of ESC-50, in the form of AudioSet's."""
    file = resources.files("peas.data.labels") / "esc50_class_labels_indices.csv"
    with file.open(encoding="utf-8") as lines:
        known = {row["display_name"]: row["mid"] for row in csv.DictReader(lines)}
    # Classes of a set of one's own have no id yet.
    return [known.get(label, f"/m/own{number:02d}") for number, label in enumerate(labels)]


def write_lists(
    root: Path, module: ESC50, mixtures: list[Mixture], seconds: dict[str, float], tested: int
) -> None:
    """Write the lists of mixtures and classes."""
    inventory = module.inventory()
    classes = inventory.table.targets.classes
    mids = machine_ids(module.labels)
    with (root / "class_labels_indices.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["index", "mid", "display_name"])
        writer.writerows(
            (number, mid, label)
            for number, (mid, label) in enumerate(zip(mids, module.labels, strict=True))
        )
    chosen = {
        "balanced_train": [mixture for mixture in mixtures if mixture.fold != tested],
        "eval": [mixture for mixture in mixtures if mixture.fold == tested],
    }
    for part, some in chosen.items():
        lines = [
            "# Segments csv of mixtures made by examples/esc10_mixtures.py",
            f"# num_ytids={len(some)}, num_segs={len(some)}, num_unique_labels={len(mids)}, "
            f"num_positives={2 * len(some)}",
            "# YTID, start_seconds, end_seconds, positive_labels",
        ]
        for mixture in some:
            both = ",".join(mids[classes[row]] for row in (mixture.first, mixture.second))
            lines.append(f'{mixture.name}, 0.000, {seconds[mixture.name]:.3f}, "{both}"')
        (root / f"{part}_segments.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{root / part}_segments.csv: {len(some)} mixtures")
    with (root / "mixtures.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "fold", "first", "second", "gain_db"])
        for name, fold, first, second, gain in mixtures:
            ids = inventory.table.ids
            writer.writerow([name, fold, ids[first], ids[second], f"{gain:.2f}"])


def main(argv: list[str]) -> None:
    """Makes the set.

    Args:
        argv: The command line after the script's name.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", help="folder in ESC-50's layout")
    parser.add_argument("out", type=Path, help="folder of the set that is made")
    parser.add_argument("--per-fold", type=int, default=200, help="mixtures a fold (default 200)")
    parser.add_argument("--test-fold", type=int, default=5, help="fold that is tested (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default 0)")
    parser.add_argument("--format", choices=["flac", "wav"], default="flac")
    parser.add_argument("--esc50", action="store_true", help="all classes, not ESC-10's ten alone")
    options = parser.parse_args(argv)
    module = ESC50(options.root, esc10=not options.esc50, cache_dir="")
    # Says at once if a file is missing.
    module.setup("fit")
    inventory = module.inventory()
    if f"fold {options.test_fold}" not in inventory.parts:
        sys.exit(f"--test-fold is {options.test_fold}: there is {', '.join(inventory.parts)}")
    mixtures = draw(inventory, options.per_fold, options.seed)
    (options.out / "audio").mkdir(parents=True, exist_ok=True)
    seconds = {}
    for mixture in mixtures:
        waveform = mixed(inventory, mixture)
        seconds[mixture.name] = len(waveform) / RATE
        file = options.out / "audio" / f"{mixture.name}.{options.format}"
        soundfile.write(file, waveform, RATE, subtype="PCM_16")
    write_lists(options.out, module, mixtures, seconds, options.test_fold)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PeasError as error:
        sys.exit(str(error))
