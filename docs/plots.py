"""Makes the plots of the documentation, in docs/images.

Needs a pretraining checkpoint of an SSAST and a clip that it has not been trained on:

    python docs/plots.py --checkpoint RUN/checkpoints/last.ckpt --clip DIR/3-151081-B-20.ogg

Those in the repository: `configs/examples/pretrain_urbansound8k_ssast.yaml`, stopped after 7 of its
40 epochs, on a clip of ESC-10 (CC BY 3.0).
"""

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import soundfile
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn.functional import avg_pool1d
from torchaudio.functional import resample

from peas.masking import ClusteredPatches, RandomPatches, StructuredPatches
from peas.tasks import Pretraining

IMAGES = Path(__file__).parent / "images"
BLUE, RED, GREY = "#2f6db5", "#d1495b", "#888888"
PATCH = 16
MELS = 128
MAX_TIME, MAX_FREQ = 96, 24
SECONDS_PER_FRAME = 0.01


def load_clip(task: Pretraining, path: str) -> tuple[Tensor, int]:
    """Log-mel `[1, T, F]` of a clip, and its number of real frames.

    Args:
        task: Its front end is used.
        path: A sound file.
    """
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    sound = resample(torch.from_numpy(samples.mean(1)), rate, 16_000)[
        None, : task.front_end.samples()
    ]
    log_mel, frames, _ = task.front_end(sound, torch.tensor([sound.shape[1]]))
    return log_mel, int(frames)


