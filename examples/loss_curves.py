"""Error of pretraining runs beside that of their constant baselines, epoch by epoch, as a plot.

Each panel is one objective: the share of the baseline's error that is left, on the clips
held out. 1 is no better than a constant. Several runs of one name have one colour.

Commands:

    python examples/loss_curves.py AudioMAE=RUN SupMAM=RUN --out curves.png
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from peas.errors import DataError

PANELS = {
    "masked patches reconstructed": ("val/valid_mse", "val/baseline_mse"),
    "teacher's features": ("val/feature_mse", "val/baseline_feature_mse"),
    "classes": ("val/classification", "val/baseline_classification"),
}


def read_run(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Share of the baseline error that is left, `[(epoch, share)]` of each panel of a run.

    Args:
        run: Folder of a run, with `logs/version_*/metrics.csv`.

    Raises:
        DataError: The run has no metrics of pretraining.
    """
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for file in sorted(run.glob("logs/version_*/metrics.csv")):
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                for panel, (error, baseline) in PANELS.items():
                    if row.get(error) and row.get(baseline):
                        share = float(row[error]) / float(row[baseline])
                        found[panel].append((int(row["epoch"]) + 1, share))
    if not found:
        raise DataError(
            f"{run}: holds no logs/version_*/metrics.csv with figures of pretraining; give the "
            "folder of a run (`--trainer.default_root_dir`)"
        )
    return found


def draw(runs: list[tuple[str, Path]], out: Path) -> None:
    """Plot all runs in one figure."""
    read = [(name, read_run(folder)) for name, folder in runs]
    panels = [panel for panel in PANELS if any(panel in found for _, found in read)]
    names = list(dict.fromkeys(name for name, _ in read))
    colours = {name: f"C{index}" for index, name in enumerate(names)}
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.6), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        told: set[str] = set()
        for name, found in read:
            if panel not in found:
                continue
            epochs, shares = zip(*found[panel], strict=True)
            label = None if name in told else name
            axis.plot(epochs, shares, color=colours[name], label=label, marker=".", linewidth=1.2)
            told.add(name)
        axis.axhline(1.0, color="0.4", linestyle="--", linewidth=0.8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(title=panel, xlabel="epoch", ylabel="error / baseline error")
        axis.legend(fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("runs", nargs="+", metavar="NAME=RUN")
    p.add_argument("--out", type=Path, required=True)
    options = p.parse_args(argv)
    pairs = [text.split("=", 1) for text in options.runs]
    if any(len(pair) != 2 for pair in pairs):
        p.error("give each run as NAME=FOLDER")
    draw([(name, Path(folder)) for name, folder in pairs], options.out)
    print(options.out)


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"error: {error}")
