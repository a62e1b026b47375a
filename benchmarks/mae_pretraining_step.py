"""Pretraining steps of AudioMAE, `peas` against the official code, and of MAM-CLAP.

One step is masks, forward, loss, backward and AdamW, on the same log-mels of 1024 frames: 512
patches of 16 x 16, of which 80 % are masked, and the local decoder of 16 blocks. The official code
runs unmodified from the checkout given as `--peer`, in a process of its own
(`official_mae_step.py`), and the sides take turns, only one of them working at a time. Both start
from the same weights, and a line shows how far the losses under the same mask differ.

MAM-CLAP's step (20 % masked, one block) is timed with targets read from a cache, with the same
step fed a constant target, and with a live teacher (HTSAT-tiny, random weights).

The official model demands timm 0.3.2. Put it into a folder of its own and name it:
`pip install --no-deps --target DIR timm==0.3.2`, then `--peer-timm DIR`.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from peer import Peer, require_checkout, resident_peak
from timing import add_common, heading, interleaved, prepare, quotients, seconds_of, table
from torch import Tensor

from peas.audio.frontend import KaldiLogMel
from peas.data.columns import Strings
from peas.masking import PatchMasking, RandomPatches
from peas.models import AudioMAE
from peas.models.patches import visible_indices
from peas.models.vit import SIZES
from peas.models.weights import load_pretrained
from peas.objectives import FeatureDistillation, Objective, Reconstruction, masked_patch_error
from peas.recipes import AudioMAEPretrainingRecipe
from peas.tasks import Pretraining
from peas.teachers import TransformersClapTeacher
from peas.teachers.cache import TargetSettings
from peas.teachers.target_writer import Block, ids_sum, write_targets
from peas.utils.processes import keep_freed_memory

FRAMES, MELS, RATIO = 1024, 128, 0.8
GRID = (8, 64)
WORKER = "official_mae_step.py"
PARTS = ("autoencoder", "distillation")
Step = Callable[[], float]


def our_task(
    encoder: AudioMAE, masking: PatchMasking, objectives: dict[str, Objective | None]
) -> Pretraining:
    """The task as `peas fit` builds it, away from a trainer."""
    task = Pretraining(
        encoder=encoder,
        front_end=KaldiLogMel(frames=FRAMES, mean=0.0, std=0.5),
        masking=masking,
        objectives=objectives,
        recipe=AudioMAEPretrainingRecipe(base_batch_size=None),
        labels=[],
        multi_label=True,
    )
    clips = SimpleNamespace(ids=names(64))
    module = SimpleNamespace(mixup=0.0, frames=FRAMES, teacher_rate=None, clips=lambda _: clips)
    stand_in = {"current_epoch": 0, "global_step": 0, "training": True, "world_size": 1}
    stand_in |= {"num_training_batches": 1, "accumulate_grad_batches": 1}
    stand_in |= {"max_epochs": 1, "max_steps": -1}
    task._trainer = SimpleNamespace(datamodule=module, **stand_in)  # type: ignore[assignment]
    task.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    task._prepare()
    task.build(initialise=False)
    return task


def our_audiomae(options: argparse.Namespace) -> Pretraining:
    """AudioMAE's pretraining, on the device."""
    task = our_task(
        AudioMAE(options.size), RandomPatches(RATIO), {"reconstruction": Reconstruction()}
    )
    return task.to(options.device)


def names(count: int) -> list[str]:
    """Ids of clips."""
    return [f"clip{index:04}" for index in range(count)]


def our_batch(log_mel: Tensor) -> dict[str, Any]:
    """What the task's step reads of a batch."""
    clips = len(log_mel)
    place = {"step": 0, "row": torch.arange(clips), "global_size": clips}
    valid = torch.ones(clips, FRAMES, dtype=torch.bool, device=log_mel.device)
    return {"log_mel": log_mel, "valid": valid, "id": names(clips), **place}


def our_step(
    task: Pretraining,
    batch: dict[str, Any],
    options: argparse.Namespace,
    *,
    half: bool = False,
) -> Step:
    """The task's own training step and optimiser, cached targets included."""
    optimizer = task.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)

    def step() -> None:
        given = dict(batch)
        task.on_before_batch_transfer(given, 0)  # type: ignore[arg-type]
        if "teacher_map" in given:
            given["teacher_map"] = given["teacher_map"].to(options.device)
        with torch.autocast(options.device, torch.bfloat16) if half else nullcontext():
            loss = task.training_step(given, 1)  # type: ignore[arg-type]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda: seconds_of(step, options.device, options.clock)


def compiled(task: Pretraining) -> Pretraining:
    """The task with its encoder and decoder compiled."""
    model = task.model
    assert isinstance(model, AudioMAE)
    assert model.decoder is not None
    model.encoder.compile()
    model.decoder.compile()
    return task


