"""`peas data pack`: a set in a few large files with fast random access."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from peas.cli.data.sets import Bar, DataSet
from peas.errors import ConfigError, say
from peas.utils.text import some

if TYPE_CHECKING:
    from peas.data.packed.manifest import Manifest

RATE = 16_000


def pack(
    data_set: DataSet,
    *,
    out: str,
    rate: int | None = None,
    keep_original_rate: bool = False,
    format: Literal["flac", "wav", "keep"] = "flac",
    workers: int | None = None,
    shard_mb: float = 500.0,
    on_error: Literal["raise", "skip"] = "raise",
) -> None:
    """Write every clip of a set into shards of about equal size.

    One channel, one rate, 16 bits. After an interruption the same command resumes. SET `packed`
    reads the result.

    Args:
        data_set: The set.
        out: Folder of the packed set: new or empty.
        rate: Samples per second; default 16000.
        keep_original_rate: Keep each file's own rate, as teachers may need it.
        format: Of the clips; `keep` stores the files' own bytes, with --keep_original_rate.
        workers: Processes; default one a core; 0 = this one.
        shard_mb: MB of a shard.
        on_error: What happens at a clip that cannot be read: stop, or leave it out and list it.

    Raises:
        ConfigError: An option is out of its range, or contradicts another one.
        PeasError: The set cannot be packed; see `peas.data.packed.writer.pack`.
    """
    if keep_original_rate and rate is not None:
        raise ConfigError("--rate and --keep_original_rate exclude each other: give one of them")
    if format == "keep" and not keep_original_rate:
        raise ConfigError(
            "--format keep stores the files' own bytes: give --keep_original_rate with it"
        )
    if rate is not None and rate < 1:
        raise ConfigError(f"--rate is {rate}: give samples per second")
    if not shard_mb > 0:
        raise ConfigError(f"--shard_mb is {shard_mb}: give more than 0")
    from peas.data.packed.encoding import Coding
    from peas.data.packed.writer import pack as write
    from peas.data.workers import default_workers

    folder = Path(out).expanduser()
    with Bar() as bar:
        show = bar.of(data_set.name)
        manifest = write(
            data_set.module,
            data_set.name,
            folder,
            Coding(None if keep_original_rate else rate or RATE, format, data_set.module.channels),
            shard_bytes=round(shard_mb * 1e6),
            workers=default_workers() if workers is None else workers,
            on_error=on_error,
            progress=lambda done, total: show("decoding", done, total),
        )
    say(summary(folder, manifest))


def summary(out: Path, manifest: Manifest) -> str:
    """What was packed, for the user.

    Args:
        out: The folder.
        manifest: Its manifest.
    """
    size = sum(shard.bytes for shard in manifest.shards) + manifest.index.bytes
    lines = [
        f"{out}: {manifest.clips:,} clips, {manifest.seconds / 3600:.2f} h, {size / 1e6:,.1f} MB "
        f"in {len(manifest.shards)} shards"
    ]
    lines += [
        f"  {part.name}: {part.clips:,} clips, {part.seconds / 3600:.2f} h"
        for part in manifest.parts
    ]
    saturated = sum(shard.saturated for shard in manifest.shards)
    if saturated:
        lines.append(f"  {saturated:,} clips exceeded full scale and were clipped")
    for names, what in (
        ([clip.id for clip in manifest.left_out], "could not be read and were left out"),
        (manifest.absent, "have no sound in the set"),
    ):
        if names:
            lines.append(f"  {len(names):,} clips {what}: {some(names)} (all in manifest.json)")
    return "\n".join(lines)
