"""Writing files of weights atomically; a full disk is reported as such."""

import os
from collections.abc import Mapping
from contextlib import suppress
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any

import torch

from peas.errors import PeasError


class _Stream(BufferedWriter):
    """A file that remembers why it could not be written.

    torch's writer lets such an error pass, and fails later over the state of its own table.

    Attributes:
        failure: The system's error.
    """

    failure: OSError | None = None

    def write(self, buffer: Any) -> int:
        try:
            return super().write(buffer)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.failure = error
            raise


def save(content: Mapping[str, Any], file: Path) -> None:
    """`torch.save`, with the system's own error where it fails.

    Args:
        content: What is saved.
        file: Where.

    Raises:
        OSError: It cannot be written.
    """
    stream = None
    try:
        with _Stream(FileIO(file, "wb")) as stream:
            torch.save(content, stream)
    except RuntimeError as error:
        # Another error, such as a killed worker's, may surface here.
        if stream is None or stream.failure is None:
            raise
        raise stream.failure from error


def to_disk(file: Path) -> None:
    """Wait until every byte of a file is on the disk."""
    with file.open("rb") as complete:
        os.fsync(complete.fileno())


def write_atomic(content: Mapping[str, Any], out: Path) -> None:
    """Save under another name, and rename when every byte is on the disk.

    Args:
        content: What `torch.save` is given.
        out: The file; its folder is made.

    Raises:
        PeasError: The disk is full, or the path cannot be written. No partial file remains.
    """
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save(dict(content), partial)
        to_disk(partial)
        partial.replace(out)
    except OSError as error:
        raise PeasError(
            f"{out}: cannot be written ({error.strerror or error}); make room, or choose another "
            "--out"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()