@torch.no_grad()
def difference(task: Pretraining, log_mel: Tensor, work: Path) -> float:
    """Takes over the peer's weights; difference of the losses under its mask, in float32."""
    load_pretrained(task.model, work / "peer.pth")
    theirs = torch.load(work / "loss.pt")
    model = task.model.eval()
    assert isinstance(model, AudioMAE)
    assert model.decoder is not None
    hidden = theirs["hidden"]
    visible = visible_indices(hidden).to(log_mel.device)
    patches = model.encoder.patches(log_mel)
    tokens = model.encoder.norm(model.encoder(patches, visible))
    drawn = model.decoder.pred(model.decoder(tokens, visible, patches.shape[1]))
    loss = masked_patch_error(drawn, model.targets(patches), hidden.to(log_mel.device))
    task.train()
    return abs(float(loss) - float(theirs["loss"]))


def products(size: str, batch: int) -> float:
    """Operations of the matrix products of one autoencoder step: thrice those of its forward."""
    width, depth, _ = SIZES[size]
    patches = GRID[0] * GRID[1]
    seen = int(patches * (1 - RATIO))
    tokens, narrow, window = seen + 1, 512, 16
    encoder = depth * (24 * tokens * width**2 + 4 * tokens**2 * width) + 2 * seen * 256 * width
    decoder = 16 * (24 * patches * narrow**2 + 4 * patches * window * narrow)
    decoder += 2 * tokens * width * narrow + 2 * patches * narrow * 256
    return 3.0 * batch * (encoder + decoder)


def best_rate(options: argparse.Namespace, dtype: torch.dtype) -> float:
    """Operations a second of the fastest large matrix product, as measured here."""
    rows, inner, columns = (8192, 4096, 4096) if options.device == "cuda" else (1024, 768, 3072)
    a = torch.randn(rows, inner, device=options.device, dtype=dtype)
    b = torch.randn(columns, inner, device=options.device, dtype=dtype)
    multiply = functools.partial(torch.nn.functional.linear, a, b)
    best = min(seconds_of(multiply, options.device, options.clock) for _ in range(20))
    return 2 * rows * inner * columns / best


def peak(options: argparse.Namespace) -> float:
    """MiB at most in use so far: of the process, or of the CUDA device's tensors."""
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resident_peak()


