"""Two million clips: what it costs to open them, to draw an epoch, and to read one.

The index is generated, in the packed format and by the functions that pack: ids of eleven
characters, 1 to 5 of 527 classes a clip, some far more often than others, as many shards as ten
seconds a clip would fill, a few bytes in place of the sound. Each opening is measured in a new
process after its imports, with the files in the system's cache.

Reading is measured on real recordings: the same clips as loose 16 kHz FLAC files and packed, in the
same random order, by the same decoder, in turn.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import timing
import torch

from peas.data.cache import ResampledCache
from peas.data.class_balance import WeightedSampler, clip_weights
from peas.data.clips import ClipTable, Inventory
from peas.data.columns import Strings, Targets
from peas.data.module import RATE, SPLITS, ClipDataModule, Split
from peas.data.packed.arrow_files import SCHEMA, arrow_shard, packed_file, shard_name
from peas.data.packed.encoding import Coding, encode
from peas.data.packed.folder import PackedFolder
from peas.data.packed.module import PackedSet
from peas.data.packed.writer import PackWriter, Provenance, pack, settings_of
from peas.data.shards import Shard
from peas.data.sounds import SoundFiles, Source

CLASSES = 527
# FLAC of ten seconds takes some 0.22 MB, and a shard 500.
CLIPS_OF_A_SHARD = 2300
# Recordings that one side reads in its turn.
TURN = 50
READER = ResampledCache(None, rate=RATE, channels="mean")


class Clips(ClipDataModule):
    """A table of clips as a data module.

    Args:
        root: Folder that messages name.
        table: The clips.
        parts: Names of the parts.
        part: Number of each clip's part.
    """

    multi_label = True

    def __init__(
        self, root: Path, table: ClipTable, parts: list[str], part: Sequence[int] | np.ndarray
    ) -> None:
        super().__init__(str(root), batch_size=1, mean=-4.3, std=4.6, frames=1024)
        self._inventory = Inventory(table, parts, np.asarray(part), table.ids)

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        return [f"class {number}" for number in range(CLASSES)]

    def clips(self, split: Split) -> ClipTable:
        """All clips."""
        return self._inventory.table

    def inventory(self) -> Inventory:
        """All clips."""
        return self._inventory


# ---- two million clips


def generated_columns(rows: int) -> tuple[Strings, Targets]:
    """Random names and classes."""
    draws = np.random.default_rng(0)
    letters = np.frombuffer(
        b"-_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "u1"
    )
    text = letters[draws.integers(0, 64, rows * 11)]
    ends = pa.py_buffer(np.arange(rows + 1, dtype=np.int64) * 11)
    ids = pa.LargeStringArray.from_buffers(rows, ends, pa.py_buffer(text.tobytes()))
    sizes = draws.integers(1, 6, rows)
    # The commonest of AudioSet's classes has some ten thousand times the clips of the rarest.
    chance = np.geomspace(1e4, 1.0, CLASSES)
    classes = draws.choice(CLASSES, sizes.sum(), p=chance / chance.sum())
    return Strings(ids), Targets(np.concatenate([[0], np.cumsum(sizes)]), classes)


def generate(out: Path, rows: int) -> None:
    """Write a packed folder of `rows` clips, of which one in a hundred is for evaluation."""
    ids, targets = generated_columns(rows)
    part = (np.arange(rows) >= rows - rows // 100).astype(np.int64)
    table = ClipTable(ids, targets, SoundFiles(READER, out, ids))
    module = Clips(out, table, ["train", "evaluation"], part)
    inventory, coding = module.inventory(), Coding(RATE, "flac", "mean")
    settings = settings_of(module, "folder", inventory, coding, 500_000_000)
    writer = PackWriter(out, module, inventory, coding, settings)
    bounds = np.unique([*range(0, rows, CLIPS_OF_A_SHARD), int((part == 0).sum()), rows])
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        name = inventory.parts[part[first]]
        file = out / shard_name(len(writer.shards), name)
        with arrow_shard(file) as shard:
            shard.write(generated_batch(table, first, last))
        stored = packed_file(file, shard.rows, name)
        writer.shards.append(Shard(range(first, last), stored, info=Provenance()))
    writer.finish()


def generated_batch(table: ClipTable, first: int, last: int) -> pa.RecordBatch:
    """Rows of a shard, with sixteen bytes for each clip's sound."""
    count = last - first
    ids = table.ids.array.slice(first, count).cast(pa.string())
    sound = pa.py_buffer(np.random.default_rng(first).bytes(16 * count))
    places = pa.py_buffer(np.arange(count + 1, dtype=np.int32) * 16)
    sounds = pa.BinaryArray.from_buffers(pa.binary(), count, [None, places, sound])
    offsets = table.targets.offsets[first : last + 1]
    labels = pa.ListArray.from_arrays(
        pa.array(offsets - offsets[0], pa.int32()),
        pa.array(table.targets.classes[offsets[0] : offsets[-1]]),
    )
    columns = {
        "row": pa.array(np.arange(first, last)),
        "id": ids,
        "audio": pa.StructArray.from_arrays([sounds, ids], fields=list(SCHEMA.field("audio").type)),
        "labels": labels.cast(SCHEMA.field("labels").type),
        "recording": ids,
        "speaker": pa.array([""] * count),
        "seconds": pa.array(np.full(count, 10.0, np.float32)),
        "rate": pa.array(np.full(count, RATE, np.int32)),
        "sum": pa.array(["0123456789abcdef0123456789abcdef"] * count),
    }
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def private_mb() -> float:
    """Memory that this process has written to and shares with no other, in MB."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) / 1000
    raise SystemExit("this system does not tell the private memory of a process")


def opening(root: Path) -> dict[str, float]:
    """Time and memory of one opening, and of reading some rows, in this process."""
    # Imported when the first table is made.
    import datasets  # noqa: F401

    gc.collect()
    before, since = private_mb(), time.perf_counter()
    table = PackedSet(str(root)).clips("train")
    seconds, opened = time.perf_counter() - since, private_mb()
    draws = np.random.default_rng(1).integers(0, len(table), 2000)
    since = time.perf_counter()
    for row in draws.tolist():
        table.sounds.source(row)
    first = (time.perf_counter() - since) / len(draws)
    read = private_mb()
    since = time.perf_counter()
    for row in draws[::-1].tolist():
        table.sounds.source(row)
    again = (time.perf_counter() - since) / len(draws)
    return {
        "seconds": seconds,
        "mb": opened - before,
        "read_mb": read - before,
        "first_us": 1e6 * first,
        "again_us": 1e6 * again,
    }


def opening_elsewhere(root: Path) -> dict[str, float]:
    """`opening` in a new process."""
    command = [sys.executable, __file__, "--open", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def scale_rows(rows: int, draws: int, repeats: int) -> list[timing.Row]:
    """Figures of the generated index."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        generate(root, rows)
        opened = [opening_elsewhere(root) for _ in range(repeats)]
        table = PackedFolder(root, READER).table(["train"])
        # Once before the clock runs: the first touch of the index's pages is the system's work.
        weights = clip_weights(table.targets, CLASSES)
        sides = {
            f"weights of all clips (s){goal(None)}": lambda: clip_weights(table.targets, CLASSES),
        }
        for replacement in (True, False):
            order = WeightedSampler(weights, draws, replacement=replacement)
            text = "with" if replacement else "without"
            sides[f"{draws:,} drawn by weight {text} replacement (s){goal('≤ 0.3')}"] = (
                lambda order=order: order.sample(torch.Generator().manual_seed(0))
            )
        timed = {key: lambda work=work: timing.seconds_of(work) for key, work in sides.items()}
        drawn = timing.interleaved(timed, repeats)

    def column(key: str) -> list[float]:
        return [one[key] for one in opened]

    return [
        (f"open {rows:,} clips (s){goal('≤ 0.5')}", column("seconds"), 3),
        (f"private memory after that (MB){goal('≤ 150')}", column("mb"), 1),
        (f"private memory after 2,000 random reads (MB){goal(None)}", column("read_mb"), 1),
        (f"a read that may map its shard first (µs){goal(None)}", column("first_us"), 1),
        (f"a read (µs){goal(None)}", column("again_us"), 1),
        *((key, values, 3) for key, values in drawn.items()),
    ]


