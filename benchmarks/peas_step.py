"""What PEAS costs: its training step against one with conventional SpecAugment.

Both strategies run as the callbacks that `peas fit` uses, with the classification task, its front
end and its optimiser, on waveforms of 5 s, and take turns. Three figures: a step in which every
clip is scored; steps of four epochs with `refresh_every: 4`, where a clip's errors are kept for
four epochs (in the first epoch all clips are scored, so the average is given with and without it);
and peak memory, of fresh processes on a CPU.
"""

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from peer import resident_peak
from timing import add_common, heading, interleaved, prepare, quotients, seconds_of, table

from peas.audio.frontend import KaldiLogMel
from peas.callbacks import PEAS, SpecAugment
from peas.callbacks.spec_augment import BlockMasking
from peas.data.batch import Batch
from peas.models import SSAST
from peas.recipes import SSASTRecipe
from peas.tasks import Classification
from peas.utils.processes import keep_freed_memory

CLASSES, SAMPLES = 50, 80_000
EPOCHS = 25


class Alone(Classification):
    """The task without a Lightning loop: it logs nowhere, and its trainer is a stand-in."""

    loop: Any

    @property
    def trainer(self) -> Any:
        """The stand-in."""
        return self.loop

    def log(self, *_: object, **__: object) -> None:
        """Forgets the value; Lightning's log costs both strategies the same."""


