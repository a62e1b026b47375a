"""A run's folder between two starts: its lock, its id, and what an earlier run left in it."""

import logging
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from peas.errors import CheckpointError, ConfigError, PeasError
from peas.training.run_checkpoints import (
    CHECKPOINTS,
    RUN_ID,
    checkpoint_files,
    is_complete,
    read_record,
    run_id,
)
from peas.utils.files import Locked, lock, write_text

log = logging.getLogger(__name__)

LOCK = "run.lock"
"""Held by the run that writes into the folder."""
EARLIER = "earlier"
"""Subfolder of the runs that were in the folder before, a folder each, named by its id."""
WRITTEN = re.compile(
    r"(?:config|environment|labels)(?:_(?:validate|test|predict))?(?:\.\d+)?\.(?:yaml|json|csv)"
    r"|logs|logits|plots|pictures|wandb|wandb_id|mask_starts\.csv|predictions(?:\.\d+)?\.csv"
    r"|hpc_ckpt_\d+\.ckpt"
)
"""What a run and its evaluations write into its folder, beside its checkpoints and id; `pictures`
is of releases before `plots`."""
PARTIAL = tuple(
    f"{folder}*.*.partial" for folder in ("", f"{CHECKPOINTS}/", "logs/*/", "logits/", "plots/")
)
"""Files that a killed process left incomplete."""


