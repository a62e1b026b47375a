"""Decodes sound, and caches resampled waveforms on disk so that no epoch resamples again."""

import errno
import hashlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from peas.audio import decode as audio
from peas.utils.files import atomic_write

log = logging.getLogger(__name__)


def default_folder() -> Path:
    """`$PEAS_CACHE`, or `~/.cache/peas/audio`; the user may have no home."""
    return Path(os.environ.get("PEAS_CACHE") or "~/.cache/peas/audio")


def file_state(path: str | Path) -> tuple[int, int, int, int]:
    """Identity of a file's content: its inode, size, and both times of change.

    Size and time of modification alone stay when two files exchange their names, or when a copy
    keeps the time. An inode goes along with a renamed file, and no program can set the time of the
    inode's own change. A checksum would have to read each file again, which for the stretches of an
    hour of sound costs more than to decode them.

    Raises:
        OSError: There is no such file.
    """
    state = os.stat(path)
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


class ResampledCache:
    """Decodes sound files; caches those that had to be mixed down or resampled.

    An entry belongs to the file's path and state (`file_state`) and to the settings, so a file that
    was edited, replaced or renamed gets a new entry. A damaged entry is written again. Where
    nothing can be written there is one warning and no cache. Processes may share a folder: entries
    are written atomically.

    Args:
        folder: Folder of the entries, made when missing; None = keep nothing.
        rate: Sampling rate of the result in Hz.
        channels: What becomes of several channels: their mean, or the first one alone.
        max_samples: Samples that a clip may have, of all channels together.
    """

    def __init__(
        self,
        folder: str | Path | None,
        *,
        rate: int,
        channels: Literal["mean", "first"],
        max_samples: int = audio.MAX_SAMPLES,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.rate = rate
        self.channels = channels
        self.max_samples = max_samples
        if self.folder is not None:
            try:
                self.folder = self.folder.expanduser()
                self.folder.mkdir(parents=True, exist_ok=True)
                # Permission bits do not show a read-only or full file system.
                tempfile.TemporaryFile(dir=self.folder).close()
            except OSError as error:
                self._give_up(error)
            except RuntimeError as error:
                # The user has no home.
                self._give_up(OSError(errno.ENOENT, str(error)))

    def load(
        self,
        data: Path | bytes,
        name: str | None = None,
        start: float = 0.0,
        stop: float | None = None,
        *,
        rate: int | None = None,
    ) -> Tensor:
        """Waveform of a clip, mono at the cache's rate.

        Args:
            data: Path of a file; or the bytes of one, which are never kept.
            name: What messages call it. Default: the path.
            start: Where the clip begins, in seconds.
            stop: Where it ends, in seconds; None = at the end of the file.
            rate: Another sampling rate in Hz, for a teacher. Such sound is never cached: at
                48 kHz it would take three times the disk, and the teacher costs far more time.

        Returns:
            `[S]` float32.

        Raises:
            AudioError: The sound cannot be used.
        """
        if rate is not None and rate != self.rate:
            return self._decode(data, rate, name, start, stop)
        entry = None if isinstance(data, bytes) else self._entry(data, start, stop)
        cached = None if entry is None else _read(entry)
        if cached is not None:
            return cached
        waveform = self._decode(data, self.rate, name, start, stop)
        if entry is not None:
            info = audio.probe(data, max_samples=self.max_samples)
            # Of a container that ffmpeg has to decode the coding is not known: always kept.
            if (info.rate, info.channels) != (self.rate, 1) or not info.subtype:
                self._write(entry, waveform)
        return waveform

    def _decode(
        self, data: Path | bytes, rate: int, name: str | None, start: float, stop: float | None
    ) -> Tensor:
        return audio.load(
            data,
            rate,
            self.channels,
            name=name,
            start=start,
            stop=stop,
            max_samples=self.max_samples,
        )

    def _entry(self, path: Path, start: float, stop: float | None) -> Path | None:
        """Path of the clip's entry; None when there is no cache, or no such file."""
        if self.folder is None:
            return None
        try:
            state = file_state(path)
        except OSError:
            return None
        parts = (
            path.resolve(),
            *state,
            self.rate,
            self.channels,
            audio.RESAMPLER,
            *((start, stop) if start or stop is not None else ()),
        )
        key = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).hexdigest()
        return self.folder / key[:2] / f"{key[2:]}.npy"

    def _write(self, entry: Path, waveform: Tensor) -> None:
        try:
            entry.parent.mkdir(exist_ok=True)
            with atomic_write(entry, fsync=False) as file:
                np.save(file, waveform.numpy())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning(
            "cannot cache resampled audio in %s (%s): every epoch resamples again; "
            "set data.init_args.cache_dir or PEAS_CACHE to a writable folder",
            self.folder,
            error.strerror,
        )
        self.folder = None


def _read(entry: Path) -> Tensor | None:
    """Waveform of an entry; None when it is absent or damaged."""
    try:
        array = np.load(entry, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if array.ndim != 1 or array.dtype != np.float32 or not array.size:
        return None
    return torch.from_numpy(array)
