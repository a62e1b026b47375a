"""`peas data pack SET ROOT --out DIR`: a set in a few large files that are read at random."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from peas.cli.data.bar import Bar
from peas.cli.data.sets import SetParser
from peas.errors import ConfigError, say
from peas.utils.text import some

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from peas.data.packed.manifest import Manifest

ABOUT = (
    "Write every clip of a set into shards of about equal size: one channel, one rate, 16 bits. "
    "Broken off, the same command goes on where it stopped. SET `packed` reads the result."
)
RATE = 16_000


def parser(argv: list[str]) -> SetParser:
    """Arguments of the command.

    Args:
        argv: The command line after `peas data pack`.
    """
    made = SetParser("pack", ABOUT, argv)
    add = made.parser.add_argument
    add("--out", type=str, required=True, help="folder of the packed set: new or empty")
    add("--rate", type=int | None, default=None, help=f"samples per second (default {RATE})")
    add(
        "--keep-original-rate",
        "--keep_original_rate",
        action="store_true",
        help="each clip keeps its file's own rate, as teachers may want it",
    )
    add(
        "--format",
        choices=["flac", "wav", "keep"],
        default="flac",
        help="keep = the very bytes of the files; needs --keep-original-rate (default flac)",
    )
    add("--workers", type=int, default=None, help="processes (default one a core; 0 = this one)")
    add("--shard-mb", "--shard_mb", type=float, default=500.0, help="MB of a shard (default 500)")
    add(
        "--on-error",
        "--on_error",
        choices=["raise", "skip"],
        default="raise",
        help="what a clip does that cannot be read: stop, or be left out and listed",
    )
    return made


def main(argv: list[str]) -> None:
    """Runs the command.

    Args:
        argv: The command line after `peas data pack`.

    Raises:
        ConfigError: An option is out of its range, or contradicts another one.
        PeasError: The set cannot be packed; see `peas.data.packed.writer.pack`.
    """
    options, module = parser(argv).parse()
    _check(options)
    from peas.data.packed.encoding import Coding
    from peas.data.packed.writer import pack
    from peas.data.workers import default_workers

    out = Path(options.out).expanduser()
    coding = Coding(
        None if options.keep_original_rate else options.rate or RATE,
        options.format,
        module.channels,
    )
    with Bar() as bar:
        show = bar.of(options.set)
        manifest = pack(
            module,
            options.set,
            out,
            coding,
            shard_bytes=round(options.shard_mb * 1e6),
            workers=default_workers() if options.workers is None else options.workers,
            on_error=options.on_error,
            progress=lambda done, total: show("decoding", done, total),
        )
    say(summary(out, manifest))


def _check(options: Namespace) -> None:
    if options.keep_original_rate and options.rate is not None:
        raise ConfigError("--rate and --keep-original-rate exclude each other: give one of them")
    if options.format == "keep" and not options.keep_original_rate:
        raise ConfigError(
            "--format keep stores the files' own bytes: give --keep-original-rate with it"
        )
    if options.rate is not None and options.rate < 1:
        raise ConfigError(f"--rate is {options.rate}: give samples per second")
    if not options.shard_mb > 0:
        raise ConfigError(f"--shard-mb is {options.shard_mb}: give more than 0")


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
        lines.append(f"  {saturated:,} clips went beyond full scale and were cut there")
    for names, what in (
        ([clip.id for clip in manifest.left_out], "could not be read and were left out"),
        (manifest.absent, "have no sound in the set"),
    ):
        if names:
            lines.append(f"  {len(names):,} clips {what}: {some(names)} (all in manifest.json)")
    return "\n".join(lines)
