"""`peas data prepare SET ROOT`: download what may be downloaded, and check that it is whole."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from peas.cli.arguments import Arguments
from peas.cli.data.bar import Bar
from peas.data.fetch import sources
from peas.data.fetch.archives import ArchiveError, read_marker, unpack
from peas.data.fetch.download import Patience, Progress, download
from peas.data.fetch.sources import Source
from peas.errors import DataError, say
from peas.utils.files import disk_errors, lock

STATE = ".prepare"
"""Folder in the root for archives, what has come of them, and notes of what is done."""
PATIENCE = Patience()
"""With bad links."""

SOUND = """\
The sound of AudioSet is not distributed with it: obtain it yourself. peas reads
  - sound files in any folder of ROOT, named by the clip's id: Y<id>.wav, <id>.flac,
    <id>_<start>.wav, <id>_<start>_<end>.m4a, with any extension;
  - the JSON lists of AST, SSAST and AudioMAE;
  - Parquet copies as published on model hubs (video_id, audio, labels), also hf://owner/name;
  - what `peas data pack` has written."""


def parser() -> Arguments:
    """Arguments of the command."""
    common = Arguments(add_help=False)
    common.add_argument("root", type=Path, metavar="ROOT", help="folder of the data set")
    common.add_argument(
        "--mirror",
        metavar="URL",
        help="fetch from this folder of another server, which holds files of the same names, for "
        "example https://openslr.elda.org/resources/12 for librispeech. They are checked alike",
    )
    common.add_argument(
        "--keep-archives", action="store_true", help=f"leave the archives in ROOT/{STATE}"
    )
    common.add_argument(
        "--again", action="store_true", help="fetch and unpack once more what is marked as done"
    )
    p = Arguments(
        prog="peas data prepare",
        description=__doc__ + " Broken connections are resumed, also by the same command later; "
        "nothing is fetched twice. Proxies are taken from http_proxy and https_proxy.",
        epilog="peas data prepare SET --help shows the options of a set.",
    )
    sets = p.add_subparsers(dest="set", required=True, metavar="SET")
    sets.add_parser("esc50", parents=[common], help="ESC-50: 2,000 clips, 0.6 GB")
    one = sets.add_parser(
        "speech_commands", parents=[common], help="Google Speech Commands: 1.5 or 2.4 GB"
    )
    one.add_argument("--version", choices=tuple(sources.SPEECH_COMMANDS), default="0.02")
    one.add_argument(
        "--test-set",
        action="store_true",
        help="also the separate test set of the 12-class task, into "
        "ROOT/speech_commands_test_set_v…",
    )
    one = sets.add_parser("librispeech", parents=[common], help="LibriSpeech: 60 GB in 960 hours")
    one.add_argument(
        "--subsets",
        type=_subsets,
        default=list(sources.LIBRISPEECH_960),
        metavar="A,B",
        help=f"of {', '.join(sources.LIBRISPEECH)} (default: the 960 hours of training)",
    )
    sets.add_parser("audioset", parents=[common], help="AudioSet's tables, 0.1 GB; no sound")
    return p


def _subsets(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    strange = [name for name in names if name not in sources.LIBRISPEECH]
    if strange or not names:
        raise argparse.ArgumentTypeError(
            f"{(strange or [text])[0]!r} is no part of LibriSpeech: give some of "
            f"{', '.join(sources.LIBRISPEECH)}, with commas between"
        )
    return list(dict.fromkeys(names))


def main(argv: list[str]) -> None:
    """Runs the command.

    Args:
        argv: The command line after `peas data prepare`.

    Raises:
        DataError: The set cannot be had whole; what has come is kept for the next try.
    """
    args = parser().parse_args(argv)
    args.root = args.root.expanduser()
    state = args.root / STATE
    with disk_errors(state):
        state.mkdir(parents=True, exist_ok=True)
    try:
        with lock(state / "lock", args.root), Bar() as bar:
            _SETS[args.set](args, bar)
    except KeyboardInterrupt:
        say("\nstopped; the same command goes on from here", sys.stderr)
        sys.exit(130)
    say(f"{args.set} is complete in {args.root}")
    if args.set == "audioset":
        say(SOUND)
    say(f"next: peas data verify {args.set} {shlex.quote(str(args.root))}{_task(args)}")


def _task(args: argparse.Namespace) -> str:
    """Option of `peas data verify` for a version that its default task is not about."""
    if args.set == "speech_commands" and (args.test_set or args.version == "0.01"):
        return f" --task v{args.version[-1]}-12"
    return ""


def _get(source: Source, args: argparse.Namespace, progress: Progress) -> None:
    """Fetches a file and unpacks it, unless that was done."""
    state: Path = args.root / STATE
    place = (args.root if source.into is None else state) / source.name
    marker = state / f"{source.name}.json"
    if args.again:
        with disk_errors(marker):
            marker.unlink(missing_ok=True)
            if source.checksum is None:
                place.unlink(missing_ok=True)
    done = read_marker(marker)
    if done is not None and source.checksum in (None, done):
        if not args.keep_archives:
            place.unlink(missing_ok=True)
        return
    for last in (False, True):
        download(
            source.at(args.mirror),
            place,
            checksum=source.checksum,
            size=source.size,
            progress=progress,
            patience=PATIENCE,
        )
        if source.into is None:
            return
        try:
            unpack(
                place,
                args.root / source.into,
                marker,
                checksum=source.checksum,
                strip=source.strip,
                only=source.only,
                progress=progress,
            )
            break
        except ArchiveError:
            # Without a checksum only unpacking shows what came.
            place.unlink()
            if last:
                raise
    if not args.keep_archives:
        place.unlink()


def _esc50(args: argparse.Namespace, bar: Bar) -> None:
    _get(sources.ESC50, args, bar.of("ESC-50"))


def _speech_commands(args: argparse.Namespace, bar: Bar) -> None:
    for version, source in sources.SPEECH_COMMANDS.items():
        other = args.root / STATE / f"{source.name}.json"
        if version != args.version and other.exists():
            # The versions share file names, so they would be mixed without a word.
            raise DataError(
                f"{args.root} holds version {version} of Speech Commands: give another folder for "
                f"version {args.version}"
            )
    main_archive = sources.SPEECH_COMMANDS[args.version]
    _get(main_archive, args, bar.of(main_archive.name))
    if args.test_set:
        test = sources.SPEECH_COMMANDS_TEST[args.version]
        _get(test, args, bar.of(test.name))


def _librispeech(args: argparse.Namespace, bar: Bar) -> None:
    for subset in args.subsets:
        source = sources.LIBRISPEECH[subset]
        _get(source, args, bar.of(source.name))


def _audioset(args: argparse.Namespace, bar: Bar) -> None:
    for source in sources.AUDIOSET:
        _get(source, args, bar.of(source.name))


_SETS: dict[str, Callable[[argparse.Namespace, Bar], None]] = {
    "esc50": _esc50,
    "speech_commands": _speech_commands,
    "librispeech": _librispeech,
    "audioset": _audioset,
}