def goal(text: str | None) -> str:
    """How a row's name tells its goal."""
    return "" if text is None else f", goal {text}"


# ---- real recordings


def write_loose(folder: Path, root: Path, count: int) -> list[str]:
    """Recordings as 16 kHz FLAC files."""
    suffixes = {".wav", ".flac", ".ogg", ".mp3"}
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes)
    if not paths:
        raise SystemExit(f"{root}: no wav, flac, ogg or mp3 files; give a folder that holds some")
    names = []
    for number, path in enumerate(paths[:count]):
        clip = encode(Source(path, str(path)), Coding(RATE, "flac", "mean"))
        names.append(f"{number:06}.flac")
        (folder / names[-1]).write_bytes(clip.data)
    return names


def read(table: ClipTable, rows: list[int], clock: str) -> float:
    """Seconds for reading and decoding some clips."""

    def work() -> None:
        for row in rows:
            table.sounds.load(row)

    return timing.seconds_of(work, clock=clock)


def reading_rows(root: Path, count: int, repeats: int, clock: str) -> tuple[str, list[timing.Row]]:
    """Figures of real recordings, and what was read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "loose"
        folder.mkdir()
        ids = Strings(write_loose(folder, root, count))
        loose = ClipTable(ids, Targets.none(len(ids)), SoundFiles(READER, folder, ids))
        module = Clips(folder, loose, list(SPLITS[:1]), np.zeros(len(ids), np.int64))
        out = Path(name) / "packed"
        manifest = pack(
            module, "folder", out, Coding(RATE, "flac", "mean"), shard_bytes=2**28, workers=0
        )
        packed = PackedFolder(out, READER).table(["train"])
        for row in range(len(ids)):
            ours, theirs = (table.sounds.source(row).data for table in (packed, loose))
            assert isinstance(theirs, Path)
            if ours != theirs.read_bytes():
                raise SystemExit("the packed bytes are not those of the loose files")
        order = np.random.default_rng(0).permutation(len(ids)).tolist()
        values: dict[str, list[float]] = {"packed": [], "loose": []}
        for _ in range(repeats):
            # Turns of some seconds' fraction, so that a busy machine slows both sides alike.
            turns = [order[first : first + TURN] for first in range(0, len(order), TURN)]
            seconds = {"packed": 0.0, "loose": 0.0}
            for number, rows in enumerate(turns):
                sides = {
                    "packed": lambda rows=rows: read(packed, rows, clock),
                    "loose": lambda rows=rows: read(loose, rows, clock),
                }
                for side, (took,) in timing.interleaved(sides, 1, first=number).items():
                    seconds[side] += took
            for side, took in seconds.items():
                values[side].append(len(order) / took)
    text = (
        f"{len(ids)} recordings, {manifest.seconds / len(ids):.2f} s each on the mean, read and "
        "decoded in random order"
    )
    ratios = timing.quotients(values["packed"], values["loose"])
    return text, [
        ("loose FLAC files (clips/s)", values["loose"], 0),
        ("packed FLAC (clips/s)", values["packed"], 0),
        (f"packed / loose, ratio{goal('≥ 0.9')}", ratios, 2),
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, help="folder of recordings; none = only the index")
    parser.add_argument("--count", type=int, default=2000, help="recordings that are read")
    parser.add_argument("--rows", type=int, default=2_000_000, help="clips of the index; 0 = none")
    parser.add_argument("--draws", type=int, default=200_000, help="clips of an epoch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=tuple(timing.CLOCKS), default="wall", help="of reading; see timing.py"
    )
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.open is not None:
        print(json.dumps(opening(options.open)))
        return
    print(timing.heading("cpu"))
    if options.rows:
        print(timing.table(scale_rows(options.rows, options.draws, options.repeats)))
    if options.clips is not None:
        text, rows = reading_rows(options.clips, options.count, options.repeats, options.clock)
        print(f"\n{text}:\n")
        print(timing.table(rows))


if __name__ == "__main__":
    main()
