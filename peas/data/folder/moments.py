"""Mean and standard deviation of a user's recordings, measured once and remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from peas.audio import decode as audio
from peas.data.cache import ResampledCache, file_state
from peas.data.clips import ClipTable
from peas.data.columns import Strings
from peas.data.statistics import measure
from peas.errors import DataError

log = logging.getLogger(__name__)


def remembered(
    table: ClipTable,
    root: Path,
    paths: Strings,
    frames: int,
    *,
    on_error: Literal["raise", "skip"] = "raise",
) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel of some clips.

    They are kept in the folder of the resampled audio, under a key of the clips' names and of their
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
            kept = json.loads(entry.read_text())
            return float(kept["mean"]), float(kept["std"])
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
        _write(entry, {"mean": mean, "std": std, "clips": len(table), "frames": frames})
    return mean, std


def _key(table: ClipTable, root: Path, paths: Strings, frames: int, decoder: ResampledCache) -> str:
    states = []
    for path in paths:
        try:
            states.append(file_state(root / path))
        except OSError:
            # The measurement will say what is wrong with it.
            states.append((-1,) * 4)
    settings = (root.resolve(), frames, decoder.rate, decoder.channels, audio.RESAMPLER)
    digest = hashlib.blake2b("\x1f".join(map(str, settings)).encode(), digest_size=16)
    digest.update("\x1f".join(table.ids).encode())
    digest.update(np.array(states, dtype=np.int64).tobytes())
    return digest.hexdigest()


def _write(entry: Path, info: dict[str, float]) -> None:
    """Leave a whole file or none: processes may share the folder."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=entry.parent, suffix=".tmp")
        with open(handle, "w") as file:
            json.dump(info, file)
        os.replace(name, entry)
    except OSError as error:
        log.warning("cannot remember mean and std in %s (%s)", entry, error.strerror)
