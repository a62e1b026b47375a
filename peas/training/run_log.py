"""The log of a run's start: a CSV file that a kill leaves whole."""

import csv
import os
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from peas.training.run_folder import writing


class LogWriter(ExperimentWriter):
    """Appends lines; a line with new columns has the file written anew, beside its place.

    Lightning's own writer empties the file first: a run that is killed then has lost its log.
    """

    def save(self) -> None:
        """Put the lines that came since the last call into the file."""
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        known = self.metrics_keys
        self.metrics_keys = sorted({*known, *(key for line in self.metrics for key in line)})
        if path.exists() and self.metrics_keys == known:
            with path.open("a", newline="") as file:
                csv.DictWriter(file, self.metrics_keys).writerows(self.metrics)
        else:
            before = []
            if path.exists():
                with path.open(newline="") as file:
                    before = list(csv.DictReader(file))
            partial = path.with_suffix(".partial")
            with partial.open("w", newline="") as file:
                writer = csv.DictWriter(file, self.metrics_keys)
                writer.writeheader()
                writer.writerows(before)
                writer.writerows(self.metrics)
            partial.replace(path)
        self.metrics = []


class RunLog(CSVLogger):
    """Lightning's logger with that writer."""

    @property
    @rank_zero_experiment
    def experiment(self) -> LogWriter:
        """The writer, made when it is first asked for."""
        if self._experiment is None:
            with writing(Path(self.root_dir)):
                os.makedirs(self.root_dir, exist_ok=True)
                self._experiment = LogWriter(log_dir=self.log_dir)
        writer: LogWriter = self._experiment  # type: ignore[assignment]
        return writer

    @rank_zero_only
    def save(self) -> None:
        """Put settings and lines into their files.

        Raises:
            PeasError: The disk is full, or the folder is gone.
        """
        with writing(Path(self.log_dir), Path(self.save_dir)):
            super().save()
