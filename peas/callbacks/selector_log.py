"""Choices of the mask position selector, and the agreement of the possible scores."""

import csv
import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from peas.masking.peas.scores import complementary, error_maps, squared_error
from peas.masking.peas.selector import AxisPlan, marginals, spearman, window_scores
from peas.tasks.base import BaseTask
from peas.training.distributed import gather, is_first
from peas.utils.files import write_text

CLIPS = 4
PASSES = 4


class SelectorLog:
    """Counts starts of adaptive windows, and compares `rec`, `pred` and `complementary` scores.

    Writes `mask_starts.csv` into the run folder: epoch, axis, first bin of the window, count.
    Logs the rank correlation (Spearman) of window scores on the first validation clips, under
    `peas/agree_<score>_<score>_<axis>`; `complementary` masks every patch once, as the head was
    trained, and is the reference.
    """

    def __init__(self) -> None:
        self._starts: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """Counts of the epoch so far, of all processes; every process must call it."""
        parts = gather({axis: counted.cpu() for axis, counted in self._starts.items()})
        return {
            axis: torch.stack([part[axis] for part in parts if axis in part]).sum(0)
            for axis in sorted({axis for part in parts for axis in part}, reverse=True)
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores saved counts, in the first process."""
        self._starts = dict(state) if is_first() else {}

    def count(self, time: AxisPlan, freq: AxisPlan, frames: int, mels: int) -> None:
        """Adds the window starts of a batch."""
        for axis, plan, size in (("time", time, frames), ("freq", freq, mels)):
            starts = plan.window_start[plan.adaptive]
            counted = torch.bincount(starts, minlength=size)
            before = self._starts.get(axis, torch.zeros_like(counted))
            self._starts[axis] = counted + before.to(counted.device)

    def write(self, trainer: Trainer) -> None:
        """Adds the epoch, of all processes, to `mask_starts.csv` and resets the counts."""
        starts = self.state_dict()
        self._starts = {}
        if not trainer.is_global_zero or not starts:
            return
        path = Path(trainer.default_root_dir) / "mask_starts.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        writer.writerow(["epoch", "axis", "start", "count"])
        # A run that was stopped may have written this epoch before.
        writer.writerows(row for row in _rows(path) if int(row[0]) < trainer.current_epoch)
        for axis, counted in starts.items():
            for start, count in enumerate(counted.tolist()):
                if count:
                    writer.writerow([trainer.current_epoch, axis, start, count])
        write_text(path, table.getvalue())

    def agreement(self, task: BaseTask, log_mel: Tensor, widths: tuple[int, int]) -> None:
        """Logs the rank correlations on some clips.

        Args:
            task: Its `model` reconstructs.
            log_mel: `[B, T, F]`; the first few are used.
            widths: Window widths along time and frequency.
        """
        x = log_mel[:CLIPS]
        model = task.model
        maps = error_maps(model.reconstruct, x, score="pred")
        assert maps.e_rec is not None
        assert maps.e_pred is not None
        scores = {
            "rec": maps.e_rec,
            "pred": maps.e_pred,
            "energy": x.float().square(),
        }
        # A pixel probe reconstructs no masked patch.
        if model.pixel_probe is None:
            grid = model.token_grid(x.shape[1], "nonoverlap")
            # The same groups in every epoch, so that only the model changes.
            u = torch.rand(len(x), grid[0] * grid[1], generator=torch.Generator().manual_seed(0))
            reconstruct = complementary(
                model.reconstruct, u.to(x.device), PASSES, patch=model.patch, grid=grid
            )
            scores["complementary"] = squared_error(reconstruct(x), x)
        lines = {name: marginals(score) for name, score in scores.items()}
        for a, b in (
            ("rec", "pred"),
            ("rec", "complementary"),
            ("pred", "complementary"),
            ("pred", "energy"),
        ):
            if a not in lines or b not in lines:
                continue
            for axis, width in zip(("time", "freq"), widths, strict=True):
                first, second = (getattr(lines[name], axis) for name in (a, b))
                agree = spearman(window_scores(first, width), window_scores(second, width))
                task.log(
                    f"peas/agree_{a}_{b}_{axis}",
                    agree.mean(),
                    on_epoch=True,
                    # Rank 0 alone: another process may have no validation clip.
                    rank_zero_only=True,
                    batch_size=len(x),
                )


def _rows(path: Path) -> list[list[str]]:
    """Rows of the file so far, without its header and without an incomplete one."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.reader(file) if len(row) == 4 and row[0].isdigit()]
