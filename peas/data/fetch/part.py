"""A file that has come in part, and which version of it the bytes belong to."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from email.message import Message
from pathlib import Path


class Part:
    """`FILE.part`, and beside it what the server said of the file when the first byte came.

    Args:
        file: Where the whole file will be.
        url: Where it comes from.
        checked: Its checksum will be looked at in the end.
    """

    def __init__(self, file: Path, url: str, checked: bool) -> None:
        self.file = file
        self.path = file.with_name(f"{file.name}.part")
        self.url = url
        self.checked = checked
        self._note = file.with_name(f"{file.name}.part.json")
        self._said: dict[str, str] = {}
        with suppress(OSError, ValueError):
            said = json.loads(self._note.read_text(encoding="utf-8"))
            # Another server has other names for the same version.
            if isinstance(said, dict) and said.get("url") == url:
                self._said = {str(key): str(value) for key, value in said.items()}

    def __len__(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def version(self) -> str:
        """The server's name for this version of the file, good for `If-Range`, or empty."""
        tag = self._said.get("etag", "")
        return tag if tag and not tag.startswith("W/") else self._said.get("last-modified", "")

    @property
    def certain(self) -> bool:
        """Whether bytes of another version, put behind these, would be noticed."""
        return self.checked or bool(self.version)

    def another(self, headers: Message, total: int | None) -> bool:
        """Whether an answer belongs to another version of the file.

        Args:
            headers: Of the answer.
            total: Length of the whole file, according to it.
        """
        if total is not None and self._said.get("total", str(total)) != str(total):
            return True
        for key in ("etag", "last-modified"):
            if key in self._said and headers.get(key):
                return self._said[key] != headers[key]
        return False

    def begin(self, headers: Message, total: int | None) -> None:
        """Forgets the bytes so far; the next ones are of the version that an answer names."""
        self.discard()
        self._said = {key: headers[key] for key in ("etag", "last-modified") if headers.get(key)}
        self._said["url"] = self.url
        if total is not None:
            self._said["total"] = str(total)
        # Before the first byte, so that a kill never leaves bytes without it.
        self._note.write_text(json.dumps(self._said), encoding="utf-8")

    def discard(self) -> None:
        """Deletes the bytes so far."""
        self._said = {}
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def finish(self) -> None:
        """Gives the file its name."""
        with self.path.open("rb") as whole:
            # Else a power cut could leave the name without all of the bytes.
            os.fsync(whole.fileno())
        os.replace(self.path, self.file)
        self._note.unlink(missing_ok=True)
