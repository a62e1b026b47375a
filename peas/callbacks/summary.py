"""The table of a model's parts that a run begins with."""

import logging
from typing import Any

from lightning.pytorch.callbacks import ModelSummary

log = logging.getLogger("lightning.pytorch.utilities.rank_zero")


class SizeSummary(ModelSummary):
    """Lightning's summary without FLOPs: it needs an example input, and prints 0 without one."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **kwargs: Any,
    ) -> None:
        """Logs the parts of the model and how many parameters are trained."""
        columns = [[name, *values] for name, values in summary_data if name != "FLOPs"]
        widths = [max(len(str(value)) for value in column) for column in columns]
        lines = [
            "  ".join(str(value).ljust(width) for value, width in zip(row, widths, strict=True))
            for row in zip(*columns, strict=True)
        ]
        frozen = total_parameters - trainable_parameters
        lines.append(f"{trainable_parameters:,} parameters are trained, {frozen:,} are not")
        log.info("\n".join(line.rstrip() for line in lines))
