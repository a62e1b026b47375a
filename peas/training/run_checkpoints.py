"""The checkpoints in a run's folder, and the one from which the run resumes.

Modification times are not used: copies and archives change them. Each checkpoint holds the run's
id, its step and the number of earlier saves.
"""

import json
import logging
import re
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from peas.errors import CheckpointError
from peas.models.weights import read_state

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Subfolder of the checkpoints."""
BEST, LAST = "best.ckpt", "last.ckpt"
"""Files of the best validation, and of the end of the run so far."""
RUN_ID = "run_id"
"""File with the id of the folder's run."""
HPC = "hpc_ckpt_*.ckpt"
"""What Lightning writes when a job is requeued."""
RECORD = "run.json"
"""Entry of a checkpoint's archive that holds its record, beside torch's own entries."""
LONGEST = 4096
"""Bytes of the longest record that is read."""


class LoadedCheckpoint(NamedTuple):
    """A checkpoint that has been read.

    Attributes:
        path: Its file.
        content: Its dictionary.
    """

    path: Path
    content: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """Which run and step a checkpoint belongs to.

    Attributes:
        run: Id of the run; None in files of releases before the id.
        step: Optimizer steps of the run so far.
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
    """Add its record to a checkpoint's archive.

    Args:
        path: A file written by `torch.save`.
        record: Of the checkpoint.
    """
    with zipfile.ZipFile(path, "a") as archive:
        # torch demands one folder for all entries.
        top = archive.namelist()[0].partition("/")[0]
        # Without the time of writing: equal states make equal files.
        entry = zipfile.ZipInfo(f"{top}/{RECORD}")
        archive.writestr(entry, json.dumps(asdict(record)))


def read_record(path: Path) -> Record | None:
    """Record of a checkpoint, without reading its tensors; None if the file cannot be read.

    Args:
        path: A file written by `torch.save`, with a record or, from other writers, without.
    """
    # What torch and zipfile raise for a damaged file depends on where the damage is.
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.partition("/")[2] == RECORD and entry.file_size <= LONGEST:
                    return Record(**json.loads(archive.read(entry))).checked()
        return Record.of(torch.load(path, map_location="cpu", mmap=True, weights_only=True))
    except Exception:
        return None


def is_complete(file: Path | BinaryIO) -> bool:
    """Whether a checkpoint is complete, by all its checksums.

    Args:
        file: A file written by `torch.save`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


def checkpoint_files(folder: Path, pattern: str | None = None) -> list[Path]:
    """Every checkpoint in a run's folder, of any run, complete or not.

    Args:
        folder: Of the run.
        pattern: Only these.
    """
    all_patterns = (f"{CHECKPOINTS}/*.ckpt", HPC, f"logs/*/{CHECKPOINTS}/*.ckpt")
    patterns = (pattern,) if pattern else all_patterns
    return sorted(path for each in patterns for path in folder.glob(each))


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


def newest_checkpoint(folder: Path, pattern: str | None = None) -> LoadedCheckpoint | None:
    """Read the complete checkpoint of the folder's run with the most steps.

    Args:
        folder: Of the run.
        pattern: Only these files; None = all.

    Returns:
        None if there is no checkpoint.

    Raises:
        CheckpointError: There are checkpoints, and none of them can be used.
    """
    files = checkpoint_files(folder, pattern)
    if not files:
        return None
    records = {path: record for path in files if (record := read_record(path)) is not None}
    for path in files:
        if path not in records:
            _warn_of_damage(path)
    run = _run_of(folder, records)
    own = {path: record for path, record in records.items() if record.run in (run, None)}
    usable = [p for p, record in own.items() if record.resumable and not record.inside_window]

    def rank(path: Path) -> tuple[bool, int, bool, int]:
        # Those without an id are older than the release that added it. Where a run was ended inside
        # an epoch, others have the same step but were saved after that epoch was closed.
        of_last = path.name.startswith("last.")
        return own[path].run is not None, own[path].step, of_last, own[path].saves

    damaged = len(files) - len(records)
    for path in sorted(usable, key=rank, reverse=True):
        # torch checks no checksums. One open file: its bytes come from the disk once.
        with path.open("rb") as file:
            if is_complete(file):
                file.seek(0)
                return LoadedCheckpoint(path, read_state(path, file=file))
        _warn_of_damage(path)
        damaged += 1
    counts = {
        "damaged": damaged,
        f"of other runs than {run}": len(records) - len(own),
        "without the state of training, or inside an accumulation window": len(own) - len(usable),
    }
    why = "; ".join(f"{count} {what}" for what, count in counts.items() if count)
    raise CheckpointError(
        f"{folder}: none of its {len(files)} checkpoints can be used ({why}). Name one with "
        "`--ckpt_path FILE`, or start again with `fit --new`, which moves them into earlier/"
    )


def _warn_of_damage(path: Path) -> None:
    log.warning("%s is damaged: the one before it is used, if there is one", path)


def _run_of(folder: Path, records: dict[Path, Record]) -> str | None:
    """Id of the run to which a folder's checkpoints belong."""
    if (own := run_id(folder)) is not None:
        return own
    ids = sorted({record.run for record in records.values() if record.run})
    if len(ids) > 1:
        raise CheckpointError(
            f"{folder}: its checkpoints are of {len(ids)} runs ({', '.join(ids)}), and there is no "
            f"file `{RUN_ID}` that names the folder's. Name one with `--ckpt_path FILE`"
        )
    # Earlier releases numbered the files of a second run in the same folder.
    numbered = [p.name for p in records if re.fullmatch(r"(best|last)-v\d+\.ckpt", p.name)]
    if not ids and numbered:
        raise CheckpointError(
            f"{folder}: {', '.join(numbered)} beside the plain name: checkpoints of two runs of an "
            "earlier release. Name one with `--ckpt_path FILE` and another "
            "`--trainer.default_root_dir`"
        )
    return ids[0] if ids else None
