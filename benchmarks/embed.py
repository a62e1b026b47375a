"""`peas embed` against a plain loop: load a file, front end, encoder, a clip at a time.

Both sides read the same files on the same cores with the same model and give the same embeddings,
which are compared; clips longer than the model's input are left out. The loop is what a user
writes in ten lines, with all threads in each step; `peas embed` also writes its store.
"""

import argparse
import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
import timing
import torch

from peas.audio import decode
from peas.audio.frontend import KaldiLogMel
from peas.cli.embed import source_of_files
from peas.data.workers import default_workers
from peas.inference import AudioModel
from peas.inference.store_writer import Options, write_embeddings
from peas.inference.windows import layout
from peas.models import AudioMAE

MEAN, STD = -6.6268077, 5.358466
TOLERANCE = 1e-5


def synthetic(folder: Path, count: int, seconds: float) -> None:
    """Noise at 44.1 kHz, as downloaded clips often are."""
    rng = np.random.default_rng(0)
    for clip in range(count):
        samples = rng.normal(0, 0.1, int(44_100 * seconds))
        soundfile.write(folder / f"{clip:05}.wav", samples, 44_100, subtype="PCM_16")


def loop(model: AudioModel, files: list[str], spent: dict[str, float] | None = None) -> np.ndarray:
    """Embeddings, a clip at a time."""
    rows = []
    with torch.inference_mode():
        for file in files:
            marks = [time.perf_counter()]
            waveform = decode.load(file, model.sample_rate)
            marks.append(time.perf_counter())
            sound = model.front_end(waveform[None])
            marks.append(time.perf_counter())
            tokens = model.encoder.tokens(sound.log_mel)[0, model.encoder.special :]
            # The mean leaves out the patches of padding, as `peas embed` does.
            kept = layout(model.encoder).kept(int(sound.frames))
            # Time after time.
            rows.append(tokens.unflatten(0, model.encoder.grid[::-1])[:kept].mean(dim=(0, 1)))
            marks.append(time.perf_counter())
            if spent is not None:
                for step, (start, end) in zip(spent, pairwise(marks), strict=True):
                    spent[step] += end - start
    return torch.stack(rows).numpy()


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, help="folder of recordings; default: synthetic ones")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=5.0, help="of synthetic clips")
    parser.add_argument("--sizes", nargs="+", default=["mini", "base"])
    parser.add_argument("--frames", type=int, default=512)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--threads", type=int, default=default_workers(), help="of the loop")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="also `--precision bf16`")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(timing.heading("cpu"))
    with tempfile.TemporaryDirectory() as name:
        folder = options.clips or Path(name) / "clips"
        if options.clips is None:
            folder.mkdir()
            synthetic(folder, options.count, options.seconds)
        for size in options.sizes:
            compare(size, str(folder), Path(name) / "store", options)


def compare(size: str, folder: str, out: Path, options: argparse.Namespace) -> None:
    """Print the table of one size."""
    torch.manual_seed(0)
    model = AudioModel(AudioMAE(size), KaldiLogMel(options.frames, MEAN, STD))
    source = source_of_files([folder], model)
    window = model.window_ms / 1000
    # A longer clip would be several windows.
    fitting = [
        row for row, file in enumerate(source.table.ids) if soundfile.info(file).duration <= window
    ]
    if not fitting:
        raise SystemExit(f"{folder}: every clip is longer than {window:.2f} s; give more --frames")
    source = source.take(fitting[: options.count])
    files = list(source.table.ids)
    results: dict[str, np.ndarray] = {}

    def ours(precision: str) -> float:
        shutil.rmtree(out, ignore_errors=True)
        settings = Options([model.layers], precision=precision, workers=options.workers)
        since = time.perf_counter()
        store = write_embeddings(out, model, source, settings)
        seconds = time.perf_counter() - since
        results[precision] = store.embeddings()
        return len(files) / seconds

    def theirs() -> float:
        since = time.perf_counter()
        results["loop"] = loop(model, files)
        return len(files) / (time.perf_counter() - since)

    loop(model, files[:2])
    spent = {"load": 0.0, "front end": 0.0, "encoder": 0.0}
    few = files[: max(1, len(files) // 10)]
    loop(model, few, spent)
    sides = {"peas embed": lambda: ours("float32"), "plain loop": theirs}
    if options.bf16:
        sides["peas embed, bf16"] = lambda: ours("bf16")
    values = timing.interleaved(sides, options.repeats)
    difference = float(np.abs(results["float32"] - results["loop"]).max())
    print(
        f"## {size}\n\n{len(files)} clips into {options.frames} frames, clips/s; peas: "
        f"{options.workers} workers of one thread; loop: {options.threads} threads, ms a clip: "
        + ", ".join(f"{step} {1000 * value / len(few):.1f}" for step, value in spent.items())
        + "\n"
    )
    table: list[timing.Row] = [(name, found, 1) for name, found in values.items()]
    ratios = timing.quotients(values["peas embed"], values["plain loop"])
    print(timing.table([*table, ("peas embed / plain loop, ratio", ratios, 2)]))
    print(f"\nLargest difference of an embedding's values: {difference:.2g}\n")
    if difference > TOLERANCE:
        raise SystemExit(f"the embeddings differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
