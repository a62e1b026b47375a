"""Sounds that the package makes itself, in the layout of ESC-50: for the demo and tests."""

import csv
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from numpy.typing import NDArray

from peas.data.esc50 import ESC50
from peas.errors import ConfigError, DataError

Sound = NDArray[np.float64]
RECIPE = "recipe.json"


def _column(rng: np.random.Generator, low: float, high: float, clips: int) -> Sound:
    """A random number for each clip, uniform in its logarithm, as pitch and tempo. `[n, 1]`."""
    values: Sound = np.exp(rng.uniform(math.log(low), math.log(high), (clips, 1)))
    return values


def _phase(frequency: Sound, time: Sound) -> Sound:
    """Phase in radians of a frequency that changes over time, both `[n, S]`."""
    phase: Sound = 2 * np.pi * np.cumsum(frequency, axis=1) * (time[0, 1] - time[0, 0])
    return phase


def _tone(rng: np.random.Generator, time: Sound, clips: int) -> Sound:
    sound: Sound = np.sin(2 * np.pi * _column(rng, 350, 900, clips) * time)
    return sound


def _up_chirp(rng: np.random.Generator, time: Sound, clips: int) -> Sound:
    low, octaves = _column(rng, 300, 700, clips), _column(rng, 1.2, 2.2, clips)
    tempo = _column(rng, 1.0, 2.5, clips)
    sound: Sound = np.sin(_phase(low * 2 ** (octaves * ((time * tempo) % 1.0)), time))
    return sound


def _down_chirp(rng: np.random.Generator, time: Sound, clips: int) -> Sound:
    # A rising chirp played backwards falls.
    return _up_chirp(rng, time, clips)[:, ::-1]


def _clicks(rng: np.random.Generator, time: Sound, clips: int) -> Sound:
    since = time % (1 / _column(rng, 3, 12, clips))
    sound: Sound = np.exp(-since / 0.003) * rng.standard_normal(since.shape)
    return sound


def _pulsing_noise(rng: np.random.Generator, time: Sound, clips: int) -> Sound:
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * _column(rng, 2, 9, clips) * time)
    sound: Sound = swell * rng.standard_normal(swell.shape)
    return sound


def _harmonics(rng: np.random.Generator, time: Sound, clips: int) -> Sound:
    pitch = _column(rng, 110, 300, clips)
    return sum(
        (np.sin(2 * np.pi * order * pitch * time) / order for order in range(1, 13)),
        start=np.zeros((clips, time.shape[1])),
    )


def _knocks(rng: np.random.Generator, time: Sound, clips: int) -> Sound:
    since = time % (1 / _column(rng, 1.5, 5, clips))
    sound: Sound = np.exp(-since / 0.04) * np.sin(2 * np.pi * _column(rng, 80, 200, clips) * since)
    return sound


def _warble(rng: np.random.Generator, time: Sound, clips: int) -> Sound:
    depth, tempo = _column(rng, 0.1, 0.3, clips), _column(rng, 3, 9, clips)
    swing = 1 + depth * np.sin(2 * np.pi * tempo * time)
    sound: Sound = np.sin(_phase(_column(rng, 900, 2500, clips) * swing, time))
    return sound


SOUNDS: dict[str, Callable[[np.random.Generator, Sound, int], Sound]] = {
    "tone": _tone,
    "up_chirp": _up_chirp,
    "down_chirp": _down_chirp,
    "clicks": _clicks,
    "pulsing_noise": _pulsing_noise,
    "harmonics": _harmonics,
    "knocks": _knocks,
    "warble": _warble,
}


