"""Which checkpoints lie in a run's folder, and from which one the run resumes.

Times of files say nothing: copies and archives change them. Each checkpoint holds the run's id, its
step and the number of saves before it.
"""

import json
import logging
import re
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from peas.errors import CheckpointError

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Subfolder of the checkpoints."""
RUN_ID = "run_id"
"""File with the id of the folder's run."""
HPC = "hpc_ckpt_*.ckpt"
"""What Lightning writes when a job is put back into a cluster's queue."""
RECORD = "run.json"
"""Entry of a checkpoint's archive that says where it belongs, beside torch's own entries."""
LONGEST = 4096
"""Bytes of the longest record that is read."""


@dataclass(frozen=True)
class Record:
    """Where a checkpoint belongs.

    Attributes:
        run: Id of the run; None where releases before the id wrote it.
        step: Optimiser steps of the run so far.
        saves: Checkpoints that the run wrote so far; orders those of one step.
        inside_window: Whether gradients were being accumulated, which it does not hold.
        resumable: Whether it holds the training loop's state, and not only weights.
    """

    run: str | None
    step: int
    saves: int
    inside_window: bool = False
    resumable: bool = True

    @classmethod
    def of(cls, checkpoint: dict[str, Any]) -> "Record":
        """The record of a checkpoint's dictionary.

        Args:
            checkpoint: As Lightning writes it.

        Raises:
            ValueError: A field is of another type.
        """
        run = checkpoint.get("run") or {}
        resumable = "loops" in checkpoint and bool(checkpoint.get("optimizer_states"))
        return cls(
            run=run.get("run"),
            step=checkpoint.get("global_step", -1),
            saves=run.get("saves", 0),
            inside_window=run.get("inside_window", False),
            resumable=resumable,
        ).checked()

    def checked(self) -> "Record":
        """Itself.

        Raises:
            ValueError: A field is of another type.
        """
        numbers = all(type(n) is int and -1 <= n < 2**63 for n in (self.step, self.saves))
        flags = all(type(flag) is bool for flag in (self.inside_window, self.resumable))
        named = self.run is None or (type(self.run) is str and _is_id(self.run))
        if not (numbers and flags and named):
            raise ValueError("not a record of a run")
        return self


def _is_id(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{8,64}", text) is not None


def write_record(path: Path, record: Record) -> None:
    """Add its record to a checkpoint's archive, so that it is read without the rest.

    Args:
        path: A file written by `torch.save`.
        record: Where it belongs.
    """
    with zipfile.ZipFile(path, "a") as archive:
        # torch demands one folder for all entries.
        top = archive.namelist()[0].partition("/")[0]
        # Without the time of writing: equal states make equal files.
        entry = zipfile.ZipInfo(f"{top}/{RECORD}")
        archive.writestr(entry, json.dumps(asdict(record)))


def read_record(path: Path) -> Record | None:
    """Where a checkpoint belongs; None if the file cannot be read.

    Args:
        path: A file written by `torch.save`, with a record or, from other writers, without.
    """
    # What torch and zipfile raise on a damaged file depends only on where the damage lies.
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.partition("/")[2] == RECORD and entry.file_size <= LONGEST:
                    return Record(**json.loads(archive.read(entry))).checked()
        return Record.of(torch.load(path, map_location="cpu", mmap=True, weights_only=True))
    except Exception:
        return None


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is complete, to the last checksum.

    Args:
        path: A file written by `torch.save`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


def checkpoint_files(folder: Path, pattern: str | None = None) -> list[Path]:
    """Every checkpoint in a run's folder, whosever and whole or not.

    Args:
        folder: Of the run.
        pattern: Of the only ones that are meant.
    """
    own = (f"{CHECKPOINTS}/*.ckpt", HPC, f"logs/*/{CHECKPOINTS}/*.ckpt")
    return sorted(path for one in ([pattern] if pattern else own) for path in folder.glob(one))


def run_id(folder: Path) -> str | None:
    """Id of the folder's run, if it has one.

    Args:
        folder: Of the run.
    """
    try:
        text = (folder / RUN_ID).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if _is_id(text) else None


def newest_whole(folder: Path, pattern: str | None = None) -> Path | None:
    """The checkpoint of the folder's run that is furthest in steps, and whole.

    Args:
        folder: Of the run.
        pattern: Of the only files that are meant; None = all.

    Returns:
        The file; None where no checkpoint lies.

    Raises:
        CheckpointError: There are checkpoints, and none of them can be taken.
    """
    files = checkpoint_files(folder, pattern)
    if not files:
        return None
    found = {path: record for path in files if (record := read_record(path)) is not None}
    for path in files:
        if path not in found:
            log.warning("%s is damaged: the one before it is used, if there is one", path)
    run = _run_of(folder, found)
    own = {path: record for path, record in found.items() if record.run in (run, None)}
    usable = [p for p, record in own.items() if record.resumable and not record.inside_window]

    def place(path: Path) -> tuple[bool, int, bool, int]:
        # Those without an id are older than the release that gives it. Where a run was ended inside
        # an epoch, others are of the same step but after that epoch was closed.
        of_last = path.name.startswith("last.")
        return own[path].run is not None, own[path].step, of_last, own[path].saves

    damaged = len(files) - len(found)
    for path in sorted(usable, key=place, reverse=True):
        if is_whole(path):
            return path
        log.warning("%s is damaged: the one before it is used, if there is one", path)
        damaged += 1
    counts = {
        "damaged": damaged,
        f"of other runs than {run}": len(found) - len(own),
        "without the state of training, or inside an accumulation window": len(own) - len(usable),
    }
    why = "; ".join(f"{count} {what}" for what, count in counts.items() if count)
    raise CheckpointError(
        f"{folder}: none of its {len(files)} checkpoints can be taken ({why}). Name one with "
        "`--ckpt_path FILE`, or begin again with `fit --new`, which puts them aside"
    )


def _run_of(folder: Path, found: dict[Path, Record]) -> str | None:
    """Id of the run to which the checkpoints of a folder belong."""
    if (known := run_id(folder)) is not None:
        return known
    ids = sorted({record.run for record in found.values() if record.run})
    if len(ids) > 1:
        raise CheckpointError(
            f"{folder}: its checkpoints are of {len(ids)} runs ({', '.join(ids)}), and no file "
            f"`{RUN_ID}` says which is the folder's. Name one with `--ckpt_path FILE`"
        )
    # Earlier releases counted the names of a second run in the same folder.
    counted = [p.name for p in found if re.fullmatch(r"(best|last)-v\d+\.ckpt", p.name)]
    if not ids and counted:
        raise CheckpointError(
            f"{folder}: {', '.join(counted)} beside the plain name: checkpoints of two runs of an "
            "earlier release. Name one with `--ckpt_path FILE` and another "
            "`--trainer.default_root_dir`"
        )
    return ids[0] if ids else None
