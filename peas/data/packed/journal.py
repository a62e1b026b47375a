"""What a run of packing leaves for the next one, which goes on only with the same work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from peas.data.columns import Rows
from peas.data.inventory import Inventory
from peas.data.packed.encoding import source_content, source_state
from peas.data.packed.manifest import (
    JOURNAL,
    MANIFEST,
    LeftOut,
    Manifest,
    Recipe,
    Stored,
    read_manifest,
)
from peas.data.packed.shards import UNFINISHED, named_when_whole
from peas.data.sounds import Source
from peas.data.statistics import Moments
from peas.errors import AudioError, ConfigError, DataError
from peas.utils.text import some

LOCK = ".lock"
"""Held by the process that packs into the folder."""

_SETTINGS = {
    "set": "SET",
    "clips": "the number of clips",
    "multi_label": "multi_label",
    "frames": "--frames",
    "rate": "--rate",
    "audio": "--format",
    "channels": "--channels",
    "resampler": "the resampler",
    "shard_bytes": "--shard-mb, in bytes,",
    "software": "the software",
}
"""Keys of a recipe that can be shown, and what the user calls them."""


@dataclass(frozen=True)
class Done:
    """A finished stretch of clips.

    Attributes:
        shard: The file that holds them; None = every one of them was left out.
        next: Place in the order of the first clip behind them.
        left_out: Those that could not be read.
        state: Checksum over the states of their files; empty = not all are files.
        content: Checksum over what is in them, compared where the states differ.
        cells: Moments of their log-mel, if they were measured.
    """

    shard: Stored | None
    next: int
    left_out: list[LeftOut]
    state: str
    content: str
    cells: Moments


class Journal:
    """What is finished: read when a run begins, replaced after each shard.

    Args:
        out: Folder of the packed set.
        recipe: What is packed now, and how.

    Attributes:
        done: The finished stretches, in order.

    Raises:
        DataError: The folder was begun with other settings or from another source.
    """

    def __init__(self, out: Path, recipe: Recipe) -> None:
        self.out = out
        self.recipe = recipe
        self.done: list[Done] = []
        file = out / JOURNAL
        if not file.is_file():
            return
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            begun = Recipe(**said["recipe"])
            self.done = [
                Done(
                    Stored(**one["shard"]) if one["shard"] else None,
                    one["next"],
                    [LeftOut(**clip) for clip in one["left_out"]],
                    one["state"],
                    one["content"],
                    Moments(**one["cells"]),
                )
                for one in said["done"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: damaged ({error}); delete {out} and pack again") from None
        _require_recipe(out, begun, recipe)

    @property
    def next(self) -> int:
        """Place in the order of the first clip that is not finished."""
        return self.done[-1].next if self.done else 0

    @property
    def shards(self) -> list[Stored]:
        """The finished shards."""
        return [one.shard for one in self.done if one.shard is not None]

    @property
    def left_out(self) -> list[LeftOut]:
        """The clips that could not be read."""
        return [clip for one in self.done for clip in one.left_out]

    def save(self) -> None:
        """Write it."""
        said = {"recipe": asdict(self.recipe), "done": [asdict(one) for one in self.done]}
        write_text(self.out / JOURNAL, json.dumps(said, ensure_ascii=False) + "\n")

    def require_unchanged(self, inventory: Inventory, order: Rows) -> None:
        """Compare the finished shards and the files that went into them with what they were.

        Args:
            inventory: The set.
            order: Rows of the set in the order in which they are packed.

        Raises:
            DataError: A shard or a file has changed.
        """
        first = 0
        for one in self.done:
            rows = order[first : one.next]
            first = one.next
            between = f"{inventory.table.ids[int(rows[0])]} to {inventory.table.ids[int(rows[-1])]}"
            # The state is a file's own: it also changes with permissions, or a set that is moved.
            if (
                one.state
                and _sum_now(inventory, rows, source_state) != one.state
                and _sum_now(inventory, rows, source_content) != one.content
            ):
                raise DataError(
                    f"{self.out}: a sound file of the clips {between}, which are packed already, "
                    "has changed since; delete the folder and pack again"
                )
            if one.shard is None:
                continue
            file = self.out / one.shard.file
            if not file.is_file() or file.stat().st_size != one.shard.bytes:
                raise DataError(
                    f"{file} (clips {between}) was finished, and now it is missing or has another "
                    f"size; delete {self.out} and pack again"
                )

    def require_policy(self, on_error: str) -> None:
        """Refuse to go on with `raise` where clips were left out.

        Raises:
            ConfigError: So it is.
        """
        left_out = self.left_out
        if on_error == "raise" and left_out:
            raise ConfigError(
                f"{self.out}: begun with --on-error skip, and {len(left_out)} clips were left out "
                f"({some(clip.id for clip in left_out)}): go on with skip, or give another --out"
            )


def refuse_foreign(out: Path) -> None:
    """Refuse a folder that was not begun by this command.

    Raises:
        DataError: It holds other files.
    """
    names = sorted(path.name for path in out.iterdir() if path.name != LOCK)
    ours = {MANIFEST, JOURNAL, JOURNAL + UNFINISHED}
    if names and not ours & set(names):
        raise DataError(
            f"{out}: the folder holds other files ({some(names)}): give a new or an empty one "
            "as --out"
        )


def finished(out: Path, recipe: Recipe) -> Manifest | None:
    """Manifest of a folder that is complete.

    Raises:
        DataError: It is another set's, or was made with other settings.
    """
    if not (out / MANIFEST).is_file():
        return None
    manifest = read_manifest(out)
    # Other versions of the libraries might write other bytes, but these are all there.
    _require_recipe(out, replace(manifest.recipe, software=recipe.software), recipe)
    (out / JOURNAL).unlink(missing_ok=True)
    return manifest


def write_text(file: Path, text: str) -> None:
    """Replace a file by a whole one."""
    with named_when_whole(file) as stream:
        stream.write(text.encode())


def states_sum(states: Iterable[str]) -> str:
    """Checksum over the states of some sources; empty when one of them is not a file."""
    digest = hashlib.blake2b(digest_size=16)
    for state in states:
        if not state:
            return ""
        digest.update(f"{state}\n".encode())
    return digest.hexdigest()


def _sum_now(inventory: Inventory, rows: Rows, state_of: Callable[[Source], str]) -> str:
    states = []
    for row in rows.tolist():
        state = ""
        with suppress(AudioError):
            state = state_of(inventory.table.sounds.source(row))
        states.append(state)
    return states_sum(states)


def _require_recipe(out: Path, begun: Recipe, now: Recipe) -> None:
    """Say what is another one than when the folder was begun."""
    for key, text in _SETTINGS.items():
        values = getattr(begun, key), getattr(now, key)
        if values[0] != values[1]:
            was, is_ = ("each file's own" if value is None else value for value in values)
            raise DataError(
                f"{out} was begun otherwise: {text} was {was} then, and is {is_} now; repeat the "
                "first call, or give another --out"
            )
    if (begun.labels, begun.table) != (now.labels, now.table):
        what = "classes" if begun.labels != now.labels else "clips"
        raise DataError(
            f"{out} was begun with another source: the set had other {what} then; give the first "
            "one again, or another --out"
        )
