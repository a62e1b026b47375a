"""Training step of ESC-50 fine-tuning: `peas` against the official SSAST code.

One step is forward, loss, backward and Adam, on the same log-mels, for 512 frames cut into
16 x 16 patches at a stride of 10 (600 patches and 2 special tokens). The official code runs
unmodified from the checkout given as `--peer`, in a process of its own (`official_step.py`), and
the two take turns, only one of them working at a time. Both start from the same weights, and the
table shows how far their logits differ: the work is the same.

The official model demands timm 0.4.5. Put it into a folder of its own and name it:
`pip install --no-deps --target DIR timm==0.4.5`, then `--peer-timm DIR`.
"""

import argparse
import functools
import logging
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peer import Peer, require_checkout, resident_peak
from timing import add_common, heading, interleaved, prepare, quotients, seconds_of, table
from torch import Tensor

from peas.audio.frontend import KaldiLogMel
from peas.models import SSAST
from peas.models.vit import SIZES
from peas.models.weights import load_pretrained
from peas.recipes import SSASTRecipe
from peas.tasks import Classification
from peas.utils.processes import keep_freed_memory

CLASSES, FRAMES, MELS = 50, 512, 128


def inputs(batch: int) -> dict[str, Any]:
    """Log-mels with the statistics of a normalised data set, and classes."""
    source = torch.Generator().manual_seed(0)
    return {
        "log_mel": 0.5 * torch.randn(batch, FRAMES, MELS, generator=source),
        "target": torch.randint(CLASSES, (batch,), generator=source),
        "classes": CLASSES,
    }


def our_task(size: str) -> Classification:
    """The task as `peas fit` builds it."""
    task = Classification(
        None,
        encoder=SSAST(size),  # type: ignore[arg-type]
        front_end=KaldiLogMel(frames=FRAMES, mean=0.0, std=0.5),
        recipe=SSASTRecipe(),
        labels=[str(index) for index in range(CLASSES)],
        multi_label=False,
    )
    task.build(initialise=False)
    return task


def our_step(
    task: Classification, batch: dict[str, Any], options: argparse.Namespace
) -> Callable[[], float]:
    """The step of `peas fit`: the task's own training step and optimiser."""
    optimizer = task.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    if options.compile:
        task.model.compile()

    def step() -> None:
        with torch.autocast(options.device, torch.bfloat16) if options.bf16 else nullcontext():
            loss = task.training_step(batch, 1)  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return lambda: seconds_of(step, options.device, options.clock)


def products(size: str, batch: int, device: str, clock: str) -> tuple[float, float]:
    """Time that the matrix products of one step would take at the device's best float32 rate.

    Returns:
        Seconds of the products alone, forward and twice that backward, and the rate in GFLOP/s.
    """
    width, depth, _ = SIZES[size]
    grid = ((MELS - 16) // 10 + 1) * ((FRAMES - 16) // 10 + 1)
    tokens = grid + 2
    linear = 2 * tokens * width * 12 * width
    attention = 2 * 2 * tokens * tokens * width
    forward = depth * (linear + attention) + 2 * grid * 256 * width
    a = torch.randn(batch * tokens, width, device=device)
    b = torch.randn(4 * width, width, device=device)
    torch.nn.functional.linear(a, b)
    multiply = functools.partial(torch.nn.functional.linear, a, b)
    best = min(seconds_of(multiply, device, clock) for _ in range(20))
    rate = 2 * a.shape[0] * width * 4 * width / best
    # The input needs no gradient, so the patch embedding has one product backward, not two.
    total = batch * (3 * forward - 2 * grid * 256 * width)
    return total / rate, rate / 1e9


def difference(task: Classification, log_mel: Tensor, work: Path) -> float:
    """Takes over the peer's weights; largest difference of the two codes' float32 logits."""
    load_pretrained(task.model, work / "peer.pth")
    theirs = torch.load(work / "logits.pt")
    with torch.no_grad():
        return float((task.model(log_mel).cpu() - theirs).abs().max())


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
    warnings.filterwarnings("ignore", message=".*self.log.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    given = inputs(options.batch)
    batch = {key: given[key].to(options.device) for key in ("log_mel", "target")}
    task = our_task(options.size).to(options.device)
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    print(heading(options.device))
    print(
        f"{options.size}, batch {options.batch}, {FRAMES} frames, stride 10, "
        f"{options.repeats} repeats in turn, {options.clock} time; "
        f"{trained / 1e6:.2f} M trained parameters\n"
    )

    name = "peas" + ", bf16" * options.bf16 + ", compiled" * options.compile
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if options.peer is None:
            ours = our_step(task, batch, options)
            ours()
            values = interleaved({name: ours}, options.repeats)
            print(table([(f"{name} (s)", values[name], 3)]))
            print("\nNo --peer given: this says nothing about the official code.")
            return
        torch.save(given, work / "inputs.pt")
        with Peer(options, work, "official_step.py") as peer:
            apart = difference(task, batch["log_mel"], work)
            ours = our_step(task, batch, options)
            theirs: dict[str, Callable[[], float]] = {"official SSAST": peer.step}
            if options.bf16:
                theirs["official SSAST, bf16 autocast"] = lambda: peer.step("half")
            sides = theirs | {name: ours}
            for side in sides.values():
                # Compiling may take two.
                for _ in range(1 + options.compile):
                    side()
            seconds, rate = products(options.size, options.batch, options.device, options.clock)
            values = interleaved(sides, options.repeats)
            their_peak = peer.peak_mib
        official, own = values["official SSAST"], values[name]
        rows = [(f"{side} (s)", values[side], 4) for side in sides]
        rows += [(f"{side} / {name}", quotients(values[side], own), 2) for side in theirs]
        print(table(rows))
    print(f"\nLargest difference of the logits at the same weights: {apart:.2g} (must be < 1e-4); "
          f"trained parameters: official {peer.parameters / 1e6:.2f} M.")  # fmt: skip
    shares = [seconds / min(side) for side in (official, own)]
    print(f"The matrix products alone take {seconds:.3f} s at this machine's best float32 rate "
          f"({rate:.0f} GFLOP/s): {shares[0]:.0%} of the official code's fastest step, "
          f"{shares[1]:.0%} of ours.")  # fmt: skip
    if options.device == "cpu":
        mine = resident_peak()
        print(f"Peak memory of the processes: official {their_peak:.0f} MiB, peas {mine:.0f} MiB.")
    if not apart < 1e-4:
        raise SystemExit("the logits differ by 1e-4 or more: the two sides do not do equal work")


if __name__ == "__main__":
    main()
