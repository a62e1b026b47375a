"""Joint pretraining step of SSAST: `peas` in one pass and in two against the official code.

One step is masks, forward, InfoNCE and mean squared error, backward and Adam, on the same
log-mels of 1024 frames: 512 patches of 16 x 16, 400 of them masked, and 2 special tokens. The
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

from peas.audio.frontend import KaldiLogMel
from peas.masking import ClusteredPatches
from peas.masking.clusters import official_clusters
from peas.models import SSAST
from peas.models.encoder import Encoder
from peas.models.patches import gather_tokens, visible_indices
from peas.models.weights import load_pretrained
from peas.objectives import PatchContrast, Reconstruction, info_nce, patch_errors
from peas.recipes import SSASTPretrainingRecipe
from peas.tasks import Pretraining
from peas.utils.processes import keep_freed_memory

FRAMES, MELS, MASKED = 1024, 128, 400
GRID = (8, 64)


def our_task(size: str) -> Pretraining:
    """The task as `peas fit` builds it, away from a trainer."""
    task = Pretraining(
        encoder=SSAST(size),  # type: ignore[arg-type]
        front_end=KaldiLogMel(frames=FRAMES, mean=0.0, std=0.5),
        masking=ClusteredPatches(MASKED),
        objectives={
            "nce": PatchContrast(),
            "mse": Reconstruction(weight=10.0, norm_pix=False),
        },
        passes="separate",
        recipe=SSASTPretrainingRecipe(),
        # A backward pass of its own for each objective.
        grad_norm_every=0,
        labels=[],
        multi_label=False,
    )
    module = SimpleNamespace(mixup=0.0, frames=FRAMES, teacher_rate=None)
    stand_in = {"current_epoch": 0, "global_step": 0, "training": True, "world_size": 1}
    stand_in |= {"num_training_batches": 1, "accumulate_grad_batches": 1}
    stand_in |= {"max_epochs": 1, "max_steps": -1}
    task._trainer = SimpleNamespace(datamodule=module, **stand_in)  # type: ignore[assignment]
    task.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    task._prepare()
    task.build(initialise=False)
    return task


def our_batch(log_mel: Tensor) -> dict[str, Any]:
    """What the task's step reads of a batch."""
    clips = len(log_mel)
    names = [str(index) for index in range(clips)]
    place = {"step": 0, "row": torch.arange(clips), "global_size": clips}
    valid = torch.ones(clips, FRAMES, dtype=torch.bool, device=log_mel.device)
    return {"log_mel": log_mel, "valid": valid, "id": names, **place}


def our_steps(
    task: Pretraining, batch: dict[str, Any], options: argparse.Namespace
) -> dict[str, Callable[[], float]]:
    """The task's own training step and optimiser, in one pass and in two, by name."""
    optimizer = task.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    if options.compile:
        model = task.model
        assert isinstance(model, SSAST)
        model.forward_features = torch.compile(model.forward_features)  # type: ignore[method-assign]

    def step(passes: str) -> None:
        task.hparams["passes"] = passes
        with torch.autocast(options.device, torch.bfloat16) if options.bf16 else nullcontext():
            loss = task.training_step(batch, 1)  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    kind = ", bf16" * options.bf16 + ", compiled" * options.compile
    return {
        f"peas, one shared pass{kind}": lambda: seconds_of(
            lambda: step("shared"), options.device, options.clock
        ),
        f"peas, two passes{kind}": lambda: seconds_of(
            lambda: step("separate"), options.device, options.clock
        ),
    }


def masked_patches(model: Encoder, log_mel: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens `[B, M, D]` of the masked patches `[B, N]`, and the patches `[B, M, P]`."""
    mask = mask.to(log_mel.device)
    masked = visible_indices(~mask)
    decoded = model.pretext(log_mel, mask, visible_indices(mask)).decoded
    assert decoded is not None
    return gather_tokens(decoded, masked), gather_tokens(model.patches(log_mel), masked)


def difference(task: Pretraining, log_mel: Tensor, work: Path) -> float:
    """Takes over the peer's weights; largest difference of its losses for the same masks."""
    load_pretrained(task.model, work / "peer.pth")
    rng = random.Random(0)
    masks = [torch.zeros(len(log_mel), GRID[0] * GRID[1], dtype=torch.bool) for _ in range(2)]
    for mask in masks:
        for row in mask:
            row[official_clusters(rng, GRID, MASKED)] = True
    contrastive = task.model.contrastive_head
    assert contrastive is not None
    with torch.no_grad():
        (decoded, target), (other_decoded, other_target) = (
            masked_patches(task.model, log_mel, mask) for mask in masks
        )
        nce = info_nce(contrastive(decoded), target)
        mse = patch_errors(task.model.pixels(other_decoded), other_target).mean()
    ours = torch.stack([nce.accuracy, nce.loss, mse]).cpu()
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
        f"{options.size}, batch {options.batch}, {FRAMES} frames, {MASKED} of 512 patches masked, "
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
