"""`peas data prepare`: download what may be downloaded, and check that it is complete."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from peas.cli.data.sets import Bar
from peas.data.fetch import sources
from peas.data.fetch.archives import ArchiveError, read_marker, unpack
from peas.data.fetch.download import Patience, Progress, download
from peas.data.fetch.sources import Source
from peas.errors import DataError, UsageError, say
from peas.utils.files import disk_errors, lock

STATE = ".prepare"
"""Folder in ROOT for archives and records of what is done."""
PATIENCE = Patience()
"""With bad links."""

SOUND = """\
The sound of AudioSet is not distributed with it: obtain it yourself. peas reads
  - sound files in any folder of ROOT, named by the clip's id: Y<id>.wav, <id>.flac,
    <id>_<start>.wav, <id>_<start>_<end>.m4a, with any extension;
  - the JSON lists of AST, SSAST and AudioMAE;
  - Parquet copies as published on model hubs (video_id, audio, labels), also hf://owner/name;
  - the output of `peas data pack`."""


class Options(NamedTuple):
    """Options of the command."""

    root: Path
    mirror: str | None
    keep_archives: bool
    again: bool


def prepare(
    set_name: Literal["esc50", "speech_commands", "librispeech", "audioset"],
    root: str,
    *,
    mirror: str | None = None,
    keep_archives: bool = False,
    again: bool = False,
    version: Literal["0.01", "0.02"] | None = None,
    test_set: bool = False,
    subsets: str | None = None,
) -> int:
    """Download a data set, where that is allowed, and check its files by their checksums.

    esc50 is 0.6 GB, speech_commands 1.5 or 2.4, librispeech 60 in 960 hours, audioset 0.1 of tables
    without sound. Interrupted downloads resume, also by the same command later. Proxies are taken
    from http_proxy and https_proxy.

    Args:
        set_name: The data set.
        root: Its folder.
        mirror: Folder of another server with files of the same names, for example
            https://openslr.elda.org/resources/12 for librispeech. They are checked the same way.
        keep_archives: Keep the archives in ROOT/.prepare.
        again: Download and unpack what is marked as done again.
        version: Of speech_commands: 0.01 or 0.02, the default.
        test_set: With speech_commands, also the separate test set of the 12-class task, into
            ROOT/speech_commands_test_set_v….
        subsets: Of librispeech, with commas between; default: the 960 hours of training.

    Returns:
        The exit status.

    Raises:
        DataError: The set is incomplete; what was downloaded is kept for the next try.
    """
    for option, value, owner in (
        ("version", version is not None, "speech_commands"),
        ("test_set", test_set, "speech_commands"),
        ("subsets", subsets is not None, "librispeech"),
    ):
        if value and set_name != owner:
            raise UsageError(f"`--{option}` is an option of {owner}: leave it out")
    parts = _subsets(subsets)
    options = Options(Path(root).expanduser(), mirror, keep_archives, again)
    state = options.root / STATE
    with disk_errors(state):
        state.mkdir(parents=True, exist_ok=True)
    try:
        with lock(state / "lock", options.root), Bar() as bar:
            if set_name == "speech_commands":
                _speech_commands(options, bar, version or "0.02", test_set)
            else:
                for source in {
                    "esc50": [sources.ESC50],
                    "librispeech": [sources.LIBRISPEECH[part] for part in parts],
                    "audioset": sources.AUDIOSET,
                }[set_name]:
                    _get(source, options, bar.of(source.name))
    except KeyboardInterrupt:
        say("\nstopped; the same command resumes", sys.stderr)
        return 130
    say(f"{set_name} is downloaded into {options.root}; `verify` checks that it is complete")
    if set_name == "audioset":
        say(SOUND)
    twelve = set_name == "speech_commands" and (test_set or version == "0.01")
    task = f" --task v{(version or '0.02')[-1]}-12" if twelve else ""
    say(f"next: peas data verify {set_name} {shlex.quote(str(options.root))}{task}")
    return 0


def _subsets(text: str | None) -> list[str]:
    if text is None:
        return list(sources.LIBRISPEECH_960)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in sources.LIBRISPEECH]
    if unknown or not names:
        raise UsageError(
            f"`--subsets`: {(unknown or [text])[0]!r} is no part of LibriSpeech: give some of "
            f"{', '.join(sources.LIBRISPEECH)}, with commas between"
        )
    return list(dict.fromkeys(names))


def _get(source: Source, options: Options, progress: Progress) -> None:
    """Downloads a file and unpacks it, unless that was done."""
    state = options.root / STATE
    file = (options.root if source.into is None else state) / source.name
    marker = state / f"{source.name}.json"
    if options.again:
        with disk_errors(marker):
            marker.unlink(missing_ok=True)
            if source.checksum is None:
                file.unlink(missing_ok=True)
    done = read_marker(marker)
    if done is not None and source.checksum in (None, done):
        if not options.keep_archives:
            file.unlink(missing_ok=True)
        return
    for last in (False, True):
        download(
            source.at(options.mirror),
            file,
            checksum=source.checksum,
            size=source.size,
            progress=progress,
            patience=PATIENCE,
        )
        if source.into is None:
            return
        try:
            unpack(
                file,
                options.root / source.into,
                marker,
                checksum=source.checksum,
                strip=source.strip,
                only=source.only,
                progress=progress,
            )
            break
        except ArchiveError:
            # Without a checksum only unpacking shows what was downloaded.
            file.unlink()
            if last:
                raise
    if not options.keep_archives:
        file.unlink()


def _speech_commands(options: Options, bar: Bar, version: str, test_set: bool) -> None:
    for other, source in sources.SPEECH_COMMANDS.items():
        if other != version and (options.root / STATE / f"{source.name}.json").exists():
            # The versions share file names and would be mixed.
            raise DataError(
                f"{options.root} holds version {other} of Speech Commands: give another folder for "
                f"version {version}"
            )
    archive = sources.SPEECH_COMMANDS[version]
    _get(archive, options, bar.of(archive.name))
    if test_set:
        test = sources.SPEECH_COMMANDS_TEST[version]
        _get(test, options, bar.of(test.name))