class Bench:
    """One model that both strategies train in turn.

    Args:
        options: Of the command line.
        batches: Number of different batches.
    """

    def __init__(self, options: argparse.Namespace, batches: int) -> None:
        self.device, self.clock = options.device, options.clock
        if self.device == "cpu":
            keep_freed_memory()
        precision = MixedPrecision("bf16-mixed", self.device) if options.bf16 else Precision()
        self.trainer: Any = SimpleNamespace(
            training=True, current_epoch=0, max_epochs=EPOCHS, global_step=0,
            precision_plugin=precision, sanity_checking=False,
        )  # fmt: skip
        torch.manual_seed(0)
        labels = [str(index) for index in range(CLASSES)]
        self.task = Alone(
            None,
            encoder=SSAST(options.size),
            front_end=KaldiLogMel(frames=512, mean=-6.6, std=5.4),
            recipe=SSASTRecipe(),
            labels=labels,
            multi_label=False,
        )
        self.task.loop = self.trainer
        self.task.build(initialise=False)
        self.task.to(self.device).train()
        optimizer = self.task.configure_optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        self.optimizer = optimizer
        self.batches = [self._batch(index, options.batch) for index in range(batches)]

    def step(self, strategy: BlockMasking, index: int = 0) -> float:
        """Seconds of one step: front end, masks, forward, backward, Adam."""
        batch: Any = dict(self.batches[index])
        return seconds_of(lambda: self._step(strategy, batch, index), self.device, self.clock)

    def _step(self, strategy: BlockMasking, batch: Batch, index: int) -> None:
        trainer: Any = self.trainer
        self.task.masking = strategy
        batch = self.task.on_after_batch_transfer(batch, 0)
        with self.trainer.precision_plugin.forward_context():
            loss = self.task.training_step(batch, index)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.trainer.global_step += 1
        strategy.on_train_batch_end(trainer, self.task, None, batch, index)

    def _batch(self, index: int, size: int) -> Batch:
        source = torch.Generator().manual_seed(index)
        # Coloured noise of changing loudness: its error maps have something to rank.
        noise = torch.randn(size, SAMPLES, generator=source).cumsum(1)
        noise = noise - noise.mean(1, keepdim=True)
        loudness = torch.rand(size, 10, generator=source).repeat_interleave(SAMPLES // 10, 1)
        waveform = loudness * noise / noise.abs().amax(1, keepdim=True)
        return Batch(
            waveform=waveform.to(self.device),
            length=torch.full((size,), SAMPLES, device=self.device),
            target=torch.randint(CLASSES, (size,), generator=source).to(self.device),
            labelled=torch.ones(size, dtype=torch.bool, device=self.device),
            id=[f"{index}-{clip}.wav" for clip in range(size)],
            mixed=torch.zeros(size, dtype=torch.bool, device=self.device),
            step=index,
            row=torch.arange(size, device=self.device),
            global_size=size,
        )


def strategies(refresh_every: int = 1) -> dict[str, BlockMasking]:
    """The two sides, with the settings of the ESC-50 recipes."""
    return {"conventional": SpecAugment(), "peas": PEAS(1, 1, refresh_every=refresh_every)}


def every_step(bench: Bench, repeats: int) -> str:
    """Table of the step in which every clip is scored."""
    sides: dict[str, Callable[[], float]] = {
        name: functools.partial(bench.step, strategy) for name, strategy in strategies().items()
    }
    for side in sides.values():
        side()
    values = interleaved(sides, repeats)
    return table([
        ("conventional step (s)", values["conventional"], 3),
        ("PEAS (1,1) step (s)", values["peas"], 3),
        ("ratio", quotients(values["peas"], values["conventional"]), 2),
    ])  # fmt: skip


def averaged(bench: Bench, count: int) -> str:
    """Table of epochs in which a clip's errors are kept: the first and `count` more."""
    kept = strategies(refresh_every=4)
    batches = len(bench.batches)
    epochs: list[list[float]] = []
    for epoch in range(count + 1):
        bench.trainer.current_epoch = epoch
        ratios: dict[str, float] = dict.fromkeys(kept, 0.0)
        for index in range(batches):
            sides: dict[str, Callable[[], float]] = {
                name: functools.partial(bench.step, strategy, index)
                for name, strategy in kept.items()
            }
            for name, values in interleaved(sides, 1, first=index).items():
                ratios[name] += values[0]
        epochs.append([ratios["conventional"], ratios["peas"]])

    def ratio(part: list[list[float]]) -> float:
        conventional, peas = (sum(column) for column in zip(*part, strict=True))
        return peas / conventional

    lines = [f"| epoch | ratio of {batches} steps |", "|---|---:|"]
    lines += [
        f"| {epoch}{' (every clip scored)' * (epoch == 0)} | {ratio([times]):.2f} |"
        for epoch, times in enumerate(epochs)
    ]
    lines += [
        f"| epochs 0 to {count - 1}, the first included | {ratio(epochs[:count]):.2f} |",
        f"| epochs 1 to {count}, without the first | {ratio(epochs[1:]):.2f} |",
    ]
    return "\n".join(lines)


def peak(options: argparse.Namespace) -> float:
    """Peak memory in MiB of this process after three steps of one strategy."""
    bench = Bench(options, 1)
    strategy = strategies()[options.memory]
    for _ in range(3):
        bench.step(strategy)
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resident_peak()


def memory(options: argparse.Namespace) -> str:
    """Table of peak memory, each value from a process of its own."""

    def fresh(name: str) -> float:
        command = [sys.executable, __file__, "--memory", name, "--size", options.size]
        command += ["--batch", str(options.batch), "--device", options.device]
        command += ["--bf16"] * options.bf16
        if options.threads:
            command += ["--threads", str(options.threads)]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return float(json.loads(run.stdout.splitlines()[-1]))

    sides: dict[str, Callable[[], float]] = {
        name: functools.partial(fresh, name) for name in strategies()
    }
    values = interleaved(sides, options.memory_repeats)
    return table([
        ("conventional, peak memory (MiB)", values["conventional"], 0),
        ("PEAS (1,1), peak memory (MiB)", values["peas"], 0),
        ("ratio", quotients(values["peas"], values["conventional"]), 3),
    ])  # fmt: skip


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser)
    parser.add_argument("--epochs", type=int, default=4, help="epochs averaged, besides the first")
    parser.add_argument("--batches", type=int, default=4, help="batches of such an epoch")
    parser.add_argument("--memory-repeats", type=int, default=3, help="0 leaves memory out")
    parser.add_argument("--memory", choices=tuple(strategies()), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        if options.threads:
            torch.set_num_threads(options.threads)
        print(json.dumps(peak(options)))
        return
    prepare(options)
    print(heading(options.device))
    print(
        f"{options.size}, batch {options.batch}, clips of 5 s, bf16 {options.bf16}, "
        f"{options.clock} time\n"
    )
    bench = Bench(options, options.batches)
    each = every_step(bench, options.repeats)
    print(f"Every clip scored, {options.repeats} repeats in turn:\n\n{each}\n")
    kept = averaged(bench, options.epochs)
    print(f"Errors kept for four epochs (`refresh_every: 4`):\n\n{kept}\n")
    del bench
    if options.memory_repeats:
        print(f"Fresh processes, {options.memory_repeats} each:\n\n{memory(options)}")


if __name__ == "__main__":
    main()
