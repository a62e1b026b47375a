"""Callback for the tests of the command line: writes down every mask, and stops a run."""

import hashlib
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger


class Recorder(Callback):
    """Writes a line a training batch; wherever it stands in the list of callbacks.

    Args:
        path: File of JSON lines: epoch, step, clips, and the hash of what was hidden and seen.
        stop: Epoch and batch after which the run is broken off as by Ctrl-C.
    """

    def __init__(self, path: str, stop: tuple[int, int] | None = None) -> None:
        self.path = Path(path)
        self.stop = stop

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        line = {"epoch": trainer.current_epoch, "step": batch["step"], "ids": batch["id"]}
        for key in ("mask", "log_mel"):
            content = batch[key].cpu().numpy().tobytes()
            line[key] = hashlib.blake2b(content, digest_size=8).hexdigest()
        line["hidden"] = int(batch["mask"].sum())
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.stop is not None and (trainer.current_epoch, batch_idx) == tuple(self.stop):
            raise KeyboardInterrupt


def recorded(path: Path) -> list[dict[str, Any]]:
    """Lines of a recorder's file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


class Signaller(Callback):
    """Sends a signal to its own process, once.

    Args:
        name: Such as SIGTERM.
        at: Epoch and batch, at whose end it is sent; for `validation` the epoch's validation.
        validation: Whether it is sent while the epoch's validation runs, the sanity check included.
        group: Whether the workers get it as well, as from a terminal or `timeout`.
    """

    def __init__(
        self, name: str, at: tuple[int, int], validation: bool = False, group: bool = False
    ) -> None:
        self.number = signal.Signals[name]
        self.at = tuple(at)
        self.validation = validation
        self.group = group
        if group:
            os.setpgid(0, 0)

    def _send(self) -> None:
        if self.group:
            os.killpg(0, self.number)
            # Time for the news that a worker has died.
            time.sleep(0.3)
        else:
            os.kill(os.getpid(), self.number)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.validation and (trainer.current_epoch, batch_idx) == self.at:
            self._send()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.validation and trainer.current_epoch == self.at[0]:
            self._send()


class Breaker(Callback):
    """Breaks a run off, as by an error.

    Args:
        hook: `on_train_batch_end` or `on_validation_start`.
        at: Epoch, and batch of it that was the last.
    """

    def __init__(self, hook: str, at: tuple[int, int]) -> None:
        self.hook = hook
        self.at = tuple(at)
        self._seen = -1

    def _break(self, hook: str, trainer: Trainer) -> None:
        if hook == self.hook and (trainer.current_epoch, self._seen) == self.at:
            raise KeyboardInterrupt

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seen = batch_idx
        self._break("on_train_batch_end", trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._break("on_validation_start", trainer)


class Killer(Logger):
    """Kills its own process with SIGKILL, in the place of a line of the log.

    Args:
        step: Of the line.
        key: That the line has.
    """

    def __init__(self, step: int, key: str) -> None:
        super().__init__()
        self.step, self.key = step, key

    @property
    def name(self) -> str:
        return "killer"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if step == self.step and self.key in metrics:
            os.kill(os.getpid(), signal.SIGKILL)

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


class KillService(Callback):
    """Kills W&B's service after the first epoch."""

    def on_train_epoch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.current_epoch:
            return
        killed = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                name, _, fields = stat.read_text().rpartition(")")
                if name.endswith("(wandb-core") and int(fields.split()[1]) == os.getpid():
                    os.kill(int(stat.parent.name), signal.SIGKILL)
                    killed += 1
        assert killed


class Poison(Callback):
    """Puts a number that is none into the spectrograms of one training batch.

    Args:
        at: Epoch and batch.
    """

    def __init__(self, at: tuple[int, int]) -> None:
        self.at = tuple(at)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            for key in {"log_mel", "masked_log_mel"} & batch.keys():
                batch[key][0] = float("nan")


class Thief(Callback):
    """Takes a sound file away after the first training batch.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == 1:
            self.path.unlink(missing_ok=True)


class Places(Callback):
    """Writes the clips of every training and validation batch, a file a process.

    Args:
        folder: Where the files go.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def _write(self, trainer: Trainer, kind: str, batch: Any) -> None:
        line = {"kind": kind, "epoch": trainer.current_epoch, "ids": batch["id"]}
        with (self.folder / f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._write(trainer, "train", batch)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._write(trainer, "validation", batch)


class Ender(Callback):
    """Asks the trainer to end after a training batch, as Lightning's clock of `max_time` does.

    Args:
        at: Epoch and batch.
    """

    def __init__(self, at: tuple[int, int] = (1, 1)) -> None:
        self.at = tuple(at)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            trainer.should_stop = True
