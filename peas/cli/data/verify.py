"""`peas data verify SET ROOT`: what is missing, broken, doubled or shared across splits."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from peas.cli.data.bar import Bar
from peas.cli.data.sets import SETS, SetParser, in_arguments
from peas.data.checks.clips import Checks, check_clips
from peas.data.checks.findings import (
    class_counts,
    of_classes,
    of_clips,
    of_parts,
    of_tables,
    of_two_sets,
    unread,
)
from peas.data.checks.report import Report, table, write_json
from peas.data.clips import ClipTable, Inventory
from peas.data.columns import Targets
from peas.data.module import SPLITS, ClipDataModule
from peas.data.walk import walk
from peas.data.workers import WorkerDied, default_workers, in_order
from peas.errors import ConfigError, DataError, say

CHUNK = 32
"""Clips that a process checks at once."""


def parser(argv: list[str]) -> SetParser:
    """Arguments of the command."""
    p = SetParser(
        "verify",
        "Decodes every clip and reports what is missing, broken, odd, doubled or shared. The exit "
        "status is 1 when there are errors, or with --strict warnings.",
        argv,
    )
    add = p.parser.add_argument
    add("--out", metavar="DIR", help="folder for report.json and report.txt; default: print only")
    add("--strict", action="store_true", help="warnings count as errors")
    add("--workers", type=int, default=default_workers(), help="processes; 0 = this one alone")
    add(
        "--against",
        metavar="SET=ROOT[,KEY=VALUE]",
        nargs="+",
        action="append",
        default=[],
        help="other sets: recordings, speakers and sounds that both hold, for a set that pretrains "
        "a model and a set that tests it",
    )
    return p


def main(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: The command line after `peas data verify`.

    Returns:
        1 when something is wrong, 0 otherwise.

    Raises:
        ConfigError: The command line is wrong.
        DataError: A process was ended from outside.
    """
    options, module = parser(argv).parse()
    others = [_other(text, module) for group in options.against for text in group]
    out = None if options.out is None else Path(options.out).expanduser()
    if out is not None:
        # Before the work, which may take hours.
        out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["peas", "data", "verify", *argv])
    begun = time.monotonic()
    try:
        with Bar() as bar:
            report = verify(options.set, module, others, options.workers, bar, command)
    except KeyboardInterrupt:
        say("\nstopped: nothing was written", sys.stderr)
        return 130
    text = table(report)
    say(text.removesuffix("\n"))
    clips, seconds = len(report.checks), time.monotonic() - begun
    say(f"{clips:,} clips in {seconds:.1f} s, {clips / max(seconds, 1e-9):.0f} a second")
    if out is not None:
        write_json(report, out / "report.json")
        (out / "report.txt").write_text(text, encoding="utf-8")
        say(f"every clip of each finding: {out / 'report.json'}")
    wrong = ("errors", "warnings") if options.strict else ("errors",)
    return int(report.status in wrong)


def verify(
    name: str,
    module: ClipDataModule,
    others: list[tuple[str, ClipDataModule]],
    workers: int,
    bar: Bar,
    command: str,
) -> Report:
    """Checks a data set.

    Args:
        name: Key of `SETS`.
        module: The set.
        others: Names and modules of the sets to compare it with.
        workers: Processes; 0 = this one.
        bar: Shows how far it is.
        command: Command line, for the report.

    Raises:
        DataError: A process was ended from outside.
    """
    inventory, faults = take_stock(module)
    labels: list[str] = []
    try:
        labels = module.labels
        class_counts(inventory, len(labels))
    except DataError as error:
        faults.append(str(error))
        inventory = _without_classes(inventory)
    checks = decode(inventory, workers, bar, name)
    findings = list(of_clips(inventory, checks))
    findings += of_parts(inventory, checks)
    findings += of_classes(inventory, labels)
    for title, other in others:
        theirs, their_faults = take_stock(other)
        faults += [f"{title}: {text}" for text in their_faults]
        their_checks = decode(theirs, workers, bar, title)
        own = f"{name}={module.root}"
        findings += of_two_sets((own, title), (inventory, theirs), (checks, their_checks))
        findings += unread(theirs, their_checks, title)
    if faults:
        # Once each: labels and clips may fail alike.
        findings.append(of_tables(list(dict.fromkeys(map(in_arguments, faults)))))
    titles = [title for title, _ in others]
    inventory = replace(inventory, notes=list(map(in_arguments, inventory.notes)))
    return Report(name, str(module.root), command, inventory, checks, labels, findings, titles)


def take_stock(module: ClipDataModule) -> tuple[Inventory, list[str]]:
    """Everything of a set that can be checked, and what is wrong with its tables.

    Where the tables contradict themselves, those splits are taken that can be had; where none
    can, all sound files below the root.

    Raises:
        DataError: There is nothing to check at all.
    """
    try:
        return module.inventory(), []
    except DataError as error:
        whole = error
    faults = [str(whole)]
    splits: dict[str, ClipTable] = {}
    for split in SPLITS:
        try:
            clips = module.clips(split)
        # A set that cannot be opened at all has no folds to choose from either.
        except (DataError, ConfigError) as error:
            faults.append(str(error))
            continue
        # Sets without validation clips of their own give the test clips twice.
        if not any(clips.ids == other.ids for other in splits.values()):
            splits[split] = clips
    if splits:
        note = f"Only the splits {', '.join(splits)} could be had and were checked."
    else:
        paths = sorted(walk(module.root).paths.to_pylist()) if module.root.is_dir() else []
        if not paths:
            raise whole
        splits["files"] = module.files(paths, paths, Targets.none(len(paths)))
        note = f"All sound files below {module.root} were checked, without splits and classes."
    return replace(Inventory.of_splits(splits), notes=[note]), faults


def decode(inventory: Inventory, workers: int, bar: Bar, name: str) -> Checks:
    """Decodes every clip of an inventory.

    Args:
        inventory: The clips.
        workers: Processes; 0 = this one.
        bar: Shows how far it is.
        name: What it calls the set.

    Raises:
        DataError: A process was ended from outside.
    """
    clips = inventory.table
    checks = Checks.empty(len(clips))
    progress = bar.of(name)

    def work(rows: range) -> Checks:
        return check_clips(clips, rows)

    done = 0
    try:
        with closing(in_order(work, len(clips), size=CHUNK, workers=workers)) as parts:
            for part in parts:
                checks.put(done, part)
                done += len(part)
                progress("decoding", done, len(clips))
    except WorkerDied as error:
        raise error.naming(clips.ids) from None
    return checks


def _without_classes(inventory: Inventory) -> Inventory:
    clips = inventory.table
    return replace(inventory, table=replace(clips, targets=Targets.none(len(clips))))


def _other(text: str, module: ClipDataModule) -> tuple[str, ClipDataModule]:
    """Module of `SET=ROOT[,KEY=VALUE…]`, which mixes channels as the set it is compared with."""
    name, _, rest = text.partition("=")
    root, *options = rest.split(",")
    if name not in SETS or not root or not all("=" in option for option in options):
        raise ConfigError(
            f"--against is {text!r}: give SET=ROOT, with one of {', '.join(SETS)} as SET, and "
            "arguments of the set behind commas: folder=DIR,csv=clips.csv"
        )
    argv = [name, root, *(f"--{option}" for option in options), f"--channels={module.channels}"]
    return text, SetParser("verify --against", "Another set.", argv).parse()[1]
