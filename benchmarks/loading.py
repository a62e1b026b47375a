"""From sound files to normalised log-mel batches: the data path against AudioMAE's official loader.

Both sides read the same WAV files on the same cores and give the same batches: mean removed,
Kaldi filter banks, padded, normalised; no augmentation. The official loader makes each
spectrogram in a worker process, `peas` decodes there and runs its front end on whole batches in
the main process. Beside them: packed FLAC, and decoding alone.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import soundfile
import timing
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from peas.audio import decode as audio
from peas.audio.frontend import KaldiLogMel
from peas.data.batch import Batch
from peas.data.cache import ResampledCache
from peas.data.clips import ClipDataset, ClipTable
from peas.data.columns import Strings, Targets
from peas.data.folder.module import AudioFolder
from peas.data.loader import BadClips, ClipLoader, CollateClips
from peas.data.packed.encoding import Coding
from peas.data.packed.folder import PackedFolder
from peas.data.packed.writer import pack
from peas.data.sounds import SoundFiles

RATE = 16_000
MEAN, STD = -4.2677393, 4.5689974
MID = "/m/09x0r"


def write_clips(folder: Path, root: Path, count: int, seconds: float) -> list[str]:
    """WAV files of equal length, filled with recordings one after the other."""
    suffixes = {".wav", ".flac", ".ogg", ".mp3"}
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes)
    if not paths:
        raise SystemExit(f"{root}: no wav, flac, ogg or mp3 files; give a folder that holds some")
    samples, names, index = int(seconds * RATE), [], 0
    for clip in range(count):
        parts: list[Tensor] = []
        while sum(map(len, parts)) < samples:
            parts.append(audio.load(paths[index % len(paths)], RATE))
            index += 1
        name = f"{clip:06}.wav"
        soundfile.write(folder / name, torch.cat(parts)[:samples].numpy(), RATE, subtype="PCM_16")
        names.append(name)
    return names


def official(peer: Path, folder: Path, names: list[str], frames: int) -> torch.utils.data.Dataset:
    """The official data set over the same files."""
    import torchaudio

    # The pinned torchaudio decodes through a package that `peas` does not need; the official code
    # was written for a release that read WAV files through libsndfile, as here.
    def load(path: str) -> tuple[Tensor, int]:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return torch.from_numpy(samples.T), rate

    torchaudio.load = load
    sys.path.insert(0, str(peer))
    try:
        from dataset import AudiosetDataset
    except ImportError as error:
        raise SystemExit(f"--peer {peer}: no dataset.py of AudioMAE there ({error})") from None
    table = folder / "labels.csv"
    table.write_text(f"index,mid,display_name\n0,{MID},Speech\n")
    listed = folder / "clips.json"
    data = [{"wav": str(folder / name), "labels": MID} for name in names]
    listed.write_text(json.dumps({"data": data}))
    settings = {
        "num_mel_bins": 128,
        "target_length": frames,
        "freqm": 0,
        "timem": 0,
        "mixup": 0.0,
        "dataset": "audioset",
        "mode": "train",
        "mean": MEAN,
        "std": STD,
        "noise": False,
        "multilabel": True,
    }
    with open(os.devnull, "w") as quiet:
        before, sys.stdout = sys.stdout, quiet
        try:
            return AudiosetDataset(str(listed), settings, label_csv=str(table))
        finally:
            sys.stdout = before


def ours(table: ClipTable, batch: int, workers: int) -> ClipLoader:
    """Our loader over a table of clips."""
    return ClipLoader(
        ClipDataset(table, rate=RATE, classes=1, multi_label=True),
        BadClips(),
        batch_size=batch,
        num_workers=workers,
        collate_fn=CollateClips(),
        multiprocessing_context="fork",
    )


def packed(folder: Path, names: list[str], decoder: ResampledCache) -> ClipTable:
    """The same clips as a packed set."""
    listed = folder / "clips.csv"
    listed.write_text("path,label,split\n" + "".join(f"{name},Speech,train\n" for name in names))
    module = AudioFolder(str(folder), csv=listed.name, mean=MEAN, std=STD, cache_dir="")
    out = folder / "packed"
    pack(module, "folder", out, Coding(RATE, "flac", "mean"), shard_bytes=500_000_000, workers=2)
    return PackedFolder(out, decoder).table(["train"])


def rate_of(batches: Iterable[object], clips: int) -> float:
    """Clips per second of one pass."""
    since = time.perf_counter()
    for _ in batches:
        pass
    return clips / (time.perf_counter() - since)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--peer", type=Path, help="checkout of the official AudioMAE repository")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--peer-workers", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of our front end")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = write_clips(folder, options.clips, options.count, options.seconds)
        decoder = ResampledCache(None, rate=RATE, channels="mean")
        sounds = SoundFiles(decoder, folder, Strings(names))
        loose = ClipTable(Strings(names), Targets.one_each(np.zeros(len(names))), sounds)
        flac = packed(folder, names, decoder)
        front_end = KaldiLogMel(frames=options.frames, mean=MEAN, std=STD)

        def spectrograms(table: ClipTable) -> Iterable[Tensor]:
            batch: Batch
            for batch in ours(table, options.batch, options.workers):
                with torch.inference_mode():
                    yield front_end(batch["waveform"], batch["length"]).log_mel

        sides: dict[str, Callable[[], float]] = {
            "peas, WAV": lambda: rate_of(spectrograms(loose), len(names)),
            "peas, packed FLAC": lambda: rate_of(spectrograms(flac), len(names)),
            "peas, WAV decoded, no spectrogram": lambda: rate_of(
                ours(loose, options.batch, options.workers), len(names)
            ),
        }
        if options.peer is not None:
            dataset = official(options.peer, folder, names, options.frames)

            def peer() -> DataLoader:
                return DataLoader(
                    dataset,
                    batch_size=options.batch,
                    num_workers=options.peer_workers,
                    multiprocessing_context="fork",
                )

            theirs = next(iter(peer()))[0][:, 0]
            difference = (next(iter(spectrograms(loose))) - theirs).abs().max()
            sides["official AudioMAE, WAV"] = lambda: rate_of(peer(), len(names))
        values = timing.interleaved(sides, options.repeats)

    print(timing.heading("cpu"))
    print(
        f"{options.count} clips of {options.seconds:g} s, batches of {options.batch}, clips/s; "
        f"official: {options.peer_workers} worker(s); peas: {options.workers} worker(s) and "
        f"{options.threads} thread(s) of the front end\n"
    )
    rows: list[timing.Row] = [(name, found, 0) for name, found in values.items()]
    if options.peer is not None:
        peers = values["official AudioMAE, WAV"]
        for name in ("peas, WAV", "peas, packed FLAC"):
            ratios = timing.quotients(values[name], peers)
            rows.append((f"{name} / official, ratio", ratios, 2))
    print(timing.table(rows))
    if options.peer is None:
        print("\nWithout --peer this says nothing about the official loader.")
    else:
        print(f"\nLargest difference of the log-mels of a batch: {difference:.2g}")


if __name__ == "__main__":
    main()
