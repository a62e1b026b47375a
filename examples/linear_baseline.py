"""A linear model on statistics of the log-mel: what a data set gives away without any learning.

For each clip the mean and the standard deviation of each of the 128 log-mel bands
(`peas.audio.frontend`: 16 kHz, natural logarithms, not normalised) over its frames: those
inside the clip, up to
`--frames`, without digital silence. The 256 numbers are standardised by the training clips and
classified by multinomial logistic regression (scikit-learn's, L2 with C = `--c`, lbfgs, at most
5,000 iterations; for multi-label sets one regression a class, scored by macro mAP). It knows
nothing of the order of sounds in time.

Needs scikit-learn, which `pip install 'peas[dev]'` installs. SET and its options are those of
`peas data stats SET ROOT`.

Commands:

    python examples/linear_baseline.py folder FSDD --csv fsdd.csv                 # its splits
    python examples/linear_baseline.py folder FSDD --csv fsdd.csv --folds 1-6     # leave one out
    python examples/linear_baseline.py esc50 ESC-50 --folds 1-5
    python examples/linear_baseline.py audioset MIXTURES --subset as20k \
        --class_labels class_labels_indices.csv
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from peas.audio.frontend import KaldiLogMel
from peas.cli.data.sets import DataSet
from peas.cli.kfold import numbers
from peas.cli.parser import call
from peas.errors import PeasError

if TYPE_CHECKING:
    from peas.data.clips import ClipTable
    from peas.data.module import ClipDataModule

Features = NDArray[np.float64]
BATCH = 16
"""Clips that go through the front end together."""


def features(table: ClipTable, frames: int) -> Features:
    """Band statistics of some clips, `[N, 2 F]`: means of the bands, then deviations.

    Args:
        table: The clips.
        frames: Frames that count, from the clip's start.
    """
    # Raw values: mean 0 and twice the deviation 1.
    front_end = KaldiLogMel(frames=frames, mean=0.0, std=0.5)
    rows = []
    for first in range(0, len(table), BATCH):
        waveforms = [table.sounds.load(row) for row in range(first, min(first + BATCH, len(table)))]
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        spectrogram = front_end(pad_sequence(waveforms, batch_first=True), lengths)
        for log_mel, valid in zip(spectrogram.log_mel, spectrogram.valid, strict=True):
            # A clip without sound has no frame to take statistics of.
            inside = log_mel[valid].double() if valid.any() else torch.zeros(1, log_mel.shape[1])
            spread = inside.std(dim=0, correction=0)
            rows.append(torch.cat([inside.mean(dim=0), spread]).numpy())
    return np.stack(rows)


def score(module: ClipDataModule, known: dict[str, Features], c: float) -> float:
    """Trains on a data set's training clips and scores its test clips.

    Args:
        module: The data set.
        known: Features by clip id, filled with what is not there yet.
        c: Inverse strength of the L2 term.

    Returns:
        Accuracy, or mAP over the classes with test clips where clips have several classes.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import average_precision_score
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        sys.exit("this example needs scikit-learn: pip install scikit-learn")
    parts: list[tuple[Features, NDArray[Any]]] = []
    for split in ("train", "test"):
        table = module.clips(split)
        new = np.flatnonzero([name not in known for name in table.ids])
        if len(new):
            found = features(table.take(new), module.frames)
            known.update(zip(table.ids.take(new), found, strict=True))
        target = table.targets.classes
        if module.multi_label:
            target = np.zeros((len(table), len(module.labels)), dtype=np.int32)
            target[np.repeat(np.arange(len(table)), table.targets.sizes), table.targets.classes] = 1
        parts.append((np.stack([known[name] for name in table.ids]), target))
    (train, train_target), (test, test_target) = parts
    regression = LogisticRegression(C=c, max_iter=5000)
    if not module.multi_label:
        model = make_pipeline(StandardScaler(), regression).fit(train, train_target)
        return float((model.predict(test) == test_target).mean())
    model = make_pipeline(StandardScaler(), OneVsRestClassifier(regression))
    model.fit(train, train_target)
    there = test_target.any(axis=0)
    scores = model.predict_proba(test)[:, there]
    return float(average_precision_score(test_target[:, there], scores, average="macro"))


def linear_baseline(data_set: DataSet, *, folds: str | None = None, c: float = 1.0) -> None:
    """Scores a linear model on band statistics: a row for each fold, and their mean.

    Args:
        data_set: The set.
        folds: Such as 1-6.
        c: Inverse strength of L2.
    """
    numbered: list[int | None] = [None]
    if folds is not None:
        numbered = [*numbers(folds, "--folds")]
    known: dict[str, Features] = {}
    results = []
    print("| test | training clips | test clips | score |\n|---|---|---|---|")
    module = data_set.module
    for fold in numbered:
        if fold is not None:
            module = data_set.changed(fold=fold)
        results.append(score(module, known, c))
        sizes = [len(module.clips(split)) for split in ("train", "test")]
        name = "split" if fold is None else f"fold {fold}"
        print(f"| {name} | {sizes[0]} | {sizes[1]} | {results[-1]:.1%} |", flush=True)
    metric = "mAP" if module.multi_label else "accuracy"
    print(f"| mean {metric} | | | {np.mean(results):.1%} |")


def main(argv: list[str]) -> None:
    """Runs the script.

    Args:
        argv: The command line after the script's name.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return
    call("linear", linear_baseline, argv)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PeasError as error:
        sys.exit(str(error))
