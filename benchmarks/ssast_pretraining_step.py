"""Joint pretraining step of SSAST: `peas` in one pass and in two against the official code.

One step is masks, forward, InfoNCE and mean squared error, backward and Adam, on the same
log-mels of 1024 frames: 512 patches of 16 x 16, 400 of them hidden, and 2 special tokens. The
official code has a pass for each objective; `peas` has both that and the paper's shared pass. The
official code runs unmodified from the checkout given as `--peer`, in a process of its own
(`official_ssast_pretraining_step.py`), and the sides take turns, only one of them working at a
time. All start from the same weights, and the last line shows how far the losses of the same masks
differ: the work is the same.

The official model demands timm 0.4.5. Put it into a folder of its own and name it:
`pip install --no-deps --target DIR timm==0.4.5`, then `--peer-timm DIR`.
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peer import Peer, require_checkout, resident_peak
from timing import add_common, heading, interleaved, prepare, quotients, seconds_of, table
from torch import Tensor

from peas.allocator import keep_freed_memory
from peas.models.checkpoints.ssast import load_pretrained
from peas.models.patch_masking import official_clusters
from peas.tasks import SSASTPretraining
from peas.tasks.ssast_pretext import pretext

FRAMES, MELS, MASKED = 1024, 128, 400
GRID = (8, 64)


def our_task(size: str) -> SSASTPretraining:
    """The task as `peas fit` builds it, away from a trainer."""
    task = SSASTPretraining(
        size=size,  # type: ignore[arg-type]
        masked=MASKED,
        labels=[],
        mean=0.0,
        std=0.5,
        frames=FRAMES,
        multi_label=False,
    )
    task.build(initialise=False)
    task._trainer = SimpleNamespace(current_epoch=0)  # type: ignore[assignment]
    task.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    return task


def our_batch(log_mel: Tensor) -> dict[str, Any]:
    """What the task's step reads of a batch."""
    clips = len(log_mel)
    names = [str(index) for index in range(clips)]
    place = {"step": 0, "row": torch.arange(clips), "global_size": clips}
    return {"log_mel": log_mel, "id": names, **place}


def our_steps(
    task: SSASTPretraining, batch: dict[str, Any], options: argparse.Namespace
) -> dict[str, Callable[[], float]]:
    """The task's own training step and optimiser, in one pass and in two, by name."""
    optimizer = task.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    if options.compile:
        task.model.forward_features = torch.compile(task.model.forward_features)  # type: ignore[method-assign]

    def step(passes: int) -> None:
        task.hparams["passes"] = passes
        with torch.autocast(options.device, torch.bfloat16) if options.bf16 else nullcontext():
            loss = task.training_step(batch, 1)  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    kind = ", bf16" * options.bf16 + ", compiled" * options.compile
    return {
        f"peas, one shared pass{kind}": lambda: seconds_of(
            lambda: step(1), options.device, options.clock
        ),
        f"peas, two passes{kind}": lambda: seconds_of(
            lambda: step(2), options.device, options.clock
        ),
    }


def difference(task: SSASTPretraining, log_mel: Tensor, work: Path) -> float:
    """Takes over the peer's weights; largest difference of its losses for the same masks."""
    load_pretrained(task.model, work / "peer.pth")
    rng = random.Random(0)
    masks = [torch.zeros(len(log_mel), GRID[0] * GRID[1], dtype=torch.bool) for _ in range(2)]
    for mask in masks:
        for row in mask:
            row[official_clusters(rng, GRID, MASKED)] = True
    with torch.no_grad():
        found = pretext(task.model, log_mel, masks).values
    ours = torch.stack([found[name] for name in ("accuracy", "nce", "mse")]).cpu()
    return float((ours - torch.load(work / "losses.pt")).abs().max())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser)
    parser.add_argument("--peer", type=Path, help="checkout of the official SSAST repository")
    parser.add_argument("--peer-timm", type=Path, help="folder that holds timm 0.4.5")
    parser.add_argument("--compile", action="store_true", help="torch.compile our model")
    options = parser.parse_args()
    require_checkout(options.peer, "src/models/ast_models.py", "SSAST")
    prepare(options)
    if options.device == "cpu":
        keep_freed_memory()

    source = torch.Generator().manual_seed(0)
    log_mel = 0.5 * torch.randn(options.batch, FRAMES, MELS, generator=source)
    task = our_task(options.size).to(options.device)
    on_device = log_mel.to(options.device)
    batch = our_batch(on_device)
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    print(heading(options.device))
    print(
        f"{options.size}, batch {options.batch}, {FRAMES} frames, {MASKED} of 512 patches hidden, "
        f"{options.repeats} repeats in turn, {options.clock} time; "
        f"{trained / 1e6:.2f} M trained parameters\n"
    )

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if options.peer is None:
            ours = our_steps(task, batch, options)
            for side in ours.values():
                side()
            values = interleaved(ours, options.repeats)
            print(table([(f"{name} (s)", seconds, 3) for name, seconds in values.items()]))
            print("\nNo --peer given: this says nothing about the official code.")
            return
        torch.save({"log_mel": log_mel, "masked": MASKED}, work / "inputs.pt")
        with Peer(options, work, "official_ssast_pretraining_step.py") as peer:
            apart = difference(task, on_device, work)
            ours = our_steps(task, batch, options)
            theirs: dict[str, Callable[[], float]] = {"official SSAST": peer.step}
            if options.bf16:
                theirs["official SSAST, bf16 autocast"] = lambda: peer.step("half")
            sides = theirs | ours
            for side in sides.values():
                # Compiling may take two.
                for _ in range(1 + options.compile):
                    side()
            values = interleaved(sides, options.repeats)
            their_peak = peer.peak_mib
    rows = [(f"{name} (s)", seconds, 4) for name, seconds in values.items()]
    rows += [
        (f"{side} / {name}", quotients(values[side], values[name]), 2)
        for side in theirs
        for name in ours
    ]
    print(table(rows))
    print(f"\nGoals: 2.5 in one shared pass, 1.4 in two. Largest difference of accuracy, InfoNCE "
          f"and error at the same weights and masks: {apart:.2g} (must be < 1e-4); trained "
          f"parameters: official {peer.parameters / 1e6:.2f} M.")  # fmt: skip
    if options.device == "cpu":
        mine = resident_peak()
        print(f"Peak memory of the processes: official {their_peak:.0f} MiB, peas {mine:.0f} MiB.")
    if not apart < 1e-4:
        raise SystemExit("the losses differ by 1e-4 or more: the sides do not do equal work")


if __name__ == "__main__":
    main()