def peaks(options: argparse.Namespace, work: Path) -> tuple[float, float]:
    """Peak memory of two steps in fresh processes: official and ours, in float32."""
    with Peer(options, work, WORKER) as peer:
        for _ in range(2):
            peer.step()
        theirs = peer.peak_mib
    command = [sys.executable, __file__, "--alone", "--size", options.size]
    command += ["--batch", str(options.batch), "--device", options.device]
    if options.threads:
        command += ["--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"our side stopped:\n{done.stderr[-2000:]}")
    return theirs, float(json.loads(done.stdout.splitlines()[-1])["peak_mib"])


def autoencoder(options: argparse.Namespace, log_mel: Tensor, work: Path) -> None:
    """Print the table of AudioMAE's step."""
    task = our_audiomae(options)
    batch = our_batch(log_mel)
    flops = products(options.size, options.batch)
    official: dict[str, Step] = {}
    apart, memory = None, None
    peer = Peer(options, work, WORKER) if options.peer else None
    with peer or nullcontext():
        if peer is not None:
            apart = difference(task, log_mel, work)
            official["official"] = peer.step
            if options.bf16:
                half = "float16" if options.device == "cuda" else "bf16"
                official[f"official, {half}"] = lambda: peer.step("half")
        ours: dict[str, Step] = {"peas": our_step(task, batch, options)}
        if options.bf16:
            ours["peas, bf16"] = our_step(task, batch, options, half=True)
        if options.compile:
            fast = compiled(our_audiomae(options))
            ours["peas, bf16, compiled" if options.bf16 else "peas, compiled"] = our_step(
                fast, batch, options, half=options.bf16
            )
        sides = official | ours
        for side in sides.values():
            # Compiling may take two.
            for _ in range(1 + options.compile):
                side()
        values = interleaved(sides, options.repeats)
        rates = {"": best_rate(options, torch.float32)}
        if options.bf16:
            rates["bf16"] = best_rate(options, torch.bfloat16)
    rows = [(f"{name} (s)", values[name], 4) for name in sides]
    for theirs in official:
        rows += [
            (f"{theirs} / {name}", quotients(values[theirs], values[name]), 2) for name in ours
        ]
    print(table(rows))
    if peer is None:
        print("\nNo --peer given: this says nothing about the official code.")
    else:
        print(f"\nDifference of the losses at the same weights and mask: {apart:.2g} (must be < "
              f"2e-5); trained parameters: official {peer.parameters / 1e6:.2f} M.")  # fmt: skip
        memory = peaks(options, work)
        print(f"Peak memory, float32, fresh processes: official {memory[0]:.0f} MiB, peas "
              f"{memory[1]:.0f} MiB, ratio {memory[1] / memory[0]:.3f}.")  # fmt: skip
    print(f"\nThe products of a step are {flops / 1e12:.2f} TFLOP. Their share of a measured large "
          "product's rate (of the fastest step):")  # fmt: skip
    for name in sides:
        kind = "bf16" if "bf16" in name or "float16" in name else ""
        share = flops / min(values[name]) / rates[kind]
        print(f"- {name}: {share:.0%} of {rates[kind] / 1e12:.2f} TFLOP/s")
    if apart is not None and not apart < 2e-5:
        raise SystemExit("the losses differ by 2e-5 or more: the two sides do not do equal work")


class _Maps:
    """Random maps of all clips of a shard."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def blocks(self, shards: Any) -> Iterator[Block]:
        """Maps of each shard."""
        source = np.random.default_rng(0)
        for shard in shards:
            maps = source.standard_normal((len(shard), *self.shape)).astype(np.float16)
            yield Block(maps, [])


def written(folder: Path, teacher: TransformersClapTeacher) -> Path:
    """A cache of the shape of CLAP's maps."""
    ids = names(64)
    shape = (2, 32, teacher.width)
    recipe = TargetSettings(
        teacher="random maps",
        fingerprint="random",
        first_centre=teacher.extent.first_centre,
        step=teacher.extent.step,
        freq_edges=list(teacher.extent.freq_edges),
        shape=list(shape),
        sound="",
        set="",
        clips=len(ids),
        ids=ids_sum(ids),
        shard_clips=64,
    )
    write_targets(folder, recipe, Strings(ids), _Maps(shape))
    return folder


def distillation(options: argparse.Namespace, log_mel: Tensor, work: Path) -> None:
    """Print the table of MAM-CLAP's step."""
    warnings.filterwarnings("ignore", message="the teacher's checkpoint is null")
    teacher = TransformersClapTeacher(None)
    cache = FeatureDistillation(targets=str(written(work / "cache", teacher)))
    ear = FeatureDistillation(teacher=teacher.to(options.device))
    task, live = (
        our_task(AudioMAE(options.size, decoder_depth=1), RandomPatches(0.2), {"features": part})
        for part in (cache, ear)
    )
    batch = our_batch(log_mel)
    step = our_step(task.to(options.device), batch, options, half=options.bf16)
    cached = cache.targets
    assert cached is not None
    read = dict(batch)
    cached.read(read)  # type: ignore[arg-type]
    read["teacher_map"] = read["teacher_map"].to(options.device)
    target = cached.of(read, task.model)  # type: ignore[arg-type]
    constant: Any = SimpleNamespace(read=lambda _: None, of=lambda *_: target)

    def with_targets(targets: Any) -> Step:
        def turn() -> float:
            cache.targets = targets
            return step()

        return turn

    samples = teacher.rate * 10
    source = torch.Generator().manual_seed(1)
    sound = 0.1 * torch.randn(options.batch, samples, generator=source)
    listened = batch | {
        "teacher_waveform": sound.to(options.device),
        "teacher_length": torch.full((options.batch,), samples, device=options.device),
    }
    sides = {
        "constant target": with_targets(constant),
        "cached targets": with_targets(cached),
        "live teacher": our_step(live.to(options.device), listened, options, half=options.bf16),
    }
    for side in sides.values():
        side()
    values = interleaved(sides, options.repeats)
    base = values["constant target"]
    rows = [(f"MAM-CLAP, {name} (s)", values[name], 4) for name in sides]
    rows.append(("cached / constant", quotients(values["cached targets"], base), 3))
    share = [1 - x for x in quotients(base, values["live teacher"])]
    print(table(rows))
    print(f"\nA live teacher's share of its step: {statistics.median(share):.0%}.")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser)
    parser.set_defaults(batch=8)
    parser.add_argument("--peer", type=Path, help="checkout of the official AudioMAE repository")
    parser.add_argument("--peer-timm", type=Path, help="folder that holds timm 0.3.2")
    parser.add_argument("--compile", action="store_true", help="also our model under torch.compile")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    require_checkout(options.peer, "models_mae.py", "AudioMAE")
    prepare(options)
    if options.device == "cpu":
        keep_freed_memory()
    source = torch.Generator().manual_seed(0)
    log_mel = 0.5 * torch.randn(options.batch, FRAMES, MELS, generator=source)
    if options.alone:
        step = our_step(our_audiomae(options), our_batch(log_mel.to(options.device)), options)
        for _ in range(2):
            step()
        print(json.dumps({"peak_mib": peak(options)}))
        return
    print(heading(options.device))
    print(
        f"{options.size}, batch {options.batch}, {FRAMES} frames, {options.repeats} repeats in "
        f"turn, {options.clock} time\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        torch.save({"log_mel": log_mel, "mask_ratio": RATIO}, work / "inputs.pt")
        on_device = log_mel.to(options.device)
        if "autoencoder" in options.parts:
            autoencoder(options, on_device, work)
        if "distillation" in options.parts:
            print()
            distillation(options, on_device, work)


if __name__ == "__main__":
    main()
