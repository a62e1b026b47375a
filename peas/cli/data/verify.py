"""`peas data verify`: what is missing, bad, duplicated or shared across splits."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from peas.cli.data.sets import Bar, DataSet, in_arguments, parse_set
from peas.errors import ConfigError, DataError, say

if TYPE_CHECKING:
    from peas.data.checks.clips import Checks
    from peas.data.checks.report import Report
    from peas.data.clips import ClipTable, Inventory
    from peas.data.module import ClipDataModule

CHUNK = 32
"""Clips that a worker checks at once."""


def verify(
    data_set: DataSet,
    *,
    out: str | None = None,
    strict: bool = False,
    workers: int | None = None,
    against: list[str] | None = None,
) -> int:
    """Decode every clip of a set; report what is missing, bad, unusual, duplicated or shared.

    The exit status is 1 when there are errors, or with --strict warnings.

    Args:
        data_set: The set.
        out: Folder for report.json and report.txt; default: print only.
        strict: Warnings count as errors.
        workers: Processes; default one a core; 0 = this one.
        against: Another set, as SET=ROOT[,KEY=VALUE...]: recordings, speakers and sounds in both,
            for a set that pretrains a model and a set that tests it. May be repeated.

    Returns:
        The exit status.

    Raises:
        ConfigError: The command line is wrong.
        DataError: A worker was killed.
    """
    from peas.data.checks.report import table, write_json
    from peas.data.workers import default_workers

    # Channels are mixed in the same way in both.
    channels = data_set.module.channels
    others = [(text, parse_set(text, "--against", channels=channels)) for text in against or []]
    folder = None if out is None else Path(out).expanduser()
    if folder is not None:
        # Before the work, which may take hours.
        folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    workers = default_workers() if workers is None else workers
    with Bar() as bar:
        report = check(data_set, others, workers, bar)
    text = table(report)
    say(text.removesuffix("\n"))
    clips, seconds = len(report.checks), time.monotonic() - begun
    say(f"{clips:,} clips in {seconds:.1f} s, {clips / max(seconds, 1e-9):.0f} a second")
    if folder is not None:
        write_json(report, folder / "report.json")
        (folder / "report.txt").write_text(text, encoding="utf-8")
        say(f"every clip of each finding: {folder / 'report.json'}")
    return int(report.status in (("errors", "warnings") if strict else ("errors",)))


def check(
    data_set: DataSet, others: list[tuple[str, ClipDataModule]], workers: int, bar: Bar
) -> Report:
    """Checks a data set.

    Args:
        data_set: The set.
        others: Names and modules of the sets to compare it with.
        workers: Processes; 0 = this one.
        bar: Shows the progress.

    Raises:
        DataError: A worker was killed.
    """
    from peas.data.checks import findings as comparisons
    from peas.data.checks.findings import of_tables
    from peas.data.checks.report import Report

    module = data_set.module
    inventory, faults = take_inventory(module)
    labels: list[str] = []
    try:
        labels = module.labels
        comparisons.class_counts(inventory, len(labels))
    except DataError as error:
        faults.append(str(error))
        inventory = _without_classes(inventory)
    checks = decode(inventory, workers, bar, data_set.name)
    findings = list(comparisons.of_clips(inventory, checks))
    findings += comparisons.of_parts(inventory, checks)
    findings += comparisons.of_classes(inventory, labels)
    for title, other in others:
        inventory2, faults2 = take_inventory(other)
        faults += [f"{title}: {text}" for text in faults2]
        checks2 = decode(inventory2, workers, bar, title)
        titles = (f"{data_set.name}={module.root}", title)
        findings += comparisons.of_two_sets(titles, (inventory, inventory2), (checks, checks2))
        findings += comparisons.unread(inventory2, checks2, title)
    if faults:
        # Once each: labels and clips may fail alike.
        findings.append(of_tables(list(dict.fromkeys(map(in_arguments, faults)))))
    inventory = replace(inventory, notes=list(map(in_arguments, inventory.notes)))
    return Report(
        data_set.name,
        str(module.root),
        data_set.command,
        inventory,
        checks,
        labels,
        findings,
        [title for title, _ in others],
    )


def take_inventory(module: ClipDataModule) -> tuple[Inventory, list[str]]:
    """Everything of a set that can be checked, and what is wrong with its tables.

    Where the tables are inconsistent, the splits that can be read are checked; where none can, all
    sound files below the root.

    Raises:
        DataError: There is nothing to check at all.
    """
    from peas.data.clips import Inventory
    from peas.data.columns import Targets
    from peas.data.module import SPLITS
    from peas.data.walk import walk

    try:
        return module.inventory(), []
    except DataError as error:
        first_error = error
    faults = [str(first_error)]
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
        note = f"Only the splits {', '.join(splits)} could be read and were checked."
    else:
        paths = sorted(walk(module.root).paths.to_pylist()) if module.root.is_dir() else []
        if not paths:
            raise first_error
        splits["files"] = module.files(paths, paths, Targets.none(len(paths)))
        note = f"All sound files below {module.root} were checked, without splits and classes."
    return replace(Inventory.of_splits(splits), notes=[note]), faults


def decode(inventory: Inventory, workers: int, bar: Bar, name: str) -> Checks:
    """Decodes every clip of an inventory.

    Args:
        inventory: The clips.
        workers: Processes; 0 = this one.
        bar: Shows the progress.
        name: Of the set, for the bar.

    Raises:
        DataError: A worker was killed.
    """
    from peas.data.checks.clips import Checks, check_clips
    from peas.data.workers import WorkerDied, in_order

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
    from peas.data.columns import Targets

    clips = inventory.table
    return replace(inventory, table=replace(clips, targets=Targets.none(len(clips))))