def make_sounds(name: str, clips: int, samples: int, rate: int, seed: int) -> Sound:
    """Sounds of one class, each with its own pitch, level, onset, length and background noise.

    Args:
        name: Key of `SOUNDS`.
        clips: How many.
        samples: Length of each.
        rate: Sampling rate in Hz.
        seed: Seed of the random numbers.

    Returns:
        `[n, S]` with peaks at or below 0.9.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    time = np.arange(samples)[None] / rate
    sound = SOUNDS[name](rng, time, clips)
    sound = sound / np.abs(sound).max(axis=1, keepdims=True)
    seconds = samples / rate
    onset = rng.uniform(0, 0.3, (clips, 1)) * seconds
    end = onset + rng.uniform(0.5, 1.0, (clips, 1)) * seconds
    # Ramps of 10 ms, since an abrupt edge is a click of its own.
    gate = np.clip(np.minimum(time - onset, end - time) / 0.01, 0, 1)
    # From clear to noisy, so that the task is not solved completely.
    noise = rng.standard_normal(sound.shape) * _column(rng, 0.003, 0.1, clips)
    mixture = sound * gate + noise
    level = _column(rng, 0.2, 0.9, clips)
    scaled: Sound = level * mixture / np.abs(mixture).max(axis=1, keepdims=True)
    return scaled


def write_sounds(
    root: str | Path,
    *,
    classes: int = 8,
    clips_per_class: int = 40,
    folds: int = 5,
    seconds: float = 1.28,
    rate: int = 16_000,
    seed: int = 0,
) -> Path:
    """Make sounds and write them in ESC-50's layout, all or nothing.

    Args:
        root: Folder to make; it must not exist, or be empty.
        classes: Number of classes, 1 to 8.
        clips_per_class: Clips of each class, spread over the folds.
        folds: Number of folds, 1 to 5.
        seconds: Length of each clip.
        rate: Sampling rate in Hz.
        seed: Seed; the same arguments give the same samples.

    Returns:
        The folder.

    Raises:
        ConfigError: An argument is out of its range.
        DataError: The folder holds something else.
    """
    if not 1 <= classes <= len(SOUNDS):
        raise ConfigError(f"classes is {classes}: 1 to {len(SOUNDS)} kinds of sound can be made")
    if not 1 <= folds <= 5:
        raise ConfigError(f"folds is {folds}: give 1 to 5")
    if clips_per_class < folds:
        raise ConfigError(
            f"clips_per_class is {clips_per_class}: give one a fold or more ({folds})"
        )
    if seconds * rate < 2:
        raise ConfigError(f"seconds is {seconds}: give a longer time")
    root = Path(root).expanduser()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root} is not empty: name another folder for the sounds to be made")
    root.parent.mkdir(parents=True, exist_ok=True)
    recipe = {
        "classes": classes,
        "clips_per_class": clips_per_class,
        "folds": folds,
        "seconds": seconds,
        "rate": rate,
        "seed": seed,
    }
    draft = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    try:
        _write(draft, classes, clips_per_class, folds, round(seconds * rate), rate, seed)
        (draft / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        draft.chmod(0o755)
        try:
            os.replace(draft, root)
        except OSError:
            # Another process may have put the same sounds there meanwhile.
            if not (root / RECIPE).is_file():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def _write(
    folder: Path, classes: int, clips: int, folds: int, samples: int, rate: int, seed: int
) -> None:
    (folder / "audio").mkdir()
    (folder / "meta").mkdir()
    rows = []
    for target, name in enumerate(list(SOUNDS)[:classes]):
        for clip, sound in enumerate(make_sounds(name, clips, samples, rate, seed)):
            fold, source = clip % folds + 1, 100_000 + target * clips + clip
            file = f"{fold}-{source}-A-{target}.wav"
            soundfile.write(folder / "audio" / file, sound, rate, subtype="PCM_16")
            rows.append((file, fold, target, name, False, source, "A"))
    with (folder / "meta" / "esc50.csv").open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(("filename", "fold", "target", "category", "esc10", "src_file", "take"))
        writer.writerows(sorted(rows))


class SyntheticSounds(ESC50):
    """Sounds of up to eight kinds that are made under the root when they are not there.

    For trying things out without a download; a result on them says nothing about real sound.
    Statistics are those of the default sounds (training clips of fold 1).

    Args:
        root: Folder of the data set; made when missing.
        fold: Fold that is tested, 1 to 5.
        split: `official` trains on the other four folds and validates and tests on this one;
            `3/1/1` validates on the next fold (after 5 comes 1) and trains on the other three.
        batch_size: Training clips of a batch, for each process.
        classes: Number of classes, 1 to 8.
        clips_per_class: Clips of each class, spread over five folds.
        seconds: Length of each clip.
        seed: Seed of the sounds.
        mean: Mean of the log-mel.
        std: Standard deviation of the log-mel.
        frames: Frames of the model's input, 10 ms each.
        **common: Further arguments of `ClipDataModule`.

    Raises:
        ConfigError: An argument is out of its range.
    """

    advice = "the sounds are made there by prepare_data() (data.init_args.root is {root})"

    archive = "synthetic"

    def __init__(
        self,
        root: str,
        *,
        fold: int = 1,
        split: Literal["official", "3/1/1"] = "official",
        batch_size: int = 16,
        classes: int = 8,
        clips_per_class: int = 40,
        seconds: float = 1.28,
        seed: int = 0,
        mean: float = -5.2411,
        std: float = 4.1377,
        frames: int = 128,
        **common: Any,
    ) -> None:
        super().__init__(
            root,
            fold=fold,
            split=split,
            batch_size=batch_size,
            mean=mean,
            std=std,
            frames=frames,
            **common,
        )
        self.recipe: dict[str, Any] = {
            "classes": classes,
            "clips_per_class": clips_per_class,
            "seconds": seconds,
            "seed": seed,
        }

    def prepare_data(self) -> None:
        """Make the sounds when they are not there.

        Raises:
            DataError: The folder holds something else, or sounds made with other settings.
        """
        recipe_file = self.root / RECIPE
        if not recipe_file.is_file():
            write_sounds(self.root, **self.recipe)
            return
        recipe = json.loads(recipe_file.read_text(encoding="utf-8"))
        for name, value in self.recipe.items():
            if recipe.get(name) != value:
                raise DataError(
                    f"the sounds in {self.root} were made with {name} {recipe.get(name)}, but "
                    f"data.init_args.{name} is {value}: remove the folder or name another one"
                )
