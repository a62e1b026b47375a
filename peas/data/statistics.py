"""Normalisation statistics: mean and standard deviation of a set's log-mel, measured and cached.

`KaldiLogMel` (`peas.audio.frontend`) applies them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from peas.audio import decode as audio
from peas.audio.frontend import LogMel
from peas.data.cache import ResampledCache, file_state
from peas.data.clips import ClipTable
from peas.data.columns import Strings
from peas.data.module import RATE
from peas.data.workers import WorkerDied, default_workers, in_order
from peas.errors import AudioError, DataError
from peas.utils.files import write_text

log = logging.getLogger(__name__)

CHUNK = 64
"""Clips that a process measures at once."""

# Samples of the clips that go through the front end together, padding included; 8 clips of 5 s.
# Larger batches are no faster, and a few long files must not fill the memory.
_BATCH_SAMPLES = 640_000


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared distances from the mean, which merge without loss.

    Sums of squares would cancel where the mean is large beside the spread; merging means (T. F.
    Chan, G. H. Golub, R. J. LeVeque, 1979) does not.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Moments of the values of a tensor of any shape, in float64."""
        if not values.numel():
            return cls()
        exact = values.double()
        mean = exact.mean()
        return cls(values.numel(), float(mean), float((exact - mean).square().sum()))

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of values."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        apart = other.mean - self.mean
        share = other.count / count
        squares = self.squares + other.squares + apart * apart * self.count * share
        return Moments(count, self.mean + apart * share, squares)

    @property
    def std(self) -> float:
        """Standard deviation of the values themselves; 0 where there are none."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


def raw_log_mel(frames: int) -> LogMel:
    """Front end without normalisation: mean 0, and twice the standard deviation is 1."""
    return LogMel(rate=RATE, frames=frames, mean=0.0, std=0.5)


@dataclass(frozen=True)
class Measured:
    """What consecutive clips hold. N clips.

    Attributes:
        moments: Of the bins of the log-mel.
        seconds: `[N]` lengths; 0 = not readable.
        unreadable: Why clips cannot be read, by row.
    """

    moments: Moments
    seconds: NDArray[np.float32]
    unreadable: dict[int, str] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean of the log-mel."""
        return self.moments.mean

    @property
    def std(self) -> float:
        """Standard deviation of the log-mel."""
        return self.moments.std


