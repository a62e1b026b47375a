"""Speed of the batched filter bank against torchaudio's, one clip at a time.

Both sides work on the same clips and take turns in one process, so that a busy machine slows both.
The table also shows how far the two outputs differ: the work is the same.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from peas.audio.decode import load
from peas.audio.filter_bank import kaldi_fbank

RATE = 16_000


def torchaudio_fbank(waveform: Tensor) -> Tensor:
    """Loop of the official loader's call over a batch, `[B, S]` to `[B, T, 128]`."""
    return torch.stack(
        [
            kaldi.fbank(
                clip[None],
                htk_compat=True,
                sample_frequency=RATE,
                use_energy=False,
                window_type="hanning",
                num_mel_bins=128,
                dither=0.0,
                frame_shift=10,
            )
            for clip in waveform
        ]
    )


def clips(count: int, seconds: float, root: Path | None) -> Tensor:
    """Noise, or the first recordings under a folder, cut or zero-padded to one length, `[B, S]`."""
    samples = int(seconds * RATE)
    if root is None:
        return 0.1 * torch.randn(count, samples, generator=torch.Generator().manual_seed(0))
    suffixes = {".wav", ".flac", ".ogg", ".mp3"}
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes)[:count]
    if not paths:
        raise SystemExit(f"{root}: no wav, flac, ogg or mp3 files; give a folder that holds some")
    batch = torch.zeros(len(paths), samples)
    for row, path in zip(batch, paths, strict=True):
        waveform = load(path, RATE)[:samples]
        row[: len(waveform)] = waveform - waveform.mean()
    return batch


def seconds_of(work: Callable[[Tensor], Tensor], batch: Tensor) -> float:
    """Wall time of one pass over the batch."""
    start = time.perf_counter()
    work(batch)
    return time.perf_counter() - start


def row(name: str, values: list[float], digits: int) -> str:
    """One line of the table: median, smallest and largest."""
    cells = (statistics.median(values), min(values), max(values))
    return f"| {name} | " + " | ".join(f"{value:.{digits}f}" for value in cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--root", type=Path, help="folder of recordings to use instead of noise")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    batch = clips(options.clips, options.seconds, options.root)
    difference = (kaldi_fbank(batch, RATE) - torchaudio_fbank(batch)).abs()
    theirs, ours = [], []
    for _ in range(options.repeats):
        theirs.append(len(batch) / seconds_of(torchaudio_fbank, batch))
        ours.append(len(batch) / seconds_of(lambda waves: kaldi_fbank(waves, RATE), batch))
    ratios = [ours_speed / speed for ours_speed, speed in zip(ours, theirs, strict=True)]

    kind = "noise" if options.root is None else "recordings"
    print(
        f"{len(batch)} clips of {options.seconds:g} s ({kind}), {options.threads} thread(s), "
        f"{options.repeats} repeats in turn\n"
    )
    print("| | median | min | max |\n|---|---|---|---|")
    print(row("torchaudio, one clip at a time (clips/s)", theirs, 0))
    print(row("peas, batched (clips/s)", ours, 0))
    print(row("ratio", ratios, 2))
    print(
        f"\nAbsolute difference of the outputs: max {difference.max():.2g}, "
        f"mean {difference.mean():.2g}"
    )


if __name__ == "__main__":
    main()
