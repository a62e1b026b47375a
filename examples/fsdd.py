"""Writes the CSV with which `peas.data.AudioFolder` reads the Free Spoken Digit Dataset.

The set (https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0) is one flat folder,
`recordings/{digit}_{speaker}_{index}.wav`. The CSV has the columns

    path     from the data set's folder
    label    the digit
    speaker  name of the speaker
    fold     the speaker's number in the order of the names, from 1: leave one speaker out
    split    the official one: index 0 to 4 is for test, in which all speakers are known

Commands:

    python examples/fsdd.py DIR
    peas data verify folder DIR --csv fsdd.csv
    peas kfold --config configs/examples/fsdd_tiny.yaml --data.init_args.root DIR --folds 1-6
    peas fit --config configs/examples/fsdd_tiny.yaml --data.init_args.root DIR \
        --data.init_args.fold null

With `--data.init_args.fold N` speaker N is tested; with null the official split is.
"""

import argparse
import csv
import re
import sys
from pathlib import Path

NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")
OFFICIAL_TEST = range(5)


def rows(root: Path) -> list[dict[str, object]]:
    """Rows of the CSV, by digit, speaker and index.

    Args:
        root: Folder of the data set.
    """
    names = [path.name for path in root.joinpath("recordings").glob("*.wav")]
    found = [match for name in names if (match := NAME.fullmatch(name))]
    if not found:
        sys.exit(f"{root}/recordings has no file such as 7_jackson_32.wav: give the set's folder")
    if len(found) < len(names):
        print(f"left out {len(names) - len(found)} files whose names are not the data set's")
    speakers = sorted({match[2] for match in found})
    found.sort(key=lambda match: (match[1], match[2], int(match[3])))
    return [
        {
            "path": f"recordings/{match[0]}",
            "label": match[1],
            "speaker": match[2],
            "fold": speakers.index(match[2]) + 1,
            "split": "test" if int(match[3]) in OFFICIAL_TEST else "train",
        }
        for match in found
    ]


def main(argv: list[str]) -> None:
    """Writes the CSV.

    Args:
        argv: The command line after the script's name.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder of the data set")
    parser.add_argument("--out", type=Path, help="the CSV (default ROOT/fsdd.csv)")
    options = parser.parse_args(argv)
    table = rows(options.root)
    out: Path = options.out or options.root / "fsdd.csv"
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    speakers = {row["speaker"]: row["fold"] for row in table}
    tested = sum(row["split"] == "test" for row in table)
    print(f"{out}: {len(table)} clips, {tested} in the official test set; folds {speakers}")


if __name__ == "__main__":
    main(sys.argv[1:])