def measure(
    table: ClipTable,
    frames: int,
    *,
    padded: bool = False,
    workers: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Statistics of the log-mel of a table's clips, for the normalisation of the model's input.

    Every bin of the unnormalised log-mel counts, digital silence in a clip too. The result does
    not depend on `workers`.

    Args:
        table: The clips, usually a training split's.
        frames: Frames of the model's input: longer clips count with their first ones alone.
        padded: Count the zeros that shorter clips are padded with as well.
        workers: Processes; None = one a core, 0 = this one.
        on_error: What becomes of a clip that cannot be read: an error, or `skip` leaves it out
            and names it in the result.
        progress: Called with the number of clips that are done, and of all.

    Raises:
        AudioError: A clip cannot be read.
        DataError: There is no clip to measure, or a process was ended from outside.
    """
    front_end = raw_log_mel(frames)

    def work(rows: range) -> Measured:
        return _measure_rows(table, rows, front_end, padded)

    moments = Moments()
    seconds = np.zeros(len(table), np.float32)
    unreadable: dict[int, str] = {}
    done = 0
    workers = default_workers() if workers is None else workers
    try:
        with closing(in_order(work, len(table), size=CHUNK, workers=workers)) as parts:
            for part in parts:
                if part.unreadable and on_error == "raise":
                    raise AudioError(next(iter(part.unreadable.values())))
                moments += part.moments
                seconds[done : done + len(part.seconds)] = part.seconds
                unreadable.update({done + row: text for row, text in part.unreadable.items()})
                done += len(part.seconds)
                if progress is not None:
                    progress(done, len(table))
    except WorkerDied as error:
        raise error.naming(table.ids) from None
    if not moments.count:
        first = next(iter(unreadable.values()), "there are none")
        raise DataError(f"mean and std cannot be measured: no clip can be read; {first}")
    return Measured(moments, seconds, unreadable)


def _measure_rows(table: ClipTable, rows: range, front_end: LogMel, padded: bool) -> Measured:
    moments = Moments()
    seconds = np.zeros(len(rows), np.float32)
    unreadable: dict[int, str] = {}
    waiting: list[Tensor] = []
    longest = 0
    for number, row in enumerate(rows):
        try:
            waveform = table.sounds.load(row)
        except AudioError as error:
            unreadable[number] = str(error)
            continue
        seconds[number] = len(waveform) / RATE
        longest = max(longest, len(waveform))
        if waiting and longest * (len(waiting) + 1) > _BATCH_SAMPLES:
            moments += _moments(waiting, front_end, padded)
            waiting, longest = [], len(waveform)
        waiting.append(waveform)
    if waiting:
        moments += _moments(waiting, front_end, padded)
    return Measured(moments, seconds, unreadable)


def _moments(waveforms: list[Tensor], front_end: LogMel, padded: bool) -> Moments:
    """Moments of the log-mel of some clips."""
    length = torch.tensor([len(waveform) for waveform in waveforms])
    log_mel, frames, _ = front_end(pad_sequence(waveforms, batch_first=True), length)
    inside = torch.arange(log_mel.shape[1]) < frames[:, None]
    moments = Moments.of(log_mel[inside])
    if padded:
        moments += Moments(log_mel.numel() - moments.count)
    return moments


def cached_statistics(
    table: ClipTable,
    root: Path,
    paths: Strings,
    frames: int,
    *,
    on_error: Literal["raise", "skip"] = "raise",
) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel of some clips.

    They are cached in the folder of the resampled audio, under a key of the clips' names and their
    files' states (`file_state`), so that an edited set is measured again.

    Args:
        table: The clips.
        root: Folder that the paths start from.
        paths: Path of each clip's file.
        frames: Frames of the model's input.
        on_error: What becomes of a clip that cannot be read.

    Raises:
        AudioError: A clip cannot be read.
        DataError: No clip can be read, or all are silent.
    """
    decoder = table.sounds.decoder
    entry = None
    if decoder.folder is not None:
        entry = decoder.folder / "statistics" / f"{_key(table, root, paths, frames, decoder)}.json"
        try:
            cached = json.loads(entry.read_text())
            return float(cached["mean"]), float(cached["std"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
    log.info("measuring mean and std of the log-mel of %d training clips", len(table))
    moments = measure(table, frames, on_error=on_error)
    mean, std = moments.mean, moments.std
    if not std > 0:
        raise DataError(
            "the log-mel of the training clips has no spread to normalise by: they are silent; "
            "check them with `peas data verify folder`"
        )
    log.info("mean %.7g, std %.7g (data.init_args.mean and std)", mean, std)
    if entry is not None:
        content = {"mean": mean, "std": std, "clips": len(table), "frames": frames}
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_text(entry, json.dumps(content))
        except OSError as error:
            log.warning("cannot cache mean and std in %s (%s)", entry, error.strerror)
    return mean, std


def _key(table: ClipTable, root: Path, paths: Strings, frames: int, decoder: ResampledCache) -> str:
    states = []
    for path in paths:
        try:
            states.append(file_state(root / path))
        except OSError:
            # `measure` will report it.
            states.append((-1,) * 4)
    settings = (root.resolve(), frames, decoder.rate, decoder.channels, audio.RESAMPLER)
    digest = hashlib.blake2b("\x1f".join(map(str, settings)).encode(), digest_size=16)
    digest.update("\x1f".join(table.ids).encode())
    digest.update(np.array(states, dtype=np.int64).tobytes())
    return digest.hexdigest()