@contextmanager
def writing(path: Path, folder: Path | None = None) -> Iterator[None]:
    """Turn a full disk or a missing folder into one message.

    Args:
        path: What is written.
        folder: Of a run that has started, whose checkpoints the message then names.

    Raises:
        PeasError: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        advice = "Make room, or give another `--trainer.default_root_dir`"
        if folder is not None:
            advice = remedy(folder, checkpoint_files(folder))
        reason = error.strerror or error
        raise PeasError(f"{path}: cannot be written ({reason}). {advice}") from error


def remedy(folder: Path, files: Iterable[Path]) -> str:
    """How to resume a run that could not write.

    Args:
        folder: Of the run, or of its checkpoints.
        files: Its checkpoints.
    """
    steps = [(record.step, path) for path in files if (record := read_record(path)) is not None]
    newest = next((path for _, path in sorted(steps, reverse=True) if is_complete(path)), None)
    if newest is None:
        return f"{folder} has no complete checkpoint (was it removed?): make room and start again"
    return f"{newest} is complete: make room, then resume with `--ckpt_path last`"


def written(folder: Path) -> list[Path]:
    """What a run wrote into its folder; its checkpoints and id come last.

    Args:
        folder: Of the run.
    """
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if WRITTEN.fullmatch(path.name))
    last = (folder / CHECKPOINTS, folder / RUN_ID)
    return [*files, *(path for path in last if path.exists())]


def put_aside(folder: Path) -> None:
    """Move what an earlier run wrote into `earlier/<its id>/`, which is a run's folder again.

    Args:
        folder: Of the run, which this process has locked.
    """
    files = written(folder)
    if files in ([], [folder / RUN_ID]):
        return
    # A kill in between leaves checkpoints and id for the next start, which moves the rest.
    name = run_id(folder) or secrets.token_hex(4)
    target, count = folder / EARLIER / name, 0
    while any((target / path.name).exists() for path in files):
        count += 1
        target = folder / EARLIER / f"{name}.{count}"
    target.mkdir(parents=True, exist_ok=True)
    for path in files:
        path.rename(target / path.name)
    log.warning("files of an earlier run in %s were moved to %s", folder, target)


def require_new(folder: Path) -> None:
    """Refuse to start a run where there are checkpoints.

    Args:
        folder: Of the run.

    Raises:
        ConfigError: There are.
    """
    if files := checkpoint_files(folder):
        names = ", ".join(path.name for path in files[:4]) + (", …" if len(files) > 4 else "")
        raise ConfigError(
            f"{folder} holds checkpoints ({names}), and neither `--ckpt_path` nor `--new` is "
            "given. `--ckpt_path last` resumes that run; `--new` starts another one, and moves "
            f"the files of the first into {folder / EARLIER}"
        )


def require_outside(folder: Path, values: Iterable[tuple[str, str]]) -> None:
    """Refuse to start a run that reads what `put_aside` would move.

    Args:
        folder: Of the run.
        values: Keys of the configuration, and their values.

    Raises:
        ConfigError: A value names such a file.
    """
    moved = {path.resolve() for path in written(folder)}
    for key, value in values:
        path = Path(value)
        with suppress(OSError, ValueError, RuntimeError):
            if path.exists() and moved & {path.resolve(), *path.resolve().parents}:
                raise ConfigError(
                    f"`{key}` is {value}, which `--new` would move into {folder / EARLIER}: copy "
                    "it elsewhere first, or give another `--trainer.default_root_dir`"
                )


def require_own(folder: Path, start: Path) -> None:
    """Refuse a checkpoint from which the folder's run cannot resume.

    Args:
        folder: Of the run.
        start: The checkpoint.

    Raises:
        CheckpointError: It was written inside an accumulation window; or belongs to another run
            than the folder's; or the folder's run has more steps.
    """
    record = read_record(start)
    if record is None:
        return
    if record.inside_window:
        raise CheckpointError(
            f"{start}: was written while gradients were being accumulated, which it does not "
            "hold: a run resumed from it would train other weights. Give `--ckpt_path last`"
        )
    files = checkpoint_files(folder)
    others = [path for path in files if path.resolve() != start.resolve()]
    records = [(path, other) for path in others if (other := read_record(path)) is not None]
    inside = len(others) < len(files)
    elsewhere = "give another `--trainer.default_root_dir` to resume from it there"
    # A file without an id, of an earlier release, belongs to the run of the folder it is in.
    ids = {run_id(folder), *(other.run for _, other in records)} if records else set()
    if ids and (ids - {record.run, None} if inside else ids != {record.run} or None in ids):
        raise CheckpointError(
            f"{start}: belongs to another run than the checkpoints in {folder}, which would be "
            f"overwritten: {elsewhere}"
        )
    further = [
        path
        for path, other in records
        if other.run == record.run and other.step > record.step and other.resumable
    ]
    if further:
        raise CheckpointError(
            f"{start}: has step {record.step}, and {further[0]} of the same run has more. "
            f"`--ckpt_path last` takes the one with the most; {elsewhere}"
        )


@contextmanager
def open_run(folder: Path, *, start: Path | None, new: bool = False) -> Iterator[None]:
    """Lock a run's folder and give it an id.

    Args:
        folder: Of the run.
        start: Checkpoint from which the run resumes; None for a new run. The files of an earlier
            one are then put aside.
        new: Whether it may start beside checkpoints.

    Raises:
        PeasError: Another process has locked it, it cannot be written, or holds checkpoints.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    used = any((folder / name).exists() for name in (LOCK, RUN_ID))
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(folder / LOCK, folder))
        except Locked as error:
            raise Locked(f"{error}. Or give another `--trainer.default_root_dir`") from None
        with writing(folder):
            _begin(folder, start, new=new, used=used)
        yield


def _begin(folder: Path, start: Path | None, *, new: bool, used: bool) -> None:
    """Removes incomplete files, puts an earlier run aside and writes the id."""
    for pattern in PARTIAL:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    if start is None:
        if not new:
            require_new(folder)
        if used or new:
            put_aside(folder)
        write_text(folder / RUN_ID, secrets.token_hex(8) + "\n")
        return
    record, own = read_record(start), run_id(folder)
    run = record.run if record else None
    if run not in (own, None) or own is None:
        if used and not checkpoint_files(folder):
            put_aside(folder)
        write_text(folder / RUN_ID, f"{run or secrets.token_hex(8)}\n")