@torch.no_grad()
def error_maps(task: Pretraining, log_mel: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction and e_pred (equations 1 and 2), each `[T, F]`.

    Args:
        task: Its model reconstructs.
        log_mel: `[1, T, F]`.
    """
    reconstruction = task.model.reconstruct(log_mel)
    e_rec = (reconstruction - log_mel).square()
    e_pred = (task.model.reconstruct(e_rec) - e_rec).square()
    return reconstruction[0], e_pred[0]


def window_means(marginal: Tensor, width: int) -> Tensor:
    """Mean of every window of a width, with stride 1."""
    return avg_pool1d(marginal[None, None], width, stride=1)[0, 0]


def spectrogram(axis: Axes, values: Tensor, title: str, **style: Any) -> None:
    """A `[T, F]` map with seconds and mel bins."""
    extent = (0, values.shape[0] * SECONDS_PER_FRAME, 0, values.shape[1])
    axis.imshow(values.T.numpy(), origin="lower", aspect="auto", extent=extent, **style)
    axis.set(title=title, xlabel="time (s)", ylabel="mel bin")


def plot_peas(task: Pretraining, clip: str) -> None:
    """PEAS on one clip: input, reconstruction, errors, window scores and masks."""
    log_mel, frames = load_clip(task, clip)
    reconstruction, e_pred = (values[:frames] for values in error_maps(task, log_mel))
    x = log_mel[0, :frames]
    time_scores = window_means(e_pred.mean(1), MAX_TIME)
    freq_scores = window_means(e_pred.mean(0), MAX_FREQ)
    time_start, freq_start = int(time_scores.argmax()), int(freq_scores.argmax())
    rng = np.random.default_rng(5)
    # Blocks of half the window's width, somewhere inside it.
    time_block = time_start + int(rng.integers(MAX_TIME // 2)), MAX_TIME // 2
    freq_block = freq_start + int(rng.integers(MAX_FREQ // 2)), MAX_FREQ // 2

    figure, axes = plt.subplots(2, 3, figsize=(13, 6.4), layout="constrained")
    low, high = np.quantile(x, [0.02, 0.998])
    levels = {"cmap": "magma", "vmin": low, "vmax": high}
    spectrogram(axes[0, 0], x, "1. input x", **levels)
    spectrogram(axes[0, 1], reconstruction, "2. reconstruction G(E(x))", **levels)
    limit = np.quantile(e_pred, 0.99)
    spectrogram(axes[0, 2], e_pred, "3. prediction error e_pred", cmap="viridis", vmax=limit)

    axis = axes[1, 0]
    centres = (np.arange(len(time_scores)) + MAX_TIME / 2) * SECONDS_PER_FRAME
    axis.plot(centres, time_scores, color="black")
    axis.axvspan(
        time_start * SECONDS_PER_FRAME,
        (time_start + MAX_TIME) * SECONDS_PER_FRAME,
        color=BLUE,
        alpha=0.2,
        label="window with the largest error",
    )
    axis.axvspan(
        time_block[0] * SECONDS_PER_FRAME,
        sum(time_block) * SECONDS_PER_FRAME,
        color=RED,
        alpha=0.5,
        label="masked block inside it",
    )
    axis.set(title=f"4a. mean error of {MAX_TIME}-frame windows", xlabel="time (s)")
    axis.set_xlim(0, frames * SECONDS_PER_FRAME)
    handles = axis.get_legend_handles_labels()
    axis = axes[1, 1]
    axis.legend(*handles, loc="center right", fontsize=9)
    axis.plot(np.arange(len(freq_scores)) + MAX_FREQ / 2, freq_scores, color="black")
    axis.axvspan(freq_start, freq_start + MAX_FREQ, color=BLUE, alpha=0.2)
    axis.axvspan(freq_block[0], sum(freq_block), color=RED, alpha=0.5)
    axis.set(title=f"4b. mean error of {MAX_FREQ}-bin windows", xlabel="mel bin", xlim=(0, MELS))

    axis = axes[1, 2]
    spectrogram(axis, x, "5. what the classifier is trained on", **levels)
    style = {"facecolor": "white", "edgecolor": RED, "linewidth": 1.5}
    start, width = (value * SECONDS_PER_FRAME for value in time_block)
    axis.add_patch(Rectangle((start, 0), width, MELS, **style))
    axis.add_patch(
        Rectangle((0, freq_block[0]), frames * SECONDS_PER_FRAME, freq_block[1], **style)
    )
    figure.savefig(IMAGES / "peas.png", dpi=110)
    plt.close(figure)


def plot_schedule() -> None:
    """Equation 3, and the widths of blocks, over 25 epochs."""
    epochs = 25
    epoch = np.arange(epochs)
    final = 5 * epoch >= 4 * epochs
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for count, style in ((3, "-"), (2, "--"), (1, ":")):
        level = np.minimum(count, 0.1 * epoch + 0.9 * count * final)
        if count == 1:
            # By default a single block is always adaptive.
            level = np.ones(epochs)
        colour = (GREY, BLUE, RED)[count - 1]
        left.step(epoch, level, style, where="mid", color=colour, lw=2, label=f"of {count}")
    left.axvspan(0.8 * epochs - 0.5, epochs - 0.5, color="black", alpha=0.07)
    left.set(title="adaptive blocks per axis", xlabel="epoch", ylim=(0, 3.2))
    left.legend(loc="upper left", fontsize=9)
    right.fill_between(
        epoch[~final], 0, MAX_TIME, color=BLUE, alpha=0.25, label="uniform at random"
    )
    right.plot(epoch[final], np.full(final.sum(), MAX_TIME // 2), color=RED, lw=3, label="fixed")
    right.axvspan(0.8 * epochs - 0.5, epochs - 0.5, color="black", alpha=0.07)
    right.set(title="width of a time block (frames)", xlabel="epoch", ylim=(0, 130))
    right.legend(loc="upper left", fontsize=9)
    figure.savefig(IMAGES / "schedule.png", dpi=110)
    plt.close(figure)


def plot_patch_masks(task: Pretraining, clip: str) -> None:
    """A clip under each patch masking."""
    log_mel, frames = load_clip(task, clip)
    columns = frames // PATCH
    x = log_mel[0, : columns * PATCH]
    grid = (MELS // PATCH, columns)
    count = math.prod(grid)
    maskings = {
        "random, 80 % (AudioMAE)": RandomPatches(0.8),
        "random, 20 % (MAM-CLAP)": RandomPatches(0.2),
        "structured, 50 % of times, 25 % of bands": StructuredPatches(0.5, 0.25),
        "clusters, 50 % (SSAST)": ClusteredPatches(count // 2),
    }
    figure, axes = plt.subplots(2, 2, figsize=(10, 5.4), layout="constrained")
    low, high = np.quantile(x, [0.02, 0.998])
    for axis, (name, masking) in zip(axes.flat, maskings.items(), strict=True):
        source = torch.Generator().manual_seed(1)
        rand = {
            key: torch.rand(1, size, generator=source)
            for key, size in masking.random_numbers(grid).items()
        }
        masked = masking.mask(rand, grid, x[None])[0].view(grid[1], grid[0])
        bins = masked.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
        shown = torch.where(bins, torch.nan, x)
        spectrogram(axis, shown, name, cmap="magma", vmin=low, vmax=high)
        axis.set_facecolor("#dddddd")
    figure.savefig(IMAGES / "patch_masks.png", dpi=110)
    plt.close(figure)


def mel_edges() -> np.ndarray:
    """Edges in Hz of the 8 bands of patches: 128 mel filters from 20 Hz to 8 kHz."""
    low, high = (1127 * math.log1p(f / 700) for f in (20, 8000))
    step = (high - low) / (MELS + 1)
    mels = low + step * (0.5 + PATCH * np.arange(MELS // PATCH + 1))
    return 700 * np.expm1(mels / 1127)


def plot_teacher_grid() -> None:
    """Patches of the student and bins of CLAP's last feature map, over the same sound."""
    seconds = 10.24
    step, split = 10.01 / 32, 2293
    edges = mel_edges()
    heights = np.arange(len(edges))
    border = np.interp(split, edges, heights)
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", sharey=True)
    for axis, (start, end) in zip(axes, ((0, 1.6), (seconds - 1.6, seconds)), strict=True):
        for column in range(65):
            axis.axvline(column * 0.16, color=GREY, lw=0.8)
        for row in heights:
            axis.axhline(row, color=GREY, lw=0.8)
        for column in range(33):
            axis.plot([column * step] * 2, [0, 8], color=RED, lw=2)
        axis.plot([0, 32 * step], [border] * 2, color=RED, lw=2)
        axis.set(xlim=(start, end), ylim=(0, 8), xlabel="time (s)")
        axis.set_yticks(heights, [f"{edge:.0f}" for edge in edges])
    axes[0].set(ylabel="frequency (Hz)", title="start of a clip of 10 s")
    axes[1].set(title="its end")
    for colour, name in ((GREY, "patches, 64 x 8"), (RED, "CLAP's feature map, 32 x 2")):
        axes[0].plot([], [], color=colour, lw=2, label=name)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(IMAGES / "teacher_grid.png", dpi=110)
    plt.close(figure)


def main() -> None:
    """Reads the command line and writes all plots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="of an SSAST's pretraining")
    parser.add_argument("--clip", required=True, help="a sound file")
    options = parser.parse_args()
    task = Pretraining.load_from_checkpoint(options.checkpoint, map_location="cpu").eval()
    plot_peas(task, options.clip)
    plot_schedule()
    plot_patch_masks(task, options.clip)
    plot_teacher_grid()


if __name__ == "__main__":
    main()
