"""Compares conditions of an experiment: which masking strategy was better, and was it detectable?

Each condition is the folder of a `peas kfold` run. Runs are paired: the same seeds, folds and
clips, and settings that differ in the masking strategy alone, not in its widths. The last epoch
counts, so that nothing was chosen by the clips that are scored. The tables hold, in this order,

1. the smallest detectable gap of each comparison
   (`peas.evaluation.significance.detectable_effect`), printed first: what lies below it could not
   have been shown, whichever way the results fell;
2. each condition's accuracy, mean ± standard deviation over the seeds;
3. each condition against the baseline: difference, 95 % bootstrap interval over clusters of clips,
   p-value (exact sign-flip test over clusters), Holm's p-value over all comparisons, verdict.

A cluster is what was recorded once: `--cluster esc` takes the Freesound id in ESC's file names
(fold-source-take-target), `--cluster fsdd` the speaker in FSDD's.

Commands:

    python examples/compare_arms.py --cluster esc random=runs/kfold/esc10_mini_random \
        peas=runs/kfold/esc10_mini_peas energy=runs/kfold/esc10_mini_energy --out esc10.md
    python examples/compare_arms.py --cluster fsdd random=runs/kfold/fsdd_mini_random \
        peas=runs/kfold/fsdd_mini_peas energy=runs/kfold/fsdd_mini_energy --out fsdd.md
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from pathlib import Path

import numpy as np

from peas.callbacks.run_files import config_hash
from peas.cli.conditions import Condition, read_condition, require_pairs
from peas.errors import DataError, PeasError
from peas.evaluation.significance import Comparison, compare, smallest_p
from peas.utils.text import some

CLUSTERS = {
    "esc": (re.compile(r"\d+-(\d+)-[A-Z]+-\d+\.\w+"), "source recordings"),
    "fsdd": (re.compile(r"\d_([a-z]+)_\d+\.\w+"), "speakers"),
}


def clusters(ids: list[str], kind: str) -> list[str]:
    """What each clip belongs to.

    Args:
        ids: Names of the clips.
        kind: Key of `CLUSTERS`.

    Raises:
        DataError: Names are not of this data set.
    """
    pattern, _ = CLUSTERS[kind]
    found = [pattern.fullmatch(name.rpartition("/")[2]) for name in ids]
    odd = [name for name, match in zip(ids, found, strict=True) if match is None]
    if odd:
        raise DataError(f"--cluster {kind}: {len(odd)} clips have other names: {some(odd)}")
    return [match[1] for match in found if match]


def tables(conditions: list[Condition], kind: str, rows: list[Comparison], test: str) -> str:
    """Markdown of the comparison.

    Args:
        conditions: The baseline and the others.
        kind: Key of `CLUSTERS`.
        rows: Results of the others.
        test: Name of the test.
    """
    base, units = conditions[0], CLUSTERS[kind][1]
    groups, seeds, folds = rows[0].spread.groups, len(base.seeds), len(set(base.fold))
    lines = [
        f"{len(base.ids)} clips of {groups} {units}, {folds} fold{'s' * (folds > 1)}, "
        f"{seeds} seed{'s' * (seeds > 1)} ({', '.join(map(str, base.seeds))}); the last of "
        f"{base.epochs} epochs.",
        "",
        f"**Smallest detectable gap** against {base.name}: (t[1 - 0.05 / (2 · {len(rows)})] + "
        f"t[0.8]) · error, so 80 % power at 5 %, two-sided, {len(rows)} comparison"
        f"{'s' * (len(rows) > 1)}.",
        *(["One seed: how seeds spread is not in it, so it is too small."] if seeds == 1 else []),
        *_out_of_reach(rows, groups, units, test),
        "",
        f"| against {base.name} | smallest detectable gap | error over {units} and seeds "
        f"| over {units} alone |",
        "|---|---:|---:|---:|",
    ]
    for row in rows:
        detectable = "none" if np.isinf(row.detectable) else f"{100 * row.detectable:.2f}"
        both, alone = 100 * row.spread.error, 100 * row.spread.given_seeds
        lines.append(f"| {row.condition} | {detectable} | {both:.2f} | {alone:.2f} |")
    lines += ["", "| condition | accuracy, % | by seed | config hash |", "|---|---:|---|---|"]
    for condition in conditions:
        values = [100 * float(value) for value in condition.correct.mean(axis=1)]
        mean = f"{statistics.mean(values):.2f}"
        mean += f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        by_seed = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {condition.name} | {mean} | {by_seed} | {config_hash(condition.config)} |")
    name = {"sign-flip": "p (sign flips)", "t": "p (t of clusters)"}[test]
    lines += [
        "",
        f"| against {base.name} | difference | by seed | 95 % interval | {name} | Holm's p "
        "| verdict |",
        "|---|---:|---|---|---:|---:|---|",
    ]
    for row in rows:
        by_seed = ", ".join(f"{100 * value:+.2f}" for value in row.by_seed)
        ends = f"{100 * row.low:+.2f} to {100 * row.high:+.2f}"
        lines.append(
            f"| {row.condition} | {100 * row.difference:+.2f} | {by_seed} | {ends} | {row.p:.3g} "
            f"| {row.holm:.3g} | {row.verdict} |"
        )
    origins = sorted({origin for condition in conditions for origin in condition.origins})
    lines += ["", f"Gaps, errors and differences in points. {'; '.join(origins)}."]
    return "\n".join(lines)


def _out_of_reach(rows: list[Comparison], groups: int, units: str, test: str) -> list[str]:
    if test != "sign-flip" or not np.isinf(rows[0].detectable):
        return []
    least = smallest_p(groups)
    return [
        f"With {groups} {units} the sign-flip test gives no p-value below {least:.3g}, and after "
        f"Holm over {len(rows)} comparisons none below {least * len(rows):.3g}: **no difference "
        "can be shown here, however large.**"
    ]


def main(argv: list[str]) -> None:
    """Prints the tables.

    Args:
        argv: The command line after the script's name.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "conditions",
        nargs="+",
        metavar="NAME=FOLDER",
        help="conditions, and the --out of their kfold runs",
    )
    add("--cluster", choices=list(CLUSTERS), required=True, help="what clips are clustered by")
    add(
        "--baseline",
        default="random",
        help="condition that others are compared with (default random)",
    )
    add("--test", choices=["sign-flip", "t"], default="sign-flip", help="see peas.evaluation")
    example = "model.init_args.recipe.init_args.lr"
    add("--may-differ", nargs="+", default=[], metavar="KEY", help=f"such as {example}")
    add("--out", type=Path, help="file for the tables, beside printing them")
    options = parser.parse_args(argv)
    folders = dict(text.partition("=")[::2] for text in options.conditions)
    if len(folders) < len(options.conditions) or "" in {*folders, *folders.values()}:
        sys.exit(f"give conditions as NAME=FOLDER, each name once: {' '.join(options.conditions)}")
    if options.baseline not in folders or len(folders) < 2:
        sys.exit(f"--baseline is {options.baseline}: give it and another of {', '.join(folders)}")
    names = sorted(folders, key=lambda name: name != options.baseline)
    conditions = [read_condition(name, Path(folders[name]).expanduser()) for name in names]
    require_pairs(conditions, options.may_differ)
    rows = compare(
        {condition.name: condition.correct for condition in conditions},
        clusters(conditions[0].ids, options.cluster),
        options.baseline,
        test=options.test,
    )
    text = tables(conditions, options.cluster, rows, options.test)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PeasError as error:
        sys.exit(str(error))
