"""A checkpoint is whole or not there."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from peas.callbacks.checkpoints import AtomicCheckpointIO
from peas.errors import PeasError

STATE: dict[str, Any] = {f"layer{n}": torch.full((100, 50 + n), float(n)) for n in range(4)}


@contextmanager
def _room(size: int) -> Iterator[None]:
    """No file may be larger: writing fails at this byte, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_disk_that_is_full_at_any_byte(tmp_path: Path) -> None:
    place, writer = tmp_path / "last.ckpt", AtomicCheckpointIO()
    writer.save_checkpoint(STATE, place)
    whole = place.read_bytes()
    # In a tensor, between two, in the table at the end, and short of the last byte.
    rooms = [*range(0, len(whole), len(whole) // 60), *range(len(whole) - 1200, len(whole), 57)]
    for room in [*rooms, len(whole) - 1]:
        with _room(room), pytest.raises(PeasError, match=r"last\.ckpt.*File too large.*make room"):
            writer.save_checkpoint({**STATE, "more": torch.zeros(10)}, place)
        assert place.read_bytes() == whole
        assert list(tmp_path.iterdir()) == [place]
    with _room(len(whole)):
        writer.save_checkpoint(STATE, place)
    assert place.read_bytes() == whole


def test_what_no_disk_is_to_blame_for_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal")

    # Told wherever Python stands at that moment.
    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        AtomicCheckpointIO().save_checkpoint(STATE, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(PeasError, match="could not be written"):
        AtomicCheckpointIO().save_checkpoint(STATE, tmp_path / "run" / "last.ckpt")
